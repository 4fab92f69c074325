// The sizes that cuda_rzf.cpp runs, and its checks beyond values. Included by it alone.

template <class T>
bool same(const outputs<T>& a, const outputs<T>& b) {
  return same_bits(a.x, b.x) && same_bits(a.dh, b.dh) && same_bits(a.ds, b.ds) && same_bits(a.noise, b.noise) &&
         same_bits(a.norm, b.norm) && same_bits(a.da, b.da) && same_bits(a.info, b.info);
}

template <class T>
void check(const sizes& z, unsigned seed) {
  const problem<T> p(z, seed);
  outputs<T> f(z), o(z), q(z);
  compare_precode(p, f, run_precode(p, f, thread_order::forward));
  compare_vjp(p, f, o, run_vjp(p, f, o, thread_order::forward));
  const bool equalises = z.t == 1 && !z.power && (z.m <= z.k) == z.m_form;
  if (equalises) compare_equalise(p, q, run_equalise(p, q, thread_order::forward));
  for (thread_order order : {thread_order::backward, thread_order::shuffled}) {
    outputs<T> f2(z), o2(z), q2(z);
    run_precode(p, f2, order), run_vjp(p, f, o2, order);
    if (equalises) run_equalise(p, q2, order);
    if (!same(f, f2) || !same(o, o2) || !same(q, q2)) fail("thread order changes bits", z);
  }
  if (z.items < 2 || z.shared || z.run > z.n / z.items) return;
  problem<T> tail(z, seed);  // items 1.. alone
  const int64_t each = z.n / z.items;
  tail.z.n -= each, tail.a.n -= each, tail.z.items -= 1, tail.a.items -= 1;
  const auto skip = [&](const void* v, int64_t reals) { return v ? static_cast<const T*>(v) + each * reals : nullptr; };
  tail.a.h = skip(p.h.p, 2 * z.k * z.m), tail.a.s = skip(tail.a.s ? p.s.p : nullptr, 2 * z.k * z.t);
  tail.a.alpha = p.alpha.p + each / z.run;
  outputs<T> part(tail.z);
  run_precode(tail, part, thread_order::forward);
  if (!same_bits(f.x, part.x, 2 * each * z.m * z.t) || !same_bits(f.norm, part.norm, 1))
    fail("splitting the batch changes bits", z);
}

// Channels 1 to 6 made singular in all the ways there are, at alpha = 0, and a NaN among the symbols of channel 7; the
// others keep their bits.
template <class T>
struct singular_problem {
  sizes z;
  problem<T> p;
  const problem<T> regular;
  int64_t v, wide_side, spoilt_t;  // v: narrow rows; spoilt_t: the right-hand side of channel 7 with a NaN

