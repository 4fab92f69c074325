// The factor that gives an item its power, as two numbers of type T: one may lie beyond its range where results do not.
#pragma once
#include "lane.hpp"

namespace sf {
inline namespace SF_NS {

template <class T>
struct power_scale {
  T first, second;  // `first` is a power of two unless it is all of the factor

  // scale / |x|. Nothing stays nothing; an energy beyond double gives NaN.
  SF_HD static power_scale of(double scale, double energy) {
    constexpr double most = 0x1p100, least = 1 / most;
    if (energy == 0) return {T(0), T(1)};
    const double f = energy <= largest(0.0) ? scale / __builtin_sqrt(energy) : __builtin_nan("");
    const double capped = f > most ? most : f, first = capped < least ? least : capped;
    return {T(first), T(f / first)};
  }
  SF_HD T operator()(T x) const { return x * first * second; }
};

}  // namespace SF_NS
}  // namespace sf
