// Reads a level argument (a number or a strided device array) for one sample, item and group.
#pragma once
#include "../common/kernels.hpp"

namespace sf {
inline namespace SF_NS {

inline double at(const level& v, int64_t l, int64_t b, int64_t g) {
  if (!v.data) return v.value;
  const int64_t i = l * v.l + b * v.b + g * v.g;
  return v.is_double ? static_cast<const double*>(v.data)[i] : double(static_cast<const float*>(v.data)[i]);
}

}  // namespace SF_NS
}  // namespace sf