  singular_problem(const sizes& c, unsigned seed, bool pinv)
      : z(c),
        p(c, seed),
        regular(c, seed),
        v(c.m_form ? c.m : c.k),
        wide_side(c.m_form ? c.k : c.m),
        spoilt_t(c.t - 1) {
    p.a.pinv = pinv;
    for (int64_t m = 0; m < wide_side; ++m)
      for (int j = 0; j < 2; ++j) {
        entry(1, v - 1, m)[j] = entry(1, 0, m)[j];              // equal rows
        entry(2, v - 1, m)[j] = T(-0.3) * entry(2, 0, m)[j];    // proportional rows
        entry(3, v / 2, m)[j] = T(0);                           // a zero row
        for (int64_t i = 0; i < v; ++i) entry(4, i, m)[j] = 0;  // no channel
      }
    entry(5, v - 1, 0)[1] = std::numeric_limits<T>::quiet_NaN();
    entry(6, 0, wide_side - 1)[0] = std::numeric_limits<T>::infinity();
    p.s.p[2 * (7 * z.k * z.t + (z.rows ? spoilt_t * z.k : spoilt_t)) + 1] = std::numeric_limits<T>::quiet_NaN();
  }
  T* entry(int64_t c, int64_t i, int64_t m) {  // of the narrow row i
    return p.h.p + 2 * (c * z.k * z.m + (z.m_form ? m * z.m + i : i * z.m + m));
  }
  int expected(int64_t i, int64_t t) const {  // sign of info
    return i >= 1 && i <= 6 ? 1 : i == 7 && (!z.rows || t == spoilt_t) ? -1 : 0;
  }
  void forward(const outputs<T>& f, const outputs<T>& plain, const std::string& body) const {
    for (int64_t i = 0; i < z.n; ++i)
      for (int64_t t = 0; t < z.t; ++t) {
        const int code = f.info.p[z.rows ? i * z.t + t : i], want = expected(i, t);
        if ((code > 0) - (code < 0) != want || code < -1) fail(("info " + body).c_str(), z);
        const bool kept = p.a.pinv && i >= 1 && i <= 3 && v > 1;
        bool zero = true, finite = true, same = true;
        for (int64_t m = 0; m < z.m; ++m)
          for (int64_t j = 2 * p.x_index(i, m, t); j < 2 * p.x_index(i, m, t) + 2; ++j) {
            zero = zero && f.x.p[j] == 0, finite = finite && std::isfinite(f.x.p[j]);
            same = same && f.x.p[j] == plain.x.p[j];
          }
        if (!finite || zero != (want != 0 && !kept)) fail(("x " + body).c_str(), z);
        if (want == 0 && !same) fail(("a neighbour changed " + body).c_str(), z);
      }
  }
  // A pseudo-inverse serves the users that were kept exactly: h x = s.
  void served(const outputs<T>& f, const std::string& body) {
    for (int64_t k = 1; k < v; ++k)
      for (int64_t c : {1, 3}) {
        if (c == 1 ? k == v - 1 : k == v / 2) continue;
        cplx y = 0;
        double size = 0;
        for (int64_t m = 0; m < z.m; ++m) {
          const cplx h = {double(entry(c, k, m)[0]), double(entry(c, k, m)[1])}, x = f.x.at(p.x_index(c, m, 0));
          y += h * x, size += std::abs(h) * std::abs(x);
        }
        const double bound = 64 * double(v + wide_side) * std::numeric_limits<T>::epsilon() * (size + 1);
        if (!(std::abs(y - cplx(p.symbol(c, k, 0))) <= bound)) fail(("pinv " + body).c_str(), z);
      }
  }
  // Zero gradients where x was set to zero, and nowhere NaN.
  void backward(const outputs<T>& o, const std::string& body) const {
    for (int64_t i = 0; i < z.n; ++i) {
      bool zero = o.da.p[i] == 0, finite = std::isfinite(o.da.p[i]);
      for (int64_t e = 2 * i * z.k * z.m; e < 2 * (i + 1) * z.k * z.m; ++e)
        zero = zero && o.dh.p[e] == 0, finite = finite && std::isfinite(o.dh.p[e]);
      for (int64_t k = 0; k < z.k; ++k)
        for (int64_t t = 0; t < z.t; ++t)
          for (int j = 0; j < 2; ++j) {
            const T d = o.ds.p[2 * (i * z.k * z.t + (z.rows ? t * z.k + k : k * z.t + t)) + j];
            const bool silent = i == 7 && expected(i, t) != 0;
            zero = zero && d == 0, finite = finite && std::isfinite(d) && (!silent || d == 0);
          }
      const bool dead = i == 5 || i == 6 || (i == 7 && (!z.rows || z.t == 1)) || (i >= 1 && i <= 4 && !p.a.pinv);
      if (!finite || (dead && !zero) || (i == 0 && zero)) fail(("gradient " + body).c_str(), z);
    }
  }
  void equalised(const outputs<T>& q) const {
    for (int64_t i = 0; i < z.n; ++i) {
      const bool dead = expected(i, 0) != 0;
      const int code = q.info.p[i];
      if ((code > 0) - (code < 0) != expected(i, 0) || std::isinf(q.noise.p[i * z.m]) != dead ||
          (q.x.p[i * 2 * z.m] == 0) != dead)
        fail("equalise: singular", z);
    }
  }
};

template <class T>
void check_singular(const sizes& z, unsigned seed, bool pinv) {
  singular_problem<T> s(z, seed, pinv);
  outputs<T> f(z), plain(z), o(z), q(z);
  run_precode(s.regular, plain, thread_order::forward);
  const std::string body = solver(run_precode(s.p, f, thread_order::forward));
  s.forward(f, plain, body);
  if (pinv && !z.m_form) s.served(f, body);
  s.backward(o, solver(run_vjp(s.p, f, o, thread_order::shuffled)));
  s.p.a.scale = std::sqrt(double(z.n * z.m * z.t));  // what was set to zero has no part in the power
  run_precode(s.p, f, thread_order::forward);
  real_x energy = 0;
  for (int64_t e = 0; e < f.x.n; ++e) energy += real_x(f.x.p[e]) * real_x(f.x.p[e]);
  const double count = double(z.n * z.m * z.t), off = double(energy / real_x(count)) - 1;
  if (!(std::abs(off) <=
        4 * std::numeric_limits<T>::epsilon() + count * 0x1p-53))  // a sum of `count` doubles, any order
    fail(("power of what is left " + body).c_str(), z);
  s.backward(o, solver(run_vjp(s.p, f, o, thread_order::forward)));
  s.p.a.scale = 0;
  if (pinv) return;
  if (z.t == 1) {
    run_equalise(s.p, q, thread_order::backward);
    s.equalised(q);
  }
  s.p.a.refuse_zero = true;  // zero forcing that the sizes alone rule out
  run_precode(s.p, f, thread_order::forward), run_vjp(s.p, f, o, thread_order::forward);
  for (int64_t i = 0; i < z.n; ++i)
    if (f.info.p[i * (z.rows ? z.t : 1)] < 1 || f.x.p[2 * i * z.m * z.t] != 0 || o.da.p[i] != 0) fail("refused", z);
}

