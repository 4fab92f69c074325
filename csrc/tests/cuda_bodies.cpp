// Runs the CUDA kernels' own code (plan.hpp's table, every phase of every body) on the host and compares it with plain
// double-precision loops. Prints, per body, the worst error as a fraction of its bound; exits 1 on any failure.
//
// Bounds: a sum of n complex products has an error of at most (2n + 4) u sum |a||b|, u the unit roundoff. R has n = M
// plus Y; H^H R and R X^H carry R's bound through n = Nr or T terms; an energy moves by 2|R| dR + dR^2, and is rounded
// once.
#include <cmath>
#include <cstdlib>

#include "checks.hpp"

namespace {

using namespace sf;
using namespace sf::cuda;

struct sizes {
  int64_t b, u, k, nr, nt, t;
  int shared;  // bit 0: y, 1: h, 2: x, 3: probe have batch stride 0
  int offset;  // complex entries by which x starts off a 16-byte boundary
  int noise;   // 0 none, 1 one number, 2 one per item
  bool probe;
};

void fail(const char* what, const sizes& n) {
  std::printf("FAIL %s: B U K Nr Nt T = %ld %ld %ld %ld %ld %ld, shared %d offset %d\n", what, long(n.b), long(n.u),
              long(n.k), long(n.nr), long(n.nt), long(n.t), n.shared, n.offset);
  ++failures;
}

template <class T>
struct problem {
  sizes n;
  std::mt19937 random;
  int64_t hn, xn, yn;  // entries of one item
  buffer<T> y, h, x, probe, noise_var;
  block_args a{};

