// Runs the bodies behind rzf_precode, its vjp and lmmse_equalise (plan_rzf.hpp's table, every phase) on the host:
// values against elimination in extended precision (bounds: rzf_reference.hpp), the same bits in every thread order and
// for a split batch, singular channels found and kept apart. Prints worst error / bound per body; exits 1 on any
// failure.
#include <cstdlib>

#include "../cuda/plan_rzf.hpp"
#include "rzf_reference.hpp"

namespace {

using namespace sf;
using namespace sf::cuda;

struct sizes {
  int64_t n, items, k, m, t;
  bool rows, m_form;
  int power;    // 0: none
  int shared;   // 1: one channel for all
  int run;      // channels that share alpha
  int offset;   // entries by which every array is off a 16-byte boundary
  bool unit;    // unit symbols
  int weights;  // which alphas: 0 moderate, 1 small (double), 2 zero (pivoted), 3 all of them in turn
};

void fail(const char* what, const sizes& s) {
  std::printf("FAIL %s: n items K M T = %ld %ld %ld %ld %ld, rows %d M-form %d power %d shared %d run %d offset %d\n",
              what, long(s.n), long(s.items), long(s.k), long(s.m), long(s.t), s.rows, s.m_form, s.power, s.shared,
              s.run, s.offset);
  ++failures;
}
void note(const std::string& body, const bounded& e, const char* what, const sizes& s) {
  bounded::keep_worst(worst[body], e.error);
  if (!(e.error <= 1)) fail(what, s);
}

template <class T>
struct problem {
  sizes z;
  std::mt19937 random;
  buffer<T> h, s, alpha, g;
  rzf_args a{};

