// One matrix of at most 4 narrow rows per thread, its factor in registers. A channel with several right-hand sides has
// `lanes` threads, each with its own factor (cheaper than handing one over) and every lanes-th right-hand side.
// Channels and right-hand sides pass through shared memory, so that global memory sees whole lines; a channel's slots
// there are an odd number of 16-byte pieces apart.
#pragma once
#include <type_traits>

#include "channels.cuh"

namespace sf::cuda {

// One channel's part of an array in global memory: `segments` runs of `run` entries, `step` of them a right-hand side.
struct block_copy {
  int64_t channel, segment;  // strides
  int32_t segments, run, step, pieces;
  bool pairs;  // two complex64 entries at a time
  divisor by_pieces, by_segments;

  block_copy(int64_t channel_, int64_t segment_, int32_t segments_, int32_t run_, int32_t step_, bool pairs_)
      : channel(channel_),
        segment(segment_),
        segments(segments_),
        run(run_),
        step(step_),
        pieces(pairs_ ? run_ / 2 : run_),
        pairs(pairs_),
        by_pieces(pieces),
        by_segments(segments_) {}

  // f.template operator()<N>(channel, offset in its slot, offset in global memory) for `tc` right-hand sides of `count`
  // channels, dealt out to the threads piece by piece
  template <class F>
  SF_HD void each(int32_t id, int32_t threads, int32_t count, int32_t tc, const F& f) const {
    pairs ? pieces_of<2>(id, threads, count, tc, f) : pieces_of<1>(id, threads, count, tc, f);
  }
  template <int N, class F>
  SF_HD void pieces_of(int32_t id, int32_t threads, int32_t count, int32_t tc, const F& f) const {
    SF_NO_UNROLL
    for (int32_t e = id; e < count * segments * pieces; e += threads) {
      const int32_t q = by_pieces(e), o = (e - q * pieces) * N;
      if (o >= tc * step) continue;
      const int32_t g = by_segments(q), s = q - g * segments;
      f.template operator()<N>(g, s * run + o, g * channel + s * segment + o);
    }
  }
};

// CTAs of 128 threads that a multiprocessor must hold: at most 80 or 128 registers for the smallest matrices, 128 or 168
// for the others.
template <class T, int N>
constexpr int lane_ctas = sizeof(T) == 4 ? (N <= 2 ? 6 : 4) : (N <= 2 ? 4 : 3);

// Offsets of a channel's arrays in its slot, and the distance of slots, in entries.
struct lane_slots {
  int32_t h, s, ds, x, g, pitch;
};

template <class T>
struct lane_work {
  using entry = wide<T, 1>;
  int32_t lanes, chunk, threads;  // threads of a channel and of the CTA; right-hand sides staged at a time
  lane_slots at;
  block_copy of_h, of_k, of_m;  // h; arrays with K and with M entries a right-hand side

  // Shared memory: a flag a thread (a channel's first comes to say that its result does not count), numbers to sum, and
  // the slots.
  struct memory {
    int32_t* flag;
    double* part;
    entry* slots;
  };
  SF_HD static int32_t flag_bytes(int32_t n) { return (n * 4 + 15) / 16 * 16; }
  SF_HD static int32_t part_bytes(int32_t n) { return ((n + sum_lanes) * 8 + 15) / 16 * 16; }
  SF_HD memory in(unsigned char* p) const {
    unsigned char* part = p + flag_bytes(threads);
    return {reinterpret_cast<int32_t*>(p), reinterpret_cast<double*>(part),
            reinterpret_cast<entry*>(part + part_bytes(threads))};
  }
  int32_t bytes(int32_t n) const {  // for n threads
    return flag_bytes(n) + part_bytes(n) + n / lanes * at.pitch * int32_t(sizeof(entry));
  }

  struct loader {
    entry* to;
    const entry* from;
    int32_t pitch;
    template <int N>
    SF_HD void operator()(int32_t g, int32_t slot, int64_t global) const {
      copy_async<N>(to + g * pitch + slot, from + global);
    }
  };
  SF_HD void conjugate(thread_place w, entry* slots, int32_t entries) const {
    entry* slot = slots + w.g * at.pitch + at.h;
    for (int32_t e = w.p; e < entries; e += lanes) slot[e].c[0].im = -slot[e].c[0].im;
  }

  // first: of the unit's first channel in global memory; at: in a channel's slot
  SF_HD void load(const block_copy& c, int32_t id, int32_t count, int32_t tc, const entry* first, entry* slots,
                  int32_t slot) const {
    c.each(id, threads, count, tc, loader{slots + slot, first, at.pitch});
  }