  problem(const sizes& s, unsigned seed)
      : n(s),
        random(seed),
        hn(s.u * s.k * s.nr * s.nt),
        xn(s.u * s.k * s.nt * s.t),
        yn(s.k * s.nr * s.t),
        y(2 * yn * (s.shared & 1 ? 1 : s.b), 0, &random),
        h(2 * hn * (s.shared & 2 ? 1 : s.b), 0, &random),
        x(2 * xn * (s.shared & 4 ? 1 : s.b), s.offset, &random),
        probe(2 * xn * (s.shared & 8 ? 1 : s.b), 0, &random),
        noise_var(s.b, 0, &random) {
    for (int64_t i = 0; i < s.b; ++i) noise_var.p[i] = std::abs(noise_var.p[i]) + T(0.1);
    a.is_double = sizeof(T) == 8;
    a.b = s.b, a.u = s.u, a.k = s.k, a.nr = s.nr, a.nt = s.nt, a.t = s.t;
    a.y = y.p, a.h = h.p, a.x = x.p, a.probe = s.probe ? probe.p : nullptr;
    a.y_b = s.shared & 1 ? 0 : yn, a.h_b = s.shared & 2 ? 0 : hn, a.x_b = s.shared & 4 ? 0 : xn;
    a.probe_b = s.shared & 8 || !s.probe ? 0 : xn;
    a.noise_var = s.noise ? noise_var.p : nullptr, a.noise_var_b = s.noise == 2;
  }
  // item b, block k
  cplx H(int64_t b, int64_t k, int64_t r, int64_t m) const {
    return h.at(b * a.h_b + ((m / n.nt * n.k + k) * n.nr + r) * n.nt + m % n.nt);
  }
  int64_t x_index(int64_t k, int64_t m, int64_t t) const { return ((m / n.nt * n.k + k) * n.nt + m % n.nt) * n.t + t; }
  int64_t h_index(int64_t k, int64_t r, int64_t m) const { return ((m / n.nt * n.k + k) * n.nr + r) * n.nt + m % n.nt; }
  cplx Y(int64_t b, int64_t k, int64_t r, int64_t t) const { return y.at(b * a.y_b + (k * n.nr + r) * n.t + t); }
};

template <class T>
struct outputs {
  buffer<T> y, h, x, energy, probe_x, probe_y;
  buffer<double> energies;
  explicit outputs(const problem<T>& p)
      : y(2 * p.yn * p.n.b, 0, nullptr),
        h(2 * p.hn * p.n.b, 0, nullptr),
        x(2 * p.xn * p.n.b, 0, nullptr),
        energy(p.n.b, 0, nullptr),
        probe_x(p.n.b * p.n.u, 0, nullptr),
        probe_y(p.n.b, 0, nullptr),
        energies(p.n.b * p.n.k * (2 + p.n.u), 0, nullptr) {}
};

void note(const std::vector<std::string>& bodies, const bounded& e, const char* what, const sizes& n) {
  bounded::keep_worst(worst[bodies.front()], e.error);
  if (!(e.error <= 1)) fail(what, n);
}

template <class T>
void run_all(const problem<T>& p, outputs<T>& o, thread_order order, int op, std::vector<std::string>& bodies) {
  const host_launcher run{order, &bodies};
  block_args a = p.a;
  a.out_y = o.y.p, a.out_h = o.h.p, a.out_x = o.x.p, a.energies = o.energies.p;
  if (op == 0) a.y = a.probe = nullptr, a.y_b = a.probe_b = 0, plan_apply(a, run);
  if (op == 1) a.x = a.probe = nullptr, a.x_b = a.probe_b = 0, plan_adjoint(a, run);
  if (op == 2) plan_score(a, run), plan_energy_sum(a, o.energy.p, o.probe_x.p, o.probe_y.p, run);
}

template <class T>
void compare(const problem<T>& p, const outputs<T>& o, int op, const std::vector<std::string>& bodies) {
  const double u = std::numeric_limits<T>::epsilon() / 2;
  const sizes& n = p.n;
  const int64_t M = n.u * n.nt;
  bounded main, energies;
  for (int64_t b = 0; b < n.b; ++b) {
    const double s = op == 2 && n.noise ? 1.0 / double(p.noise_var.p[b * p.a.noise_var_b]) : 1.0;
    double energy = 0, d_energy = 0, probe_y = 0, d_probe_y = 0;
    for (int64_t k = 0; k < n.k; ++k) {
      std::vector<cplx> r(size_t(n.nr * n.t));
      std::vector<double> dr(r.size());
      for (int64_t i = 0; i < n.nr; ++i)
        for (int64_t t = 0; t < n.t; ++t) {
          cplx fwd = 0, dfwd = 0;
          double abs_fwd = 0, abs_dfwd = 0;
          for (int64_t m = 0; m < M; ++m) {
            const cplx h = p.H(b, k, i, m), x = p.x.at(b * p.a.x_b + p.x_index(k, m, t));
            fwd += h * x, abs_fwd += std::abs(h) * std::abs(x);
            const cplx d = p.probe.at((n.shared & 8 ? 0 : b * p.xn) + p.x_index(k, m, t));
            dfwd += h * d, abs_dfwd += std::abs(h) * std::abs(d);
          }
          const int64_t at = (b * n.k + k) * n.nr * n.t + i * n.t + t;
          const cplx y = p.Y(b, k, i, t);
          if (op == 0) main.add(o.y.at(at), fwd, (2 * M + 4) * u * abs_fwd);
          cplx& R = r[size_t(i * n.t + t)];
          R = op == 1 ? y : y - fwd;
          const double d = op == 1 ? 0 : (2 * M + 4) * u * (abs_fwd + std::abs(y));
          dr[size_t(i * n.t + t)] = d;
          energy += std::norm(R), d_energy += 2 * std::abs(R) * d + d * d;
          const double dd = (2 * M + 4) * u * abs_dfwd;
          probe_y += std::norm(dfwd), d_probe_y += 2 * std::abs(dfwd) * dd + dd * dd;
        }
      if (op == 0) continue;
      for (int64_t m = 0; m < M; ++m) {
        for (int64_t t = 0; t < n.t; ++t) {
          cplx g = 0;
          double bound = 0;
          for (int64_t i = 0; i < n.nr; ++i) {
            const double h = std::abs(p.H(b, k, i, m)), R = std::abs(r[size_t(i * n.t + t)]);
            g += std::conj(p.H(b, k, i, m)) * r[size_t(i * n.t + t)];
            bound += h * (dr[size_t(i * n.t + t)] + (2 * n.nr + 8) * u * R);
          }
          main.add(o.x.at(b * p.xn + p.x_index(k, m, t)), g * s, bound * s);
        }
        for (int64_t i = 0; op == 2 && i < n.nr; ++i) {
          cplx g = 0;
          double bound = 0;
          for (int64_t t = 0; t < n.t; ++t) {
            const cplx x = p.x.at(b * p.a.x_b + p.x_index(k, m, t));
            g += r[size_t(i * n.t + t)] * std::conj(x);
            bound += std::abs(x) * (dr[size_t(i * n.t + t)] + (2 * n.t + 8) * u * std::abs(r[size_t(i * n.t + t)]));
          }
          main.add(o.h.at(b * p.hn + p.h_index(k, i, m)), g * s, bound * s);
        }
      }
    }
    if (op != 2) continue;
    energies.add(double(o.energy.p[b]), energy, d_energy + 2 * u * energy + 1e-14 * energy);
    if (!n.probe) continue;
    energies.add(double(o.probe_y.p[b]), probe_y, d_probe_y + 2 * u * probe_y + 1e-14 * probe_y);
    for (int64_t user = 0; user < n.u; ++user) {
      double want = 0;
      for (int64_t i = 0; i < p.xn / n.u; ++i)
        want += std::norm(p.probe.at((n.shared & 8 ? 0 : b * p.xn) + user * p.xn / n.u + i));
      energies.add(double(o.probe_x.p[b * n.u + user]), want, 2 * u * want + 1e-14 * want);
    }
  }
  note(bodies, main, op == 0 ? "apply" : op == 1 ? "adjoint" : "score", n);
  if (op == 2) note({bodies.back()}, energies, "energies", n);
}

template <class T>
void check(const sizes& n, unsigned seed) {
  const problem<T> p(n, seed);
  for (int op = 0; op < 3; ++op) {
    outputs<T> o(p);
    std::vector<std::string> bodies;
    run_all(p, o, thread_order::forward, op, bodies);
    compare(p, o, op, bodies);
    for (thread_order order : {thread_order::backward, thread_order::shuffled}) {
      outputs<T> again(p);
      run_all(p, again, order, op, bodies);
      const bool same = same_bits(o.y, again.y) && same_bits(o.h, again.h) && same_bits(o.x, again.x) &&
                        same_bits(o.energies, again.energies) && same_bits(o.energy, again.energy) &&
                        same_bits(o.probe_x, again.probe_x) && same_bits(o.probe_y, again.probe_y);
      if (!same) fail("thread order changes bits", n);
    }
    if (n.b < 2) continue;
    problem<T> tail = problem<T>(n, seed);  // items 1.. alone
    tail.n.b = tail.a.b = n.b - 1;
    const auto move = [](const void*& q, int64_t reals) {
      if (q) q = static_cast<const T*>(q) + reals;
    };
    move(tail.a.y, 2 * tail.a.y_b), move(tail.a.h, 2 * tail.a.h_b), move(tail.a.x, 2 * tail.a.x_b);
    move(tail.a.probe, 2 * tail.a.probe_b), move(tail.a.noise_var, tail.a.noise_var_b);
    outputs<T> part(tail);
    run_all(tail, part, thread_order::forward, op, bodies);
    const bool same = same_bits(o.y, part.y, 2 * p.yn) && same_bits(o.h, part.h, 2 * p.hn) &&
                      same_bits(o.x, part.x, 2 * p.xn) && same_bits(o.energy, part.energy, 1) &&
                      same_bits(o.probe_x, part.probe_x, n.u);
    if (!same) fail("splitting the batch changes bits", n);
  }
}

}  // namespace

