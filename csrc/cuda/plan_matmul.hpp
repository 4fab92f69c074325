// Which kernel multiplies: contiguous products without or with an adjoint A are one-user channels (plan.hpp), all
// others are matmul_tiles. By sizes and strides alone.
#pragma once
#include "matmul_tiles.cuh"
#include "plan.hpp"

namespace sf::cuda {

// C = A B or A^H B of contiguous matrices at one stride per operand, as Y = H X or X = H^H Y of one user and one block.
enum class channel_form { none, apply, adjoint };

inline channel_form as_channels(const matmul_args& g, block_args& a) {
  a = block_args{};
  if (g.dims != 1 || g.conj_b || g.b_col != 1 || g.b_row != g.n) return channel_form::none;
  const bool forward = !g.conj_a && g.a_col == 1 && g.a_row == g.k;
  if (!forward && !(g.conj_a && g.a_row == 1 && g.a_col == g.m)) return channel_form::none;
  a.is_double = g.is_double, a.b = g.size[0], a.u = a.k = 1, a.t = g.n, a.h = g.a, a.h_b = g.a_step[0];
  a.nr = forward ? g.m : g.k, a.nt = forward ? g.k : g.m;
  if (forward)
    a.x = g.b, a.x_b = g.b_step[0], a.out_y = g.out;
  else
    a.y = g.b, a.y_b = g.b_step[0], a.out_x = g.out;
  return forward ? channel_form::apply : channel_form::adjoint;
}

template <class T, bool Conj, class Run>
void matmul_on(const matmul_args& g, const Run& run) {
  using Body = matmul_tiles<T, Conj>;
  int64_t items = 1;
  for (int64_t d = 0; d < g.dims; ++d) items *= g.size[d];
  const int32_t row_tiles = ceil_div(int32_t(g.m), Body::RT);
  const split s = split_tiles(int64_t(row_tiles) * g.n, Body::max_threads);
  run_body_on(run, Body(g, items, tile_grid(s, row_tiles, int32_t(g.n))), shape(s, items, 0));
}

template <class Run>
void plan_matmul(const matmul_args& g, const Run& run) {
  const auto refuse = [](const char* why) { throw std::runtime_error(std::string("mimo_matmul: ") + why); };
  for (int64_t n : {g.m, g.k, g.n, g.m * g.k, g.k * g.n, g.m * g.n})
    if (n <= 0 || n >= 1 << 30) refuse("a matrix is empty or has more than 2^30 entries");
  for (const void* p : {g.a, g.b, (const void*)g.out})
    if (reinterpret_cast<uintptr_t>(p) % (g.is_double ? 16 : 8)) refuse("data is not aligned to its complex entries");
  const bool conj = g.conj_a != g.conj_b;
  if (g.is_double) return conj ? matmul_on<double, true>(g, run) : matmul_on<double, false>(g, run);
  conj ? matmul_on<float, true>(g, run) : matmul_on<float, false>(g, run);
}

}  // namespace sf::cuda
