// One channel of rzf_precode, its vjp or lmmse_equalise by elimination in extended precision, with normwise error
// bounds of the computed quantities.
//
// With A = V V^H + a I solved by Cholesky in unit roundoff e: |du| <= g cond(A) |u| + |A^-1| |dp| for A u = p, with
// g = 4 (n + len + 4) e (Higham, Accuracy and Stability of Numerical Algorithms, theorem 10.4, and the rounding of the
// Gram matrix); a product of m terms errs by (2m + 4) e times the product of norms; u_T is the rounding of what is
// stored in the type of the data.
#pragma once
#include <cmath>
#include <vector>

#include "checks.hpp"

namespace sf::cuda {

using real_x = long double;
using cplx_x = std::complex<real_x>;
using vector_x = std::vector<cplx_x>;

struct matrix_x {
  int64_t rows, cols;
  vector_x e;
  matrix_x(int64_t r, int64_t c) : rows(r), cols(c), e(size_t(r * c)) {}
  cplx_x& operator()(int64_t i, int64_t j) { return e[size_t(i * cols + j)]; }
  cplx_x operator()(int64_t i, int64_t j) const { return e[size_t(i * cols + j)]; }
};

inline double size_of(const vector_x& v) {
  real_x sum = 0;
  for (const cplx_x& z : v) sum += std::norm(z);
  return double(std::sqrt(sum));
}
inline vector_x apply_to(const matrix_x& a, const vector_x& x) {
  vector_x y(size_t(a.rows));
  for (int64_t i = 0; i < a.rows; ++i)
    for (int64_t j = 0; j < a.cols; ++j) y[size_t(i)] += a(i, j) * x[size_t(j)];
  return y;
}
inline vector_x apply_adjoint(const matrix_x& a, const vector_x& x) {
  vector_x y(size_t(a.cols));
  for (int64_t i = 0; i < a.rows; ++i)
    for (int64_t j = 0; j < a.cols; ++j) y[size_t(j)] += std::conj(a(i, j)) * x[size_t(i)];
  return y;
}
inline vector_x minus(vector_x a, const vector_x& b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] -= b[i];
  return a;
}

inline matrix_x inverse(matrix_x a) {  // Gauss-Jordan with row exchanges
  const int64_t n = a.rows;
  matrix_x b(n, n);
  for (int64_t i = 0; i < n; ++i) b(i, i) = 1;
  for (int64_t j = 0; j < n; ++j) {
    int64_t p = j;
    for (int64_t i = j + 1; i < n; ++i)
      if (std::abs(a(i, j)) > std::abs(a(p, j))) p = i;
    for (int64_t k = 0; k < n; ++k) std::swap(a(j, k), a(p, k)), std::swap(b(j, k), b(p, k));
    const cplx_x r = cplx_x(1) / a(j, j);
    for (int64_t k = 0; k < n; ++k) a(j, k) *= r, b(j, k) *= r;
    for (int64_t i = 0; i < n; ++i) {
      if (i == j) continue;
      const cplx_x f = a(i, j);
      for (int64_t k = 0; k < n; ++k) a(i, k) -= f * a(j, k), b(i, k) -= f * b(j, k);
    }
  }
  return b;
}

struct system_x {  // of one channel
  matrix_x v, inv;
  double reg, e, size_v, size_inv, cond, g;
  // e_plain: unit roundoff of the data; double takes over well below 1e-3 of the mean diagonal, and always_double
  system_x(const matrix_x& v_, double reg_, double e_plain, bool always_double)
      : v(v_), inv(v_.rows, v_.rows), reg(reg_), e(e_plain) {
    const int64_t n = v.rows;
    matrix_x a(n, n);
    real_x trace = 0;
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        for (int64_t m = 0; m < v.cols; ++m) a(i, j) += v(i, m) * std::conj(v(j, m));
        if (i == j) a(i, j) += real_x(reg), trace += a(i, j).real();
      }
    }
    if (always_double || 0.999e-3 * double(trace) / double(n) > reg) e = 0x1p-53;
    inv = inverse(a);
    size_v = size_of(v.e), size_inv = size_of(inv.e), cond = size_of(a.e) * size_inv;
    g = 4 * double(n + v.cols + 4) * e;
  }
  double product(int64_t terms) const { return (2 * double(terms) + 4) * e; }
  double error_of(const vector_x& u, double dp) const { return g * cond * size_of(u) + size_inv * dp; }
};

struct solved {  // A^-1 p and its error
  vector_x u;
  double error;
  solved(const system_x& s, const vector_x& p, double dp) : u(apply_to(s.inv, p)), error(s.error_of(u, dp)) {}
};
inline double error_of_narrow(const system_x& s, const vector_x& q, double dq) {  // of V q
  return s.size_v * (dq + s.product(s.v.cols) * size_of(q));
}
inline double error_of_wide(const system_x& s, const solved& u) {  // of V^H u
  return s.size_v * (u.error + s.product(s.v.rows) * size_of(u.u));
}

}  // namespace sf::cuda