int main(int argc, char** argv) {
  unsigned seed = argc > 1 ? unsigned(std::atoi(argv[1])) : 1;
  std::vector<sizes> cases;
  for (int64_t m : {1, 2, 4, 8})  // every compiled size; rows short of the tile; odd T; one user and many
    for (int64_t nr : {1, 3, 4, 5, 8})
      for (int64_t t : {24, 7})
        cases.push_back({3, nr % 2 ? m : 1, 3, nr, nr % 2 ? 1 : m, t, int(nr + m) % 16, 0, int(nr) % 3, nr != 4});
  const std::vector<sizes> more = {{2, 1, 2, 64, 8, 24, 0, 0, 2, true},   {1, 1, 2, 128, 16, 24, 0, 0, 1, false},
                                   {1, 1, 1, 128, 16, 24, 0, 0, 0, true}, {2, 2, 3, 4, 2, 24, 2, 0, 2, true},
                                   {2, 2, 2, 3, 3, 10, 0, 0, 2, true},    {2, 3, 2, 5, 1, 5, 4, 0, 1, true},
                                   {5, 1, 1, 2, 3, 1, 0, 0, 2, true},     {3, 1, 40, 1, 1, 1, 0, 0, 2, true},
                                   {1, 1, 300, 1, 1, 2, 0, 0, 1, true},   {2, 1, 2, 4, 4, 24, 0, 1, 2, true},
                                   {2, 1, 2, 9, 4, 6, 15, 0, 2, true},    {1, 1, 1, 70, 40, 51, 0, 0, 2, true},
                                   {1, 2, 1, 33, 50, 70, 0, 0, 1, true},  {2, 1, 1, 4, 4, 300, 0, 0, 2, true},
                                   {1, 1, 1, 17, 5, 9, 0, 1, 0, false},   {1, 5, 2, 16, 3, 8, 0, 0, 2, true},
                                   {1, 1, 2, 200, 1, 2, 0, 0, 2, true},   {9, 1, 1, 4, 4, 24, 0, 0, 2, false},
                                   {1, 1, 1, 1, 100, 2, 0, 0, 0, true},   {2, 1, 1, 700, 3, 4, 8, 0, 2, true},
                                   {1, 1, 1, 3, 2, 900, 0, 0, 2, true}};
  cases.insert(cases.end(), more.begin(), more.end());
  try {
    for (const sizes& n : cases) {
      check<float>(n, seed);
      check<double>(n, seed++);
    }
  } catch (const std::exception& e) {
    std::printf("FAIL %s\n", e.what());
    return 1;
  }
  std::printf("%zu shapes, 2 dtypes, 3 ops, 3 thread orders: %d failures\n", cases.size(), failures);
  return report();
}
