// Energies: sums of squares in double whatever the input's type.
#pragma once
#include "../common/lane.hpp"

namespace sf {
inline namespace SF_NS {

// Sums of squares in double, lane by lane
struct square_sums {
  static constexpr int W = native_width<double>;
  using D = pack<double, W>;
  D even{0.0}, odd{0.0};
  SF_HD static D part(const double* p, int n) { return n < W ? D::load_first(p, n) : D::load(p); }
  SF_HD static D part(const float* p, int n) {
    using H = typename vec_of<float, W>::VU;
    if (n >= W) return widen(*reinterpret_cast<const H*>(p));
    const auto first = pack<float, W>::load_first(p, n);
    return widen(first.v);
  }
  template <class T>
  SF_HD void add(const T* p, int64_t n) {
    int64_t j = 0;
    for (; j + 2 * W <= n; j += 2 * W) {
      const D a = part(p + j, W), b = part(p + j + W, W);
      even = even + a * a, odd = odd + b * b;
    }
    for (; j < n; j += W) {
      const D a = part(p + j, n - j < W ? int(n - j) : W);
      even = even + a * a;
    }
  }
  template <int First, int... I>
  SF_HD static D half(pack<float, 2 * W> v, int_list<I...>) {
    return widen(__builtin_shufflevector(v.v, v.v, (First + I)...));
  }
  SF_HD static D low(pack<float, 2 * W> v) { return half<0>(v, make_list<W>()); }
  SF_HD static D high(pack<float, 2 * W> v) { return half<W>(v, make_list<W>()); }
  SF_HD void add(pack<float, 2 * W> v) {
    const D a = low(v), b = high(v);
    even = even + a * a, odd = odd + b * b;
  }
  SF_HD void add(pack<double, W> v) {  // to either in turn
    const D next = odd;
    odd = even + v * v, even = next;
  }
  // Adds v itself, which is 0, or NaN where something is not finite.
  SF_HD void taint(pack<float, 2 * W> v) { even = even + low(v), odd = odd + high(v); }
  SF_HD void taint(pack<double, W> v) { even = even + v; }
  SF_HD double sum() const { return (even + odd).sum(); }
};

// sum_j p[j]^2 in double, n reals
template <class T>
SF_HD double square_sum(const T* p, int64_t n) {
  square_sums s;
  s.add(p, n);
  return s.sum();
}

}  // namespace SF_NS
}  // namespace sf