  problem(const sizes& c, unsigned seed)
      : z(c),
        random(seed),
        h(2 * c.k * c.m * (c.shared ? 1 : c.n), c.offset, &random),
        s(2 * c.k * c.t * c.n, c.offset, &random),
        alpha(c.n / c.run, 0, nullptr),
        g(2 * c.m * c.t * c.n, c.offset, &random) {
    const double kinds[] = {0.7, 1e-6, 0.0, 2.5};
    for (int64_t i = 0; i < alpha.n; ++i) alpha.p[i] = T(kinds[c.weights == 3 ? i % 4 : c.weights] * double(c.m));
    a.is_double = sizeof(T) == 8, a.rows = c.rows, a.m_form = c.m_form;
    a.n = c.n, a.k = c.k, a.m = c.m, a.t = c.t, a.h_b = c.shared ? 0 : c.k * c.m, a.alpha_run = c.run;
    a.items = c.items, a.scale = c.power ? std::sqrt(1.5 * double(c.n / c.items * c.m * c.t)) : 0;
    a.h = h.p, a.s = c.unit ? nullptr : s.p, a.alpha = alpha.p;
  }
  cplx_x symbol(int64_t i, int64_t k, int64_t t) const {
    return z.unit ? cplx_x(k == t) : cplx_x(s.at(i * z.k * z.t + (z.rows ? t * z.k + k : k * z.t + t)));
  }
  int64_t x_index(int64_t i, int64_t m, int64_t t) const {
    return i * z.m * z.t + (z.rows ? t * z.m + m : m * z.t + t);
  }
  double reg(int64_t i) const { return double(alpha.p[i / z.run]); }
  system_x system(int64_t i, bool always_double) const {
    matrix_x v(z.m_form ? z.m : z.k, z.m_form ? z.k : z.m);
    for (int64_t k = 0; k < z.k; ++k)
      for (int64_t m = 0; m < z.m; ++m) {
        const cplx_x e = h.at(i * a.h_b + k * z.m + m);
        (z.m_form ? v(m, k) : v(k, m)) = z.m_form ? std::conj(e) : e;
      }
    return {v, reg(i), std::numeric_limits<T>::epsilon() / 2.0, always_double};
  }
};

template <class T>
struct outputs {
  buffer<T> x, dh, ds, noise;
  buffer<double> norm, da;
  buffer<int32_t> info;
  explicit outputs(const sizes& z)
      : x(2 * z.m * z.t * z.n, z.offset, nullptr),
        dh(2 * z.k * z.m * z.n, z.offset, nullptr),
        ds(2 * z.k * z.t * z.n, z.offset, nullptr),
        noise(z.m * z.n, 0, nullptr),
        norm(z.items, 0, nullptr),
        da(z.n, 0, nullptr),
        info(z.n * (z.rows ? z.t : 1), 0, nullptr) {}
};

struct scratch {
  std::unique_ptr<unsigned char[]> p;
  scratch(const rzf_args& a, rzf_op op) : p(new unsigned char[size_t(rzf_scratch(a, op))]) {
    std::memset(p.get(), 0xff, size_t(rzf_scratch(a, op)));
  }
};

using names = std::vector<std::string>;
std::string solver(const names& bodies) {  // the one that is neither first nor second pass of the normalisation
  for (const std::string& b : bodies)
    if (b.find("power") == std::string::npos) return b;
  return "";
}

template <class T>
names run_precode(const problem<T>& p, outputs<T>& o, thread_order order) {
  names bodies;
  rzf_args a = p.a;
  a.out_x = o.x.p, a.norm = o.norm.p, a.info = o.info.p;
  plan_precode(a, scratch(a, rzf_op::precode).p.get(), host_launcher{order, &bodies});
  return bodies;
}
template <class T>
names run_vjp(const problem<T>& p, const outputs<T>& forward, outputs<T>& o, thread_order order) {
  names bodies;
  rzf_args a = p.a;
  a.x = forward.x.p, a.norm = forward.norm.p, a.g = p.g.p, a.da = o.da.p;
  a.dh = p.z.shared == 2 ? nullptr : o.dh.p, a.ds = p.z.unit ? nullptr : o.ds.p;
  plan_precode_vjp(a, scratch(a, rzf_op::vjp).p.get(), host_launcher{order, &bodies});
  return bodies;
}
template <class T>
names run_equalise(const problem<T>& p, outputs<T>& o, thread_order order) {
  names bodies;
  rzf_args a = p.a;
  a.rows = true, a.t = 1, a.scale = 0, a.items = 1, a.s = p.s.p;
  a.out_x = o.x.p, a.out_noise = o.noise.p, a.info = o.info.p;
  plan_equalise(a, scratch(a, rzf_op::equalise).p.get(), host_launcher{order, &bodies});
  return bodies;
}

template <class T>
void compare_precode(const problem<T>& p, const outputs<T>& o, const names& bodies) {
  const sizes& z = p.z;
  const double u = std::numeric_limits<T>::epsilon() / 2.0;
  bounded e, power;
  const int64_t each = z.n / z.items;
  for (int64_t item = 0; item < z.items; ++item) {
    std::vector<vector_x> want;
    std::vector<double> error;
    double energy = 0, moved = 0;
    for (int64_t i = item * each; i < (item + 1) * each; ++i) {
      const system_x sys = p.system(i, false);
      for (int64_t t = 0; t < z.t; ++t) {
        if (z.rows ? o.info.p[i * z.t + t] : o.info.p[i]) fail("info of a regular channel", z);
        vector_x s;
        for (int64_t k = 0; k < z.k; ++k) s.push_back(p.symbol(i, k, t));
        const solved w(sys, z.m_form ? apply_to(sys.v, s) : s, z.m_form ? error_of_narrow(sys, s, 0) : 0);
        want.push_back(z.m_form ? w.u : apply_adjoint(sys.v, w.u));
        const double size = size_of(want.back());
        error.push_back((z.m_form ? w.error : error_of_wide(sys, w)) + u * size);
        energy += size * size, moved += 2 * size * error.back() + error.back() * error.back();
      }
    }
    const double c = z.power ? p.a.scale / std::sqrt(energy) : 1, dc = z.power ? moved / energy / 2 + 3 * u : 0;
    if (z.power) power.add(o.norm.p[item], std::sqrt(energy), moved / std::sqrt(energy));
    for (int64_t q = 0; q < each * z.t; ++q)
      for (int64_t m = 0; m < z.m; ++m)
        e.add(o.x.at(p.x_index(item * each + q / z.t, m, q % z.t)), cplx(want[size_t(q)][size_t(m)]) * c,
              c * (error[size_t(q)] + dc * size_of(want[size_t(q)])));
  }
  note(solver(bodies), e, "precode", z);
  if (z.power) note(bodies.back(), power, "norm", z);
}

template <class T>
void compare_vjp(const problem<T>& p, const outputs<T>& f, const outputs<T>& o, const names& bodies) {
  const sizes& z = p.z;
  const double u_t = std::numeric_limits<T>::epsilon() / 2.0;
  bounded e;
  const int64_t each = z.n / z.items;
  for (int64_t i = 0; i < z.n; ++i) {
    const system_x sys = p.system(i, false);
    double c = 1, along = 0;
    if (z.power) {  // the adjoint at the x and norm that the kernel was given
      const int64_t first = i / each * each * z.m * z.t;
      for (int64_t j = first; j < first + each * z.m * z.t; ++j) along += (std::conj(f.x.at(j)) * p.g.at(j)).real();
      along /= p.a.scale * p.a.scale, c = p.a.scale / f.norm.p[i / each];
    }
    matrix_x dv(sys.v.rows, sys.v.cols);
    real_x da = 0;
    double d_dv = 0, d_da = 0;
    for (int64_t t = 0; t < z.t; ++t) {
      vector_x s, g;
      double dg = 0;
      for (int64_t k = 0; k < z.k; ++k) s.push_back(p.symbol(i, k, t));
      for (int64_t m = 0; m < z.m; ++m) {
        const cplx G = p.g.at(p.x_index(i, m, t)), X = z.power ? f.x.at(p.x_index(i, m, t)) : 0;
        g.push_back(cplx_x((G - X * along) * c));
        if (z.power) dg += 6 * u_t * c * (std::abs(G) + std::abs(X * along));
      }
      const vector_x &P = z.m_form ? g : s, &Q = z.m_form ? s : g;
      const double dp = z.m_form ? dg : 0, dq = z.m_form ? 0 : dg;
      const solved u(sys, P, dp), w(sys, apply_to(sys.v, Q), error_of_narrow(sys, Q, dq));
      const vector_x x = apply_adjoint(sys.v, u.u), back = apply_adjoint(sys.v, w.u), r = minus(Q, back);
      const double su = size_of(u.u), sw = size_of(w.u), sx = size_of(x), sr = size_of(r);
      const double dx = error_of_wide(sys, u), dr = dq + error_of_wide(sys, w) + sys.e * size_of(Q);
      for (int64_t a = 0; a < dv.rows; ++a)
        for (int64_t b = 0; b < dv.cols; ++b)
          dv(a, b) += u.u[size_t(a)] * std::conj(r[size_t(b)]) - w.u[size_t(a)] * std::conj(x[size_t(b)]);
      d_dv += su * dr + u.error * sr + sw * dx + w.error * sx + (2 * double(z.t) + 8) * u_t * (su * sr + sw * sx);
      for (size_t a = 0; a < u.u.size(); ++a) da -= (std::conj(w.u[a]) * u.u[a]).real();
      d_da += sw * u.error + su * w.error + 1e-14 * su * sw;
      for (int64_t k = 0; !z.unit && k < z.k; ++k)
        e.add(o.ds.at(i * z.k * z.t + (z.rows ? t * z.k + k : k * z.t + t)),
              cplx(z.m_form ? x[size_t(k)] : w.u[size_t(k)]), z.m_form ? dx + u_t * sx : w.error + u_t * sw);
    }
    for (int64_t k = 0; z.shared != 2 && k < z.k; ++k)
      for (int64_t m = 0; m < z.m; ++m)
        e.add(o.dh.at((i * z.k + k) * z.m + m), cplx(z.m_form ? std::conj(dv(m, k)) : dv(k, m)), d_dv);
    e.add(o.da.p[i], double(da), d_da);
  }
  note(solver(bodies), e, "vjp", z);
  if (z.power) note(bodies.front(), e, "power_dots", z);
}

template <class T>
void compare_equalise(const problem<T>& p, const outputs<T>& o, const names& bodies) {
  const sizes& z = p.z;
  const double u_t = std::numeric_limits<T>::epsilon() / 2.0;
  bounded e;
  for (int64_t i = 0; i < z.n; ++i) {
    const system_x s = p.system(i, true);
    if (o.info.p[i]) fail("info of a regular channel", z);
    vector_x y;
    for (int64_t k = 0; k < z.k; ++k) y.push_back(cplx_x(p.s.at(i * z.k + k)));
    const solved u(s, z.m_form ? apply_to(s.v, y) : y, z.m_form ? error_of_narrow(s, y, 0) : 0);
    const vector_x biased = z.m_form ? u.u : apply_adjoint(s.v, u.u);
    const double db = z.m_form ? u.error : error_of_wide(s, u);
    for (int64_t j = 0; j < z.m; ++j) {
      vector_x c;  // z = A^-1 c; both gains are sums of products
      for (int64_t n = 0; n < s.v.rows; ++n) c.push_back(z.m_form ? cplx_x(n == j) : s.v(n, j));
      const solved w(s, c, 0);
      const vector_x other = z.m_form ? apply_adjoint(s.v, c) : c, mine = z.m_form ? apply_adjoint(s.v, w.u) : w.u;
      real_x gain = 0;
      for (size_t n = 0; n < mine.size(); ++n) gain += (std::conj(mine[n]) * other[n]).real();
      const double dm = z.m_form ? error_of_wide(s, w) : w.error, so = size_of(other);
      const double d_gain = so * (dm + s.product(s.v.cols) * size_of(mine)), G = double(gain);
      const double rest = z.m_form ? s.reg * double(w.u[size_t(j)].real()) : 1 - G;
      const double d_rest = z.m_form ? s.reg * w.error : d_gain + s.e;
      const cplx b = cplx(biased[size_t(j)]);
      e.add(o.x.at(i * z.m + j), b / G, 2 * u_t * std::abs(b / G) + db / G + std::abs(b) * d_gain / (G * G));
      e.add(double(o.noise.p[i * z.m + j]), rest / G, 2 * u_t * rest / G + d_rest / G + rest * d_gain / (G * G));
    }
  }
  note(solver(bodies), e, "equalise", z);
}

#include "cuda_rzf_cases.hpp"

}  // namespace

int main(int argc, char** argv) { return run_cases(argc > 1 ? unsigned(std::atoi(argv[1])) : 1); }
