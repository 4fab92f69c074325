// Runs the bodies of cir_to_ofdm on the host against sums in extended precision. Prints worst error / bound per body.
//
// Bound: a sum of P complex products, (2P + 4) u sum |g|; a phase is off by a few roundings of the polynomials (8 u),
// and in double also by the rounding of f tau, u 2 pi |f tau|.
#include <cmath>
#include <cstdlib>

#include "../cuda/plan_paths.hpp"
#include "checks.hpp"

namespace {

using namespace sf;
using namespace sf::cuda;

struct sizes {
  int64_t groups, rows, p, f;
  int layout;  // 0: [groups, rows, f]; 1: [f, groups, rows]; 2: gains [p, ...] and every second delay
  double turns;
};

template <class T>
void check(const sizes& z, unsigned seed) {
  std::mt19937 random(seed);
  const int64_t rows = z.groups * z.rows;
  buffer<T> gains(2 * rows * z.p, 0, &random), delays(2 * z.groups * z.p, 0, &random);
  buffer<double> grid(z.f, 0, &random);
  for (int64_t i = 0; i < delays.n; ++i) delays.p[i] = T(std::abs(delays.p[i]) * 1e-6);
  for (int64_t i = 0; i < z.f; ++i) grid.p[i] = (double(i) - double(z.f) / 2) * z.turns * 1e6 / double(z.f) + 0.1;
  std::vector<int64_t> gain_at, delay_at, out_at;
  for (int64_t r = 0; r < rows; ++r)
    gain_at.push_back(z.layout == 2 ? r : r * z.p), out_at.push_back(z.layout == 1 ? r : r * z.f);
  for (int64_t g = 0; g < z.groups; ++g) delay_at.push_back(g * z.p * (z.layout == 2 ? 2 : 1));
  cir_args a{};
  a.is_double = sizeof(T) == 8, a.rows = rows, a.group = z.rows, a.p = z.p, a.f = z.f;
  a.gains = gains.p, a.delays = delays.p, a.frequencies = grid.p;
  a.gain_at = gain_at.data(), a.delay_at = delay_at.data(), a.out_at = out_at.data();
  a.gain_p = z.layout == 2 ? rows : 1, a.delay_p = z.layout == 2 ? 2 : 1, a.out_f = z.layout == 1 ? rows : 1;
  std::vector<std::string> bodies;
  buffer<T> out(2 * rows * z.f, 0, nullptr);
  a.out = out.p;
  plan_paths(a, host_launcher{thread_order::forward, &bodies});
  bounded e;
  const double u = std::numeric_limits<T>::epsilon() / 2.0;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t f = 0; f < z.f; ++f) {
      std::complex<long double> want = 0;
      double bound = 0;
      for (int64_t p = 0; p < z.p; ++p) {
        const cplx g = gains.at(gain_at[size_t(r)] + p * a.gain_p);
        const long double turns = (long double)(grid.p[f]) * delays.p[delay_at[size_t(r / z.rows)] + p * a.delay_p];
        want += std::complex<long double>(g) *
                std::polar(1.0L, -6.283185307179586476925286766559L * (turns - std::rint(turns)));
        bound += std::abs(g) * u * (2 * double(z.p) + 12 + (a.is_double ? 6.3 * std::abs(double(turns)) : 0));
      }
      e.add(out.at(out_at[size_t(r)] + f * a.out_f), cplx(want), bound);
    }
  bounded::keep_worst(worst[bodies.front()], e.error);
  bool good = e.error <= 1;
  for (thread_order order : {thread_order::backward, thread_order::shuffled}) {
    buffer<T> again(2 * rows * z.f, 0, nullptr);
    a.out = again.p;
    plan_paths(a, host_launcher{order, &bodies});
    good = good && same_bits(out, again);
  }
  if (good) return;
  std::printf("FAIL: groups rows P F %ld %ld %ld %ld layout %d\n", long(z.groups), long(z.rows), long(z.p), long(z.f),
              z.layout);
  ++failures;
}

}  // namespace

int main(int argc, char** argv) {
  unsigned seed = argc > 1 ? unsigned(std::atoi(argv[1])) : 1;
  int count = 0;
  for (int64_t rows : {1, 2, 3, 4, 5, 8, 19})
    for (int64_t f : {1, 32, 50, 128, 300})
      for (int layout : {0, 1, 2}) {
        const sizes z{1 + (rows + f) % 9, rows, layout == 1 ? 23 : 70 % (rows + 3) + 1, f, layout, f == 50 ? 1e4 : 3.0};
        check<float>(z, seed), check<double>(z, seed++), ++count;
      }
  check<float>({1, 1, 65, 7, 0, 1e7}, seed), check<double>({3, 4, 100, 130, 0, 30.0}, seed);
  std::printf("%d shapes, 2 dtypes, 3 thread orders: %d failures\n", count + 1, failures);
  return report();
}