std::vector<sizes> all_cases() {
  std::vector<sizes> cases;
  for (int64_t k : {1, 2, 3, 4})  // a thread per matrix: every compiled size in both forms, odd and even
    for (int64_t m : {1, 4, 5, 7})
      for (int weights : {0, 3}) {
        if (weights == 3 && m < k) continue;  // alpha = 0 has no K-form then
        const bool m_form = m < k;
        cases.push_back({40, 4, k, m, 1, true, m_form, weights == 0, 0, 1, int(k + m) % 2, false, weights});
        cases.push_back({9, 1, k, m, k, false, m_form, 0, 0, 3, 0, true, 0});
        cases.push_back({12, 2, k, m, 14, true, m_form, 1, 0, 1, 0, false, weights});
        cases.push_back({4, 1, k, m, 37, m % 2 == 0, m_form, 0, 0, 1, 1, false, weights});
      }
  const std::vector<sizes> more = {
      {300, 1, 4, 4, 1, true, false, 1, 0, 1, 0, false, 0},   {260, 2, 4, 4, 1, true, false, 1, 0, 130, 0, false, 0},
      {2, 2, 4, 4, 1, true, false, 1, 0, 1, 0, false, 0},     {64, 64, 4, 4, 1, true, false, 1, 0, 1, 0, false, 3},
      {150, 3, 4, 4, 1, true, true, 1, 0, 1, 0, false, 0},    {16, 1, 4, 4, 1, true, false, 0, 1, 4, 0, false, 3},
      {16, 1, 4, 4, 3, false, false, 1, 2, 4, 1, false, 3},   {130, 1, 16, 4, 1, true, true, 0, 0, 1, 0, false, 3},
      {20, 2, 4, 16, 2, true, false, 1, 0, 1, 0, false, 3},   {8, 1, 4, 16, 40, false, false, 1, 0, 1, 0, false, 0},
      {3, 1, 4, 4, 34, false, false, 1, 0, 1, 0, false, 3},   {200, 1, 3, 2, 1, true, true, 0, 0, 1, 1, false, 2},
      {8, 2, 8, 8, 1, true, false, 1, 0, 1, 0, false, 3},     {21, 3, 8, 8, 1, true, true, 1, 0, 1, 1, false, 3},
      {5, 1, 16, 16, 1, true, false, 0, 0, 1, 0, false, 3},   {4, 2, 5, 9, 14, true, false, 1, 0, 1, 0, false, 3},
      {4, 1, 6, 6, 6, false, false, 0, 0, 1, 0, true, 3},     {4, 1, 16, 5, 3, false, true, 1, 0, 2, 1, false, 0},
      {4, 1, 4, 17, 1, true, false, 0, 0, 1, 0, false, 3},    {3, 1, 2, 70, 20, true, false, 1, 0, 1, 0, false, 0},
      {2, 1, 20, 24, 2, true, false, 1, 0, 1, 0, false, 1},   {2, 2, 31, 32, 1, true, false, 1, 0, 1, 0, false, 0},
      {2, 1, 33, 34, 1, true, false, 0, 0, 1, 0, false, 0},   {3, 1, 40, 36, 9, false, true, 1, 0, 1, 0, false, 1},
      {5, 1, 12, 9, 1, true, true, 0, 0, 1, 0, false, 3},     {2, 1, 40, 35, 1, true, true, 0, 0, 1, 0, false, 0},
      {2, 1, 12, 300, 1, true, false, 0, 0, 1, 0, false, 3},  {6, 1, 7, 7, 1, true, false, 0, 1, 1, 0, false, 0},
      {600, 1, 1, 400, 1, true, false, 1, 0, 1, 0, false, 0}, {3, 1, 9, 8, 1, true, true, 0, 2, 1, 0, false, 2}};
  cases.insert(cases.end(), more.begin(), more.end());
  return cases;
}

int run_cases(unsigned seed) {
  const std::vector<sizes> cases = all_cases();
  try {
    for (const sizes& z : cases) check<float>(z, seed), check<double>(z, seed++);
    for (int64_t n : {2, 3, 4, 5, 8, 16, 34})
      for (bool m_form : {false, true})
        for (bool pinv : {false, true})
          for (int64_t t : {1, -5, 19, -19}) {  // samples, or (negative) streams
            const int64_t len = n + 1;
            const sizes z = {12,    1, m_form ? len : n, m_form ? n : len, std::abs(t), t > 0, m_form, 0, 0, 1, 0,
                             false, 2};
            check_singular<float>(z, seed, pinv), check_singular<double>(z, seed++, pinv);
          }
  } catch (const std::exception& e) {
    std::printf("FAIL %s\n", e.what());
    return 1;
  }
  std::printf("%zu shapes, 2 dtypes, 3 thread orders: %d failures\n", cases.size(), failures);
  return report();
}
