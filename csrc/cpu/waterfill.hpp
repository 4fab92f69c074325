// One pass over a water-filling state: what the injection and the fused step share.
//
// Work is cut into runs of symbols. The weights of a run depend on d alone and serve both halves of [Re | Im], so they
// are made once, in L1, with one bit per symbol that still waits; of the Philox counters only those with a waiting
// element are evaluated.
#pragma once
#include "../common/waterfill_step.hpp"
#include "draws.hpp"
#include "levels.hpp"
#include "packs.hpp"

namespace sf {
inline namespace SF_NS {

constexpr int64_t symbol_run = draw_chunk / 2;

// A bfloat16 is the upper half of a float.
SF_HD native<float> get_bf16(const uint16_t* p, int m) {
  constexpr int W = native_width<float>;
  typedef uint16_t H __attribute__((vector_size(W * 2), aligned(2), may_alias));
  typedef uint32_t U __attribute__((vector_size(W * 4)));
  uint16_t part[W] = {};
  if (m < W) {
    __builtin_memcpy(part, p, size_t(m) * 2);
    p = part;
  }
  return native<float>((native<float>::V)(__builtin_convertvector(*reinterpret_cast<const H*>(p), U) << 16));
}

// Entries of a prediction, in the state's dtype or bfloat16, at reals i .. i+m of the whole array.
template <class T>
SF_HD native<T> predicted(const waterfill_args& a, const void* p, int64_t i, int m) {
  if constexpr (sizeof(T) == 4)
    if (a.x0_bf16) return get_bf16(static_cast<const uint16_t*>(p) + i, m);
  return get(static_cast<const T*>(p) + i, m);
}
template <class T>
SF_HD void fetch_prediction(const waterfill_args& a, const void* p, int64_t i) {
  a.x0_bf16 ? fetch_reals(static_cast<const uint16_t*>(p) + i) : fetch_reals(static_cast<const T*>(p) + i);
}

// A state's noise level as the state's own dtype has it: what every back end compares d with.
template <class T>
double rounded(const level& v, int64_t b, int64_t g) {
  return double(T(at(v, 0, b, g)));
}

// One bit per symbol of a run, four bits of zeros before the first and after the last.
struct waiting_bits {
  uint64_t words[symbol_run / 64 + 3];
  int64_t count;
  void clear() { *this = {}; }
  void set(int64_t i, uint32_t bits) {  // bits of symbols i .. i+16, i a multiple of the pack width
    count += __builtin_popcount(bits);
    const int64_t at = i + 4;
    words[at / 64] |= uint64_t(bits) << at % 64;
    if (at % 64 > 32) words[at / 64 + 1] |= uint64_t(bits) >> (64 - at % 64);
  }
  uint64_t from(int64_t first) const {  // 64 symbols from `first` >= -3 on
    const int64_t at = first + 4;
    return at % 64 ? words[at / 64] >> at % 64 | words[at / 64 + 1] << (64 - at % 64) : words[at / 64];
  }
  uint32_t from(int64_t first, int n) const { return uint32_t(from(first)) & low_bits(n); }  // n <= 16 of them
  uint64_t quads(int64_t first) const {  // bit 4k: one of the symbols first + 4k .. first + 4k + 4 waits, k < 16
    uint64_t w = from(first);
    w |= w >> 1;
    return (w | w >> 2) & 0x1111111111111111ull;
  }
};

template <class T>
struct run_weights {
  alignas(64) T keep[symbol_run + 64], add[symbol_run + 64];
  waiting_bits waiting;
};

// Normals of reals first .. first+n of an item where `waiting` says so; returns a pointer to that of `first`. fetch(i)
// is asked to bring reals i .. i+64 of the run nearer while normals are computed.
template <class T, class Fetch>
const T* draw_waiting(draw_buffer<T>& buffer, const philox_key& key, int64_t item, int64_t first, int64_t n,
                      const waiting_bits& waiting, const Fetch& fetch) {
  const int64_t skip = first % 4, quads = (skip + n + 3) / 4;
  uint64_t list[symbol_run / 4 + 1 + counter_group<T>];
  int64_t count = 0, next = 0;
  for (int64_t q = 0; q < quads; q += 16) count += __builtin_popcountll(waiting.quads(4 * q - skip));
  const bool dense = count * 4 >= quads * 3;  // picking costs as much as a quarter of the draws
  if (dense) count = quads;
  const int64_t groups = (count + counter_group<T> - 1) / counter_group<T>, share = (n / 64 + groups) / (groups + 1);
  const auto between = [&](int64_t) SF_LAMBDA {
    for (int64_t i = 0; i < share && next < n; ++i, next += 64) fetch(next);
  };
  if (dense) {
    buffer.fill(key, uint64_t(item), 0, first - skip, skip + n, 1, between);
  } else {
    int64_t listed = 0;
    for (int64_t q = 0; q < quads; q += 16)
      for (uint64_t w = waiting.quads(4 * q - skip); w; w &= w - 1)
        list[listed++] = uint64_t(q + __builtin_ctzll(w) / 4);
    for (int i = 0; i < counter_group<T>; ++i) list[count + i] = 0;
    normals_of(counter_of(key, uint64_t(item)), uint64_t(first) / 4, list, count, T(1), buffer.data, between);
  }
  return buffer.data + skip;
}

// Runs of symbols: body(b, g, first symbol, symbols). Symbols are reals when d has one entry per real.
template <class Body>
void for_each_run(const waterfill_args& a, const Body& body) {
  const int64_t symbols = a.halves ? a.n / 2 : a.n, runs = (symbols + symbol_run - 1) / symbol_run;
  const int64_t per_run = (symbols < symbol_run ? symbols : symbol_run) * (a.halves ? 2 : 1);
  parallel_for(a.pool, a.b * a.g * runs, 16 * draw_chunk / (per_run + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      const int64_t row = j / runs, first = j % runs * symbol_run;
      body(row / a.g, row % a.g, first, symbols - first < symbol_run ? symbols - first : symbol_run);
    }
  });
}

// Where the reals of a half of a run lie: in the whole array, and in their item (the index that Philox counts).
struct half_run {
  int64_t at, in_item;
  half_run(const waterfill_args& a, int64_t b, int64_t g, int64_t first, int half)
      : at((b * a.g + g) * a.n + half * (a.n / 2) + first), in_item(g * a.n + half * (a.n / 2) + first) {}
};

// The pack of d at symbol i of a row; one level for the whole row where the stride is 0.
template <class T>
SF_HD native<T> level_pack(const waterfill_args& a, const T* d, int64_t i, int m) {
  return a.d_symbol ? get(d + i, m) : native<T>(*d);
}

template <class T>
const T* row_levels(const waterfill_args& a, int64_t b, int64_t g) {
  return static_cast<const T*>(a.d) + (b * a.g + g) * a.d_row;
}

// Zero in lanes whose d lies in [0, 1]; else not, NaN included.
template <class T>
SF_HD native<T> outside_unit(native<T> d, int m) {
  using P = native<T>;
  const P zero(T(0)), one(T(1));
  return first_lanes<T>(select(zero > d, one, zero) + select(d > one, one, zero) + (d - d), m);
}

}  // namespace SF_NS
}  // namespace sf
