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

// Channels 1, 2, ... made singular in all the ways there are, at alpha = 0; the others keep their bits.
template <class T>
void check_singular(const sizes& z, unsigned seed, bool pinv) {
  problem<T> p(z, seed);
  const problem<T> regular(z, seed);
  p.a.pinv = pinv;
  const int64_t km = z.k * z.m, v = z.m_form ? z.m : z.k;
  const T nan = std::numeric_limits<T>::quiet_NaN(), inf = std::numeric_limits<T>::infinity();
  const auto entry = [&](int64_t c, int64_t i, int64_t m) {  // of the narrow row i
    return p.h.p + 2 * (c * km + (z.m_form ? m * z.m + i : i * z.m + m));
  };
  const int64_t wide_side = z.m_form ? z.k : z.m;
  for (int64_t m = 0; m < wide_side; ++m)
    for (int j = 0; j < 2; ++j) {
      entry(1, v - 1, m)[j] = entry(1, 0, m)[j];              // equal rows
      entry(2, v - 1, m)[j] = T(-0.3) * entry(2, 0, m)[j];    // proportional rows
      entry(3, v / 2, m)[j] = T(0);                           // a zero row
      for (int64_t i = 0; i < v; ++i) entry(4, i, m)[j] = 0;  // no channel
    }
  entry(5, v - 1, 0)[1] = nan, entry(6, 0, wide_side - 1)[0] = inf;
  p.s.p[2 * 7 * z.k * z.t] = nan;  // a regular channel with a spoilt right-hand side
  outputs<T> f(z), plain(z), o(z);
  const std::string body = solver(run_precode(p, f, thread_order::forward));
  run_precode(regular, plain, thread_order::forward);
  run_vjp(p, f, o, thread_order::shuffled);
  for (int64_t i = 0; i < z.n; ++i) {
    const bool dead = i >= 1 && i <= 7, kept = pinv && i >= 1 && i <= 4 && v > 1;
    if ((f.info.p[i] != 0) != dead || (i == 7 && f.info.p[i] != -1)) fail(("info " + body).c_str(), z);
    bool zero = true, finite = true;
    for (int64_t e = 0; e < 2 * z.m * z.t; ++e)
      zero = zero && f.x.p[i * 2 * z.m * z.t + e] == 0, finite = finite && std::isfinite(f.x.p[i * 2 * z.m * z.t + e]);
    if (!finite || (zero && (!dead || (kept && i != 4))) || (!zero && dead && !kept)) fail(("x " + body).c_str(), z);
    if (!dead && std::memcmp(f.x.p + i * 2 * z.m * z.t, plain.x.p + i * 2 * z.m * z.t, size_t(2 * z.m * z.t) * sizeof(T)))
      fail(("a neighbour changed " + body).c_str(), z);
    if (dead && !pinv && i < 7 && (o.da.p[i] != 0 || o.dh.p[i * 2 * km] != 0 || o.ds.p[i * 2 * z.k * z.t] != 0))
      fail(("gradient of a singular channel " + body).c_str(), z);
  }
  for (int64_t k = 1; pinv && !z.m_form && k < v; ++k)  // the users that were kept are served exactly: h x = s
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
  if (z.t > 1) return;
  outputs<T> q(z);
  p.a.pinv = false;
  run_equalise(p, q, thread_order::backward);
  for (int64_t i = 0; i < z.n; ++i) {
    const bool dead = i >= 1 && i <= 7;
    if ((q.info.p[i] != 0) != dead || std::isinf(q.noise.p[i * z.m]) != dead || (q.x.p[i * 2 * z.m] == 0) != dead)
      fail("equalise: singular", z);
  }
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
          for (int64_t t : {1, 19}) {
            const int64_t len = n + 1;
            const sizes z = {12, 1, m_form ? len : n, m_form ? n : len, t, true, m_form, 0, 0, 1, 0, false, 2};
            check_singular<float>(z, seed, pinv), check_singular<double>(z, seed++, pinv);
          }
  } catch (const std::exception& e) {
    std::printf("FAIL %s\n", e.what());
    return 1;
  }
  std::printf("%zu shapes, 2 dtypes, 3 thread orders: %d failures\n", cases.size(), failures);
  return report();
}
