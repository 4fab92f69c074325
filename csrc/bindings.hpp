// What the files of the module `_core` share: how addresses, sizes, levels and random counters cross the border.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <memory>
#include <vector>

#include "cpu/dispatch.hpp"

namespace py = pybind11;

namespace semcom {

inline const void* in(uintptr_t p) { return reinterpret_cast<const void*>(p); }
inline void* out(uintptr_t p) { return reinterpret_cast<void*>(p); }

// A level is a number or (address, is_double, stride_l, stride_b, stride_g); None stays at its default.
inline sf::level as_level(const py::handle& h) {
  if (!py::isinstance<py::tuple>(h)) return {h.cast<double>(), nullptr, 1, 0, 0, 0};
  const py::tuple t = py::reinterpret_borrow<py::tuple>(h);
  return {0.0,
          in(t[0].cast<uintptr_t>()),
          t[1].cast<int32_t>(),
          t[2].cast<int64_t>(),
          t[3].cast<int64_t>(),
          t[4].cast<int64_t>()};
}

// CPU calls return the lowest block or item with a non-finite result, -1 when there is none.
template <class Args>
int64_t run(void (*kernel)(Args&), Args& a) {
  py::gil_scoped_release release;
  kernel(a);
  return a.bad;
}

inline sf::philox_key key(uint64_t seed, int64_t step, int64_t stream, int64_t first_item) {
  return {seed, uint32_t(step), uint32_t(stream), uint64_t(first_item)};
}

using sizes3 = std::tuple<int64_t, int64_t, int64_t>;
using sizes4 = std::tuple<int64_t, int64_t, int64_t, int64_t>;
using sizes5 = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>;
using sizes6 = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;
using sizes7 = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;

void bind_pilots(py::module_& m);  // bind_pilots.cpp
void bind_matmul(py::module_& m);  // bind_matmul.cpp

}  // namespace semcom
