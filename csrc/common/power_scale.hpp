// The power normalisation x scale/|x| and its adjoint. The factor is two numbers of type T: one may lie beyond its
// range where results do not.
#pragma once
#include "lane.hpp"

namespace sf {
inline namespace SF_NS {

template <class T>
struct power_scale {
  T first, second;  // `first` is a power of two unless it is all of the factor

  // scale / norm. Nothing stays nothing; a norm beyond double gives NaN.
  SF_HD static power_scale of(double scale, double norm) {
    constexpr double most = 0x1p100, least = 1 / most;
    if (norm == 0) return {T(0), T(1)};
    const double f = norm <= largest(0.0) ? scale / norm : __builtin_nan("");
    const double capped = f > most ? most : f, first = capped < least ? least : capped;
    return {T(first), T(f / first)};
  }
  template <class V>
  SF_HD V operator()(V x) const {
    return x * V(first) * V(second);
  }
};

// What the adjoint does to the gradient g of the scaled x: factor (g - x Re<x, g>/scale^2).
template <class T>
struct power_slope {
  power_scale<T> scaled;
  T along;

  SF_HD static power_slope none() { return {{T(1), T(1)}, T(0)}; }
  SF_HD static power_slope of(double scale, double norm, double dot) {
    return {power_scale<T>::of(scale, norm), T(dot / (scale * scale))};
  }
  template <class V>
  SF_HD V operator()(V g, V x) const {
    return scaled(g - x * V(along));
  }
};

}  // namespace SF_NS
}  // namespace sf