  struct storer {
    const entry* from;
    entry* to;
    const int32_t* flag;
    int32_t pitch, lanes;
    template <int N>
    SF_HD void operator()(int32_t g, int32_t slot, int64_t global) const {
      const wide<T, N> v = sf::cuda::load<N>(from + g * pitch + slot);
      store<N>(to + global, flag[g * lanes] ? wide<T, N>{} : v);
    }
  };
  SF_HD void save(const block_copy& c, int32_t id, int32_t count, int32_t tc, entry* first, const memory& m,
                  int32_t slot) const {
    c.each(id, threads, count, tc, storer{m.slots + slot, first, m.flag, at.pitch, lanes});
  }
};

// V of a channel in its slot (conjugated there in the M-form). LEN > 0: both sizes are compiled, K-form only.
template <class T, int N, int LEN>
struct lane_rows {
  const wide<T, 1>* slot;
  int32_t row, col;
  SF_HD lane_rows(const wide<T, 1>* p, const channels<T>& v)
      : slot(p), row(LEN > 0 ? LEN : v.m_form ? 1 : v.m), col(LEN > 0 ? 1 : v.m_form ? v.m : 1) {}
  SF_HD int32_t at(int i, int m) const { return i * row + m * col; }
  SF_HD cx<T> get(int i, int m) const { return number<T>(slot[at(i, m)]); }
};

// What the algebra reads: the same rows in arithmetic type Q ...
template <class Q, class Rows>
struct rows_in {
  const Rows& rows;
  SF_HD cx<Q> operator()(int i, int m) const {
    const auto z = rows.get(i, m);
    return {Q(z.re), Q(z.im)};
  }
};
// ... or brought into registers.
template <class T, int N, int LEN>
struct held_rows {
  cx<T> e[N * LEN];
  SF_HD explicit held_rows(const lane_rows<T, N, LEN>& rows) {
    constexpr int piece = sizeof(T) == 4 && N * LEN % 2 == 0 ? 2 : 1;
    SF_UNROLL
    for (int i = 0; i < N * LEN; i += piece) {
      const wide<T, piece> w = load<piece>(rows.slot + i);
      SF_UNROLL
      for (int j = 0; j < piece; ++j) e[i + j] = {w.c[j].re, w.c[j].im};
    }
  }
  SF_HD cx<T> operator()(int i, int m) const { return e[i * LEN + m]; }
};

template <class Q, int N>
struct lane_factor {
  cx<Q> l[N > 1 ? N * (N - 1) / 2 : 1];
  Q inv[N], from[N];
};

template <class Q, int N, bool Pivoted, class V, class Job>
SF_HD void factor_and(const V& v, int len, const Q* diag, Q bound, const Job& job) {
  lane_factor<Q, N> f;
  Q bad(0);
  if constexpr (Pivoted) {
    cx<Q> a[N * N];
    factor_pivoted<N>(v, N, len, diag, bound, a, f.from, f.l, f.inv, bad);
    job(v, f.l, f.inv, static_cast<const Q*>(f.from), bound == bound ? int32_t(bad) : -1);
  } else {
    factor<N>(v, N, len, diag, bound, f.l, f.inv, bad);
    job(v, f.l, f.inv, static_cast<const Q*>(nullptr), bound == bound ? int32_t(bad) : -1);
  }
}

// job(v, l, inv, from, failing pivot or -1) in the arithmetic that the regulariser asks for: the type of the data; double below 1e-3 of
// the mean diagonal; with diagonal pivoting within rounding of zero, where singular channels must be found.
template <bool AlwaysDouble, class T, int N, int LEN, class Job>
SF_HD void with_factor(const lane_rows<T, N, LEN>& rows, int len, T reg, const Job& job) {
  using held = std::conditional_t<(LEN > 0), held_rows<T, N, LEN>, rows_in<T, lane_rows<T, N, 0>>>;
  if constexpr (sizeof(T) == 4 && !AlwaysDouble) {
    const held v{rows};
    T diag[N], mean;
    const T top = diagonal<N>(v, N, len, reg, diag, mean);
    if (!(T(1e-3) * mean > reg)) return factor_and<T, N, false>(v, len, diag, top - top, job);
  }
  const rows_in<double, lane_rows<T, N, LEN>> v{rows};
  double diag[N], mean;
  const double top = diagonal<N>(v, N, len, double(reg), diag, mean), bound = top * singular_part(N, sizeof(T) == 4);
  if (double(reg) > bound) return factor_and<double, N, false>(v, len, diag, top - top, job);
  factor_and<double, N, true>(v, len, diag, bound, job);
}

}  // namespace sf::cuda
