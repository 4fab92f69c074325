// rho = softmax(L + psi(gamma) - psi(sum gamma) + eta D), gamma' = gamma0 + rho; a few rows of a few experts, in
// double.
#include "../common/kernels.hpp"
#include "../common/lane.hpp"
#include "parallel.hpp"
#include "scratch.hpp"

namespace sf {
inline namespace SF_NS {

// psi(x), x > 0: the recurrence up to 10, then the asymptotic series (its next term is below 1e-15 there).
inline double digamma(double x) {
  double sum = 0, product = 1;  // of 1/x + 1/(x+1) + ... as one fraction
  for (; x < 10; x += 1) sum = sum * x + product, product *= x;
  const double z = 1 / (x * x);
  const double series =
      z * (1.0 / 12 - z * (1.0 / 120 - z * (1.0 / 252 - z * (1.0 / 240 - z * (1.0 / 132 - z * 691.0 / 32760)))));
  return __builtin_log(x) - 0.5 / x - series - sum / product;
}

template <class T>
bool responsibilities_row(const dirichlet_args& a, int64_t row, double* score) {
  const int64_t first = row * a.e;
  const T *evidence = static_cast<const T*>(a.l) + first, *data = static_cast<const T*>(a.d) + first;
  const T *gamma0 = static_cast<const T*>(a.gamma0) + first, *gamma = static_cast<const T*>(a.gamma) + first;
  T *rho = static_cast<T*>(a.rho) + first, *after = static_cast<T*>(a.after) + first;
  double sum = 0, best = -largest(0.0), total = 0, check = 0;
  bool positive = true;
  for (int64_t e = 0; e < a.e; ++e) sum += double(gamma[e]), positive &= gamma[e] > 0 && gamma0[e] > 0;
  if (!positive || !(sum - sum == 0)) {
    for (int64_t e = 0; e < a.e; ++e) rho[e] = after[e] = T(__builtin_nan(""));
    return false;
  }
  const double common = digamma(sum);
  double weight = 0;
  for (int64_t e = 0; e < a.e; ++e) {
    if (e == 0 || gamma[e] != gamma[e - 1]) weight = digamma(double(gamma[e])) - common;  // equal ones are common
    score[e] = double(evidence[e]) + a.eta * double(data[e]) + weight;
    check += score[e] - score[e];
    best = score[e] > best ? score[e] : best;
  }
  for (int64_t e = 0; e < a.e; ++e) total += score[e] = __builtin_exp(score[e] - best);
  for (int64_t e = 0; e < a.e; ++e) {
    const double share = score[e] / total;
    rho[e] = T(share), after[e] = T(double(gamma0[e]) + share);
  }
  return check == 0;
}

template <class T>
void run_dirichlet(dirichlet_args& a) {
  a.bad = -1;
  parallel_for(a.pool, a.b, 512 / (a.e + 1) + 1, [&](int64_t begin, int64_t end) {
    const scratch<double> score(a.e);
    for (int64_t row = begin; row < end; ++row)
      if (!responsibilities_row<T>(a, row, score)) note_lowest(a.bad, row);
  });
}

void dirichlet_responsibilities(dirichlet_args& a) { a.is_double ? run_dirichlet<double>(a) : run_dirichlet<float>(a); }

}  // namespace SF_NS
}  // namespace sf
