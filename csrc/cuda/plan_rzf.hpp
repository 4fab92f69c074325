// Which body serves a channel of rzf_precode, its vjp and lmmse_equalise, and on which grid; and the scratch memory
// that the caller has to bring. Pure host code over sizes and alignment, like plan.hpp, walked by the tests.
#pragma once
#include "equalise.cuh"
#include "plan.hpp"
#include "power.cuh"
#include "rzf_lane_ops.cuh"
#include "rzf_team_ops.cuh"

namespace sf::cuda {

enum class rzf_op { precode, vjp, equalise };

constexpr int32_t most_lane_rows = 4, most_lane_columns = 16;  // a thread's matrix
constexpr int64_t most_workspace_ctas = 512, most_dots = 256;

inline int64_t narrow_side(const rzf_args& a) { return a.m_form ? a.m : a.k; }
inline int64_t wide_side(const rzf_args& a) { return a.m_form ? a.k : a.m; }
inline bool in_lanes(const rzf_args& a) {
  return narrow_side(a) <= most_lane_rows && wide_side(a) <= most_lane_columns;
}
inline int32_t round_up(int64_t n, int64_t to) { return int32_t((n + to - 1) / to * to); }

inline void check_rzf(const rzf_args& a, const char* op) {
  const auto refuse = [&](const char* why) { throw std::runtime_error(std::string(op) + ": " + why); };
  for (int64_t n : {a.k, a.m, a.t, a.k * a.m, a.k * a.t, a.m * a.t})
    if (n <= 0 || n >= 1 << 30) refuse("a channel or its right-hand sides are empty or have more than 2^30 entries");
  if (a.n <= 0 || a.items <= 0 || a.n % a.items || a.alpha_run <= 0) refuse("bad batch");
  for (const void* p : {a.h, a.s, a.x, a.g, (const void*)a.out_x, (const void*)a.dh, (const void*)a.ds})
    if (reinterpret_cast<uintptr_t>(p) % (a.is_double ? 16 : 8)) refuse("data is not aligned to its complex entries");
}

// No group spans two items; without a power normalisation there is one item and the batch does not count.
inline int32_t within_item(const rzf_args& a, int32_t group) {
  return a.scale > 0 && a.n / a.items < group ? int32_t(a.n / a.items) : group;
}

// Segments of an item in the dot product of the backward pass: about 4096 entries, at most 256 of them.
inline int64_t dot_segment(const rzf_args& a) {
  const int64_t entries = a.n / a.items * a.m * a.t, wanted = ceil_div64(entries, 4096);
  return round_up(ceil_div64(entries, wanted < most_dots ? wanted : most_dots), 2);
}
inline int32_t dot_count(const rzf_args& a) { return int32_t(ceil_div64(a.n / a.items * a.m * a.t, dot_segment(a))); }

// ---- a thread per matrix ----
inline block_copy copy_of(int64_t entries, const rzf_args& a, int32_t chunk, uintptr_t addresses) {
  const bool aligned = !a.is_double && addresses % 16 == 0;
  if (a.rows || chunk == a.t) {
    const bool pairs = aligned && (a.rows && chunk < a.t ? entries % 2 == 0 : entries * a.t % 2 == 0);
    return {entries * a.t, 0, 1, int32_t(chunk * entries), int32_t(entries), pairs};
  }
  return {entries * a.t, a.t, int32_t(entries), chunk, 1, aligned && a.t % 2 == 0 && chunk % 2 == 0};
}
inline uintptr_t bits(const void* p) { return reinterpret_cast<uintptr_t>(p); }

template <class T>
lane_work<T> lanes_for(const rzf_args& a, rzf_op op, int32_t& group) {
  const int32_t chunk = a.t < 16 ? int32_t(a.t) : 16, lanes = ceil_div(chunk, ceil_div(chunk, 8));
  const int32_t piece = sizeof(T) == 4 ? 2 : 1;
  const auto slot = [&](int64_t n) { return round_up(n, piece); };
  const int32_t h = slot(a.k * a.m), k = slot(a.k * chunk), m = slot(a.m * chunk), ds = op == rzf_op::vjp ? k : 0;
  const lane_slots at{0, h, h + k, h + k + ds, h + k + ds + m, 0};
  const int32_t end = at.g + (op == rzf_op::vjp ? m : op == rzf_op::equalise ? slot((a.m + 1) / 2) : 0);
  const bool pairs = !a.is_double && bits(a.h) % 16 == 0 && bits(a.dh) % 16 == 0 && a.k * a.m % 2 == 0;
  lane_work<T> w{lanes,
                 chunk,
                 0,
                 at,
                 {a.h_b, 0, 1, int32_t(a.k * a.m), int32_t(a.k * a.m), pairs},
                 copy_of(a.k, a, chunk, bits(a.s) | bits(a.ds)),
                 copy_of(a.m, a, chunk, bits(a.x) | bits(a.g) | bits(a.out_x))};
  w.at.pitch = odd_row(end, piece);
  for (group = within_item(a, 128 / lanes); group > 1; --group)
    if (w.bytes(group * lanes) <= max_shared) break;
  w.threads = group * lanes;
  return w;
}

// Square: 4x4 K-form channels get a body of their own (an equaliser takes square channels in the M-form).
template <bool Square, template <class, int, int> class Body, class T, class Run, class... Rest>
void lanes_on(const rzf_args& a, const channels<T>& v, const lane_work<T>& w, const Run& run, Rest... rest) {
  const launch_shape g{v.units, w.lanes, v.group, w.bytes(w.threads)};
  const int64_t n = narrow_side(a);
  if (n == 1) return run_body_on(run, Body<T, 1, 0>{v, w, rest...}, g);
  if (n == 2) return run_body_on(run, Body<T, 2, 0>{v, w, rest...}, g);
  if (n == 3) return run_body_on(run, Body<T, 3, 0>{v, w, rest...}, g);
  if constexpr (Square && sizeof(T) == 4)
    if (!a.m_form && a.m == 4) return run_body_on(run, Body<T, 4, 4>{v, w, rest...}, g);
  run_body_on(run, Body<T, 4, 0>{v, w, rest...}, g);
}

// ---- a team of threads per matrix ----
struct team_plan {
  int32_t lanes, group;
  team_layout lay;
  int64_t workspace_ctas;  // 0: shared memory
  int32_t shared(int32_t teams) const {
    return team_work<float, false>::front(teams * lanes) + teams * int32_t(lay.bytes);
  }
};

inline team_plan teams_for(const rzf_args& a, rzf_op op) {
  const int64_t n = narrow_side(a), columns = op == rzf_op::equalise ? a.m + 1 : a.t;
  const int32_t chunk = columns < most_team_columns ? int32_t(columns) : most_team_columns;
  team_plan p{128, 1, {a, chunk, op == rzf_op::vjp ? 2 * chunk : chunk, op != rzf_op::precode}, 0};
  for (int32_t lanes : {32, 16, 8, 4})
    if (n <= lanes) p.lanes = lanes;
  if (n <= most_team_rows && p.lay.bytes < max_shared && p.shared(1) <= max_shared) {
    for (p.group = within_item(a, 64 / p.lanes); p.shared(p.group) > max_shared;) --p.group;
    return p;
  }
  p.lanes = 128, p.workspace_ctas = a.n < most_workspace_ctas ? a.n : most_workspace_ctas;
  return p;
}

template <template <class, bool> class Body, bool Large, class T, class Run>
void teams_on(const rzf_args& a, const channels<T>& v, const team_plan& p, void* workspace, const Run& run) {
  const int64_t ctas = Large ? p.workspace_ctas : v.units;
  const int32_t threads = p.group * p.lanes;
  run_body_on(run,
              Body<T, Large>{{v, p.lay, p.lanes, threads, ctas, static_cast<unsigned char*>(workspace), divisor(a.m)}},
              {ctas, p.lanes, p.group, Large ? team_work<T, true>::front(threads) : p.shared(p.group)});
}

// ---- scratch: partial sums, then workspace ----
struct scratch_sizes {
  int64_t partials, workspace;  // bytes; the workspace starts at a multiple of 256
};

template <class T>
scratch_sizes scratch_of(const rzf_args& a, rzf_op op) {
  int32_t group;
  int64_t workspace = 0;
  if (in_lanes(a)) {
    lanes_for<T>(a, op, group);
  } else {
    const team_plan p = teams_for(a, op);
    group = p.group, workspace = p.workspace_ctas * p.lay.bytes;
  }
  const int64_t sums = a.scale == 0 ? 0 : op == rzf_op::vjp ? dot_count(a) : ceil_div64(a.n / a.items, group);
  return {(sums * a.items * 8 + 255) / 256 * 256, workspace};
}
inline int64_t rzf_scratch(const rzf_args& a, rzf_op op) {
  const scratch_sizes s = a.is_double ? scratch_of<double>(a, op) : scratch_of<float>(a, op);
  return s.partials + s.workspace;
}

template <bool Square, template <class, int, int> class Lanes, template <class, bool> class Team, class T, class Run,
          class... Rest>
channels<T> solve_on(const rzf_args& a, rzf_op op, void* scratch, const Run& run, Rest... rest) {
  double* partial = static_cast<double*>(scratch);
  const int32_t dots = op == rzf_op::vjp && a.scale > 0 ? dot_count(a) : 0;
  if (in_lanes(a)) {
    int32_t group;
    const lane_work<T> w = lanes_for<T>(a, op, group);
    const channels<T> v(a, group, partial, dots);
    lanes_on<Square, Lanes>(a, v, w, run, rest...);
    return v;
  }
  const team_plan p = teams_for(a, op);
  const channels<T> v(a, p.group, partial, dots);
  unsigned char* memory = static_cast<unsigned char*>(scratch) + scratch_of<T>(a, op).partials;
  p.workspace_ctas ? teams_on<Team, true>(a, v, p, memory, run) : teams_on<Team, false>(a, v, p, nullptr, run);
  return v;
}

// ---- the three operations ----
template <class T, class Run>
void precode_on(const rzf_args& a, void* scratch, const Run& run) {
  const channels<T> v = solve_on<true, precode_lanes, precode_team, T>(a, rzf_op::precode, scratch, run);
  if (a.scale == 0) return;
  const int64_t entries = v.per_item * a.m * a.t;
  const bool pairs = !a.is_double && entries % 2 == 0 && bits(a.out_x) % 16 == 0;
  const item_segments by(entries, a.is_double ? 1024 : 2048, pairs);
  run_body_on(run, scale_power<T>{by, v.out_x, v.partial, v.norm, v.chunks, a.scale},
              {a.items * by.segments, 256, 1, (256 + sum_lanes) * 8});
}

template <class T, class Run>
void vjp_on(const rzf_args& a, void* scratch, const Run& run) {
  if (a.scale > 0) {
    using entry = wide<T, 1>;
    const int64_t entries = a.n / a.items * a.m * a.t;
    const bool pairs = !a.is_double && entries % 2 == 0 && (bits(a.x) | bits(a.g)) % 16 == 0;
    const item_segments by(entries, dot_segment(a), pairs);
    run_body_on(run,
                power_dots<T>{by, static_cast<const entry*>(a.x), static_cast<const entry*>(a.g),
                              static_cast<double*>(scratch)},
                {a.items * by.segments, 256, 1, (256 + sum_lanes) * 8});
  }
  solve_on<true, vjp_lanes, vjp_team, T>(a, rzf_op::vjp, scratch, run, divisor(a.m));
}

template <class Run>
void plan_precode(const rzf_args& a, void* scratch, const Run& run) {
  check_rzf(a, "rzf_precode");
  a.is_double ? precode_on<double>(a, scratch, run) : precode_on<float>(a, scratch, run);
}
template <class Run>
void plan_precode_vjp(const rzf_args& a, void* scratch, const Run& run) {
  check_rzf(a, "rzf_precode_vjp");
  a.is_double ? vjp_on<double>(a, scratch, run) : vjp_on<float>(a, scratch, run);
}
template <class Run>
void plan_equalise(const rzf_args& a, void* scratch, const Run& run) {
  check_rzf(a, "lmmse_equalise");
  if (a.is_double)
    solve_on<false, equalise_lanes, equalise_team, double>(a, rzf_op::equalise, scratch, run, divisor(a.m));
  else
    solve_on<false, equalise_lanes, equalise_team, float>(a, rzf_op::equalise, scratch, run, divisor(a.m));
}

}  // namespace sf::cuda
