// What the host tests of the CUDA bodies share: exactly sized buffers, and the worst error of each body as a fraction
// of its bound.
#pragma once
#include <complex>
#include <cstdio>
#include <limits>
#include <map>

#include "emulate.hpp"

namespace sf::cuda {

using cplx = std::complex<double>;

inline std::map<std::string, double> worst;  // body -> largest error / bound
inline int failures = 0;

template <class T>
struct buffer {  // exactly sized, 16-byte aligned plus `offset` entries, so that a sanitizer sees every stray access
  std::unique_ptr<unsigned char[]> memory;
  T* p;
  int64_t n;
  buffer(int64_t reals, int offset, std::mt19937* random) : n(reals) {
    memory.reset(new unsigned char[size_t(reals) * sizeof(T) + size_t(offset) * 2 * sizeof(T)]);
    p = reinterpret_cast<T*>(memory.get()) + 2 * offset;
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < reals; ++i) p[i] = random ? T(normal(*random)) : std::numeric_limits<T>::quiet_NaN();
  }
  cplx at(int64_t i) const { return {double(p[2 * i]), double(p[2 * i + 1])}; }
};

template <class T>
bool same_bits(const buffer<T>& a, const buffer<T>& b, int64_t from = 0) {
  return std::memcmp(a.p + from, b.p, size_t(b.n) * sizeof(T)) == 0;
}

struct bounded {
  double error = 0;
  void add(cplx got, cplx want, double bound) {
    const double e = got == want ? 0 : std::abs(got - want) / bound;
    keep_worst(error, e);
  }
  static void keep_worst(double& so_far, double e) {  // NaN sticks
    if (so_far == so_far && !(e <= so_far)) so_far = e;
  }
};

inline int report() {
  for (const auto& w : worst) std::printf("%s: worst error / bound %.3f\n", w.first.c_str(), w.second);
  return failures ? 1 : 0;
}

}  // namespace sf::cuda
