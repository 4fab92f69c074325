// Which body runs, with which template arguments and on which grid. Pure host code over sizes, strides and alignment,
// so the tests walk the very table that the launches use. The batch never takes part: a split batch gives the same
// bits.
#pragma once
#include <stdexcept>
#include <string>

#include "energy_sum.cuh"
#include "score_columns.cuh"
#include "staged.cuh"
#include "tiles.cuh"

namespace sf::cuda {

constexpr int64_t max_grid = 0x7fffffff;     // CTAs along x; y and z (65535) are not used
constexpr int32_t max_shared = 48 * 1024;    // no opt-in needed
constexpr int32_t most_rows_for_tiles = 16;  // adjoint: longer sums over antennas are split over threads (staged)

inline int64_t ceil_div64(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks of `per_block` threads side by side in at most `most` threads, wasting as few lanes of the last warp as
// possible.
inline int32_t group_size(int32_t per_block, int32_t most) {
  int32_t best = 1;
  double best_fill = 0;
  for (int32_t g = most / per_block; g >= 1; --g) {
    const double fill = double(g * per_block) / (32 * ceil_div(g * per_block, 32));
    if (fill > best_fill) best = g, best_fill = fill;
  }
  return best;
}

inline split split_tiles(int64_t tiles, int32_t most) {
  const int64_t segments = ceil_div64(tiles, most);
  const int32_t per_block = int32_t(ceil_div64(tiles, segments));
  return {segments == 1 ? group_size(per_block, most) : 1, per_block, int32_t(segments)};
}

inline launch_shape shape(const split& s, int64_t blocks, int32_t shared_bytes) {
  return {ceil_div64(blocks, s.group) * s.segments, s.per_block, s.group, shared_bytes};
}

// One block, or chunks of it, in shared memory.
template <class Body>
chunks fit_chunks(const block_args& a, int32_t ct) {
  chunks c{int32_t(a.nr), int32_t(a.u * a.nt), int32_t(a.t)};
  const auto fits = [&] {
    const int64_t most_entries = (int64_t(c.rows) + c.slots) * (int64_t(c.streams) + c.rows + 8);  // so `bytes` fits
    return most_entries < (1 << 24) && typename Body::memory(nullptr, c, Body::max_threads, 0).bytes <= max_shared;
  };
  if (fits()) return c;
  if (c.slots > 32) c.slots = 32;
  if (c.slots % ct) ++c.slots;
  if (!fits() && c.streams > 32) c.streams = 32;
  for (int32_t n = 2; !fits(); ++n) c.rows = ceil_div(int32_t(a.nr), n);  // chunks of equal height
  return c;
}

inline int32_t staged_threads(const chunks& c, int32_t ct, bool score) {
  const int64_t pairs = ceil_div(c.streams, 2), pieces = c.slots / ct;
  const int64_t first = ceil_div(c.rows, 4) * pieces,
                second = pairs * pieces + (score ? ceil_div(c.rows, 2) * pairs : 0);
  return split_tiles(first > second ? first : second, 256).per_block;
}

inline void check_sizes(const block_args& a, const char* op) {
  const auto refuse = [&](const char* why) { throw std::runtime_error(std::string(op) + ": " + why); };
  for (int64_t n : {a.u * a.nt, a.nr * a.nt, a.nr * a.t, a.nt * a.t, a.k})
    if (n <= 0 || n >= 1 << 30) refuse("a block is empty or has more than 2^30 entries");
  for (const void* p : {a.y, a.h, a.x, a.probe, (const void*)a.out_y, (const void*)a.out_h, (const void*)a.out_x})
    if (reinterpret_cast<uintptr_t>(p) % (a.is_double ? 16 : 8)) refuse("data is not aligned to its complex entries");
}

// Two complex64 columns in one 16-byte access: T is even, and so is every stride and 16-byte address.
inline bool pairs_of_columns(const block_args& a) {
  uintptr_t bits = 0;
  for (const void* p : {a.y, a.x, a.probe, (const void*)a.out_y, (const void*)a.out_x})
    bits |= reinterpret_cast<uintptr_t>(p);
  return !a.is_double && a.t % 2 == 0 && bits % 16 == 0 && ((a.y_b | a.x_b | a.probe_b) & 1) == 0;
}

template <class Body, class Run>
void run_body_on(const Run& run, const Body& body, const launch_shape& g) {
  if (g.ctas > max_grid) throw std::runtime_error("more than 2^31 thread blocks");
  if (g.ctas) run(body, g);
}

// ---- blockdiag_apply ----
template <class T, int M, int CT, class Run>
void apply_on(const block_args& a, const Run& run) {
  const int32_t rows = ceil_div(int32_t(a.nr), 4), cols = int32_t(a.t / CT);
  const split s = split_tiles(int64_t(rows) * cols, 128);
  run_body_on(run, apply_tiles<T, M, CT>{blocks<T>(a), tile_grid(s, rows, cols)}, shape(s, a.b * a.k, 0));
}

template <class T, int CT, class Run>
void apply_of_streams(const block_args& a, const Run& run) {
  switch (a.u * a.nt) {
    case 1:
      return apply_on<T, 1, CT>(a, run);
    case 2:
      return apply_on<T, 2, CT>(a, run);
    case 4:
      return apply_on<T, 4, CT>(a, run);
    case 8:
      return apply_on<T, 8, CT>(a, run);
    default:
      return apply_on<T, 0, CT>(a, run);
  }
}

template <class Run>
void plan_apply(const block_args& a, const Run& run) {
  check_sizes(a, "blockdiag_apply");
  if (a.is_double) return apply_of_streams<double, 1>(a, run);
  pairs_of_columns(a) ? apply_of_streams<float, 2>(a, run) : apply_of_streams<float, 1>(a, run);
}

// ---- staged adjoint and score ----
template <class T, int CT, bool Score, class Run>
void staged_on(const block_args& a, const Run& run) {
  using Body = staged<T, CT, Score>;
  const chunks c = fit_chunks<Body>(a, CT);
  split s{1, staged_threads(c, CT, Score), 1};
  const int32_t bytes = typename Body::memory(nullptr, c, s.per_block, 0).bytes;
  if (s.per_block <= 64) {
    s.group = group_size(s.per_block, 128);
    if (s.group * bytes > max_shared) s.group = max_shared / bytes;
  }
  const Body body{blocks<T>(a), s, c};
  run_body_on(run, body, shape(s, a.b * a.k, body.shared_bytes()));
}

// ---- blockdiag_adjoint ----
template <class T, int MT, int CT, class Run>
void adjoint_on(const block_args& a, const Run& run) {
  const int32_t streams = ceil_div(int32_t(a.u * a.nt), MT), cols = int32_t(a.t / CT);
  if (int64_t(streams) * cols > max_grid)
    throw std::runtime_error("blockdiag_adjoint: a block has more than 2^31 tiles");
  const split s = split_tiles(int64_t(streams) * cols, 128);
  run_body_on(run, adjoint_tiles<T, MT, CT>{blocks<T>(a), tile_grid(s, streams, cols)}, shape(s, a.b * a.k, 0));
}

template <class T, int CT, class Run>
void adjoint_of_streams(const block_args& a, const Run& run) {
  if (a.nr > most_rows_for_tiles) return staged_on<T, CT, false>(a, run);
  switch (a.u * a.nt) {
    case 1:
      return adjoint_on<T, 1, CT>(a, run);
    case 2:
      return adjoint_on<T, 2, CT>(a, run);
    default:
      return adjoint_on<T, 4, CT>(a, run);
  }
}

template <class Run>
void plan_adjoint(const block_args& a, const Run& run) {
  check_sizes(a, "blockdiag_adjoint");
  if (a.is_double) return adjoint_of_streams<double, 1>(a, run);
  pairs_of_columns(a) ? adjoint_of_streams<float, 2>(a, run) : adjoint_of_streams<float, 1>(a, run);
}

// ---- likelihood_score ----
template <class T, int RT, int M, int CT, class Run>
bool columns_on(const block_args& a, const Run& run) {
  if (a.t / CT > 128) return false;
  score_columns<T, RT, M, CT> body{blocks<T>(a), split{1, int32_t(a.t / CT), 1}};
  body.s.group = group_size(body.s.per_block, 128);
  const auto bytes = [&] { return body.shared_bytes(body.s.group * body.s.per_block); };
  while (body.s.group > 1 && bytes() > max_shared) --body.s.group;
  if (bytes() > max_shared) return false;
  run_body_on(run, body, shape(body.s, a.b * a.k, bytes()));
  return true;
}

template <class T, int RT, int CT, class Run>
bool columns_of_streams(const block_args& a, const Run& run) {
  switch (a.u * a.nt) {
    case 1:
      return columns_on<T, RT, 1, CT>(a, run);
    case 2:
      return columns_on<T, RT, 2, CT>(a, run);
    case 4:
      return columns_on<T, RT, 4, CT>(a, run);
    case 8:
      return columns_on<T, RT, 8, CT>(a, run);
    default:
      return false;
  }
}

template <class T, int CT, class Run>
void score_of_rows(const block_args& a, const Run& run) {
  bool done = false;
  if (a.nr <= 4)
    done = columns_of_streams<T, 4, CT>(a, run);
  else if (a.nr <= 8)
    done = columns_of_streams<T, 8, 1>(a, run);
  if (!done) staged_on<T, CT, true>(a, run);
}

template <class Run>
void plan_score(const block_args& a, const Run& run) {
  check_sizes(a, "likelihood_score");
  if (a.is_double) return score_of_rows<double, 1>(a, run);
  pairs_of_columns(a) ? score_of_rows<float, 2>(a, run) : score_of_rows<float, 1>(a, run);
}

template <class T, class Run>
void sum_on(const block_args& a, void* energy, void* probe_x, void* probe_y, const Run& run) {
  const int32_t columns = a.probe ? 2 + int32_t(a.u) : 1;
  int32_t lanes = 1;
  while (lanes < a.k && lanes < 256) lanes *= 2;
  const energy_sum<T> body{a.energies,
                           a.b,
                           a.k,
                           int32_t(a.u),
                           columns,
                           lanes,
                           static_cast<T*>(energy),
                           static_cast<T*>(probe_x),
                           static_cast<T*>(probe_y)};
  run_body_on(run, body, {ceil_div64(a.b * lanes, 256) * columns, lanes, 256 / lanes, 256 * int32_t(sizeof(double))});
}

template <class Run>
void plan_energy_sum(const block_args& a, void* energy, void* probe_x, void* probe_y, const Run& run) {
  a.is_double ? sum_on<double>(a, energy, probe_x, probe_y, run) : sum_on<float>(a, energy, probe_x, probe_y, run);
}

}  // namespace sf::cuda
