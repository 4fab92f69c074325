// mimo_matmul's CUDA bodies on the host (see cuda_bodies.cpp): every combination of adjoints, strides, repeated
// operands and leading dimensions against plain loops. A sum of n complex products errs by at most (2n + 4) u sum
// |a||b|.
#include <cmath>
#include <cstdlib>

#include "../cuda/plan_matmul.hpp"
#include "checks.hpp"

namespace {

using namespace sf;
using namespace sf::cuda;

struct sizes {
  int64_t m, k, n;
  int64_t size[4];  // leading dimensions, 0 past the last
  int adjoint;      // bit 0: a, 1: b
  int repeated;     // bit d: a has stride 0 along dimension d; bit 4 + d: b
  int pad;          // entries between the rows of both operands beyond their columns
};

struct layout {  // of one operand as stored: [leading..., rows, cols + pad]
  int64_t rows, cols, row, entries, step[4];
  layout(const sizes& s, bool is_b)
      : rows(is_b ? (s.adjoint & 2 ? s.n : s.k) : (s.adjoint & 1 ? s.k : s.m)),
        cols(is_b ? (s.adjoint & 2 ? s.k : s.n) : (s.adjoint & 1 ? s.m : s.k)),
        row(cols + s.pad),
        entries(rows * row) {
    for (int d = 3; d >= 0; --d) {
      const bool repeated = s.repeated >> (d + (is_b ? 4 : 0)) & 1;
      step[d] = repeated || s.size[d] == 0 ? 0 : entries;
      if (!repeated && s.size[d]) entries *= s.size[d];
    }
  }
};

template <class T>
void check(const sizes& s, unsigned seed) {
  std::mt19937 random(seed);
  const layout la(s, false), lb(s, true);
  const buffer<T> a(2 * la.entries, 0, &random), b(2 * lb.entries, 0, &random);
  matmul_args g{};
  int64_t items = 1;
  g.is_double = sizeof(T) == 8, g.m = s.m, g.k = s.k, g.n = s.n, g.a = a.p, g.b = b.p;
  g.conj_a = s.adjoint & 1, g.conj_b = s.adjoint >> 1;
  g.a_row = g.conj_a ? 1 : la.row, g.a_col = g.conj_a ? la.row : 1;
  g.b_row = g.conj_b ? 1 : lb.row, g.b_col = g.conj_b ? lb.row : 1;
  for (int d = 0; d < 4 && s.size[d]; ++d) {
    g.size[d] = s.size[d], g.a_step[d] = la.step[d], g.b_step[d] = lb.step[d], g.dims = d + 1;
    items *= s.size[d];
  }
  std::vector<std::string> bodies;
  const auto run = [&](const matmul_args& args, T* out, thread_order order) {
    matmul_args copy = args;
    copy.out = out;
    block_args channels;
    const host_launcher launch{order, &bodies};
    switch (as_channels(copy, channels)) {
      case channel_form::apply:
        return plan_apply(channels, launch);
      case channel_form::adjoint:
        return plan_adjoint(channels, launch);
      case channel_form::none:
        return plan_matmul(copy, launch);
    }
  };
  const auto fail = [&](const char* what) {
    std::printf("FAIL %s: M K N = %ld %ld %ld, adjoint %d repeated %d pad %d\n", what, long(s.m), long(s.k), long(s.n),
                s.adjoint, s.repeated, s.pad);
    ++failures;
  };
  const int64_t mn = s.m * s.n;
  buffer<T> out(2 * items * mn, 0, nullptr);
  run(g, out.p, thread_order::forward);
  bounded error;
  for (int64_t item = 0; item < items; ++item) {
    int64_t at_a = 0, at_b = 0, left = item;
    for (int64_t d = g.dims - 1; d >= 0; --d) {
      at_a += left % s.size[d] * la.step[d], at_b += left % s.size[d] * lb.step[d], left /= s.size[d];
    }
    for (int64_t i = 0; i < s.m; ++i)
      for (int64_t j = 0; j < s.n; ++j) {
        cplx sum = 0;
        double size = 0;
        for (int64_t q = 0; q < s.k; ++q) {
          const cplx x = g.conj_a ? std::conj(a.at(at_a + q * la.row + i)) : a.at(at_a + i * la.row + q);
          const cplx y = g.conj_b ? std::conj(b.at(at_b + j * lb.row + q)) : b.at(at_b + q * lb.row + j);
          sum += x * y, size += std::abs(x) * std::abs(y);
        }
        const double u = std::numeric_limits<T>::epsilon() / 2;
        error.add(out.at(item * mn + i * s.n + j), sum, double(2 * s.k + 4) * u * size);
      }
  }
  bounded::keep_worst(worst[bodies.front()], error.error);
  if (!(error.error <= 1)) fail("product");
  for (thread_order order : {thread_order::backward, thread_order::shuffled}) {
    buffer<T> again(2 * items * mn, 0, nullptr);
    run(g, again.p, order);
    if (!same_bits(out, again)) fail("thread order changes bits");
  }
  if (g.size[0] < 2) return;
  const int64_t inner = items / g.size[0];  // all but the first of the outermost dimension
  matmul_args tail = g;
  tail.size[0] -= 1, tail.a = a.p + 2 * la.step[0], tail.b = b.p + 2 * lb.step[0];
  buffer<T> part(2 * (items - inner) * mn, 0, nullptr);
  run(tail, part.p, thread_order::forward);
  if (!same_bits(out, part, 2 * inner * mn)) fail("splitting the batch changes bits");
}

}  // namespace

int main(int argc, char** argv) {
  unsigned seed = argc > 1 ? unsigned(std::atoi(argv[1])) : 1;
  std::vector<sizes> cases;
  for (int adjoint = 0; adjoint < 4; ++adjoint)
    for (int64_t side : {1, 2, 4, 5, 8, 9, 16}) {
      cases.push_back({side, side == 5 ? 3 : side, side % 3 + 1, {7}, adjoint, 0, 0});
      cases.push_back({side, side, side, {3}, adjoint, int(side) % 3 << (side > 4 ? 0 : 3), int(side) % 2});
      cases.push_back({side, 3, side + 1, {2, 3, 2}, adjoint, side % 2 ? 2 | 5 << 4 : 5 | 2 << 4, 0});
    }
  cases.push_back({40, 3, 50, {2}, 2, 0, 0});         // more tiles than a CTA has threads
  cases.push_back({1, 1, 1, {300}, 3, 0, 0});         // many items a CTA
  cases.push_back({3, 2, 4, {2, 3, 2, 2}, 1, 9, 1});  // four dimensions
  try {
    for (const sizes& s : cases) {
      check<float>(s, seed);
      check<double>(s, seed++);
    }
  } catch (const std::exception& e) {
    std::printf("FAIL %s\n", e.what());
    return 1;
  }
  std::printf("%zu products, 2 dtypes, 3 thread orders: %d failures\n", cases.size(), failures);
  return report();
}
