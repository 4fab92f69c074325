// The part of `_core` behind mimo_matmul: shapes and strides as torch has them become at most four leading dimensions.
#include "bindings.hpp"
#if defined(SF_HAVE_CUDA)
#include "cuda/launch.hpp"
#endif

namespace semcom {
namespace {

struct array {  // address, shape, strides, whether the entries are to be conjugated, and the matrix to be transposed
  const void* p;
  std::vector<int64_t> shape, stride;
  bool conj, transpose;
  int64_t lead(size_t from_right) const {  // stride of a leading dimension counted from the right; 0 where it repeats
    const size_t n = shape.size();
    return from_right + 3 > n || shape[n - 3 - from_right] == 1 ? 0 : stride[n - 3 - from_right];
  }
};

// A shape or strides. pybind11's own conversion walks any sequence, at half a microsecond each.
std::vector<int64_t> integers(const py::handle& h) {
  if (!PyTuple_Check(h.ptr())) return h.cast<std::vector<int64_t>>();
  std::vector<int64_t> out(size_t(PyTuple_GET_SIZE(h.ptr())));
  for (size_t i = 0; i < out.size(); ++i) out[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(h.ptr(), Py_ssize_t(i)));
  if (PyErr_Occurred()) throw py::error_already_set();
  return out;
}

array as_array(const py::tuple& t) {
  return {in(t[0].cast<uintptr_t>()), integers(t[1]), integers(t[2]), t[3].cast<bool>(), t[4].cast<bool>()};
}

// Neighbouring dimensions that both operands walk with one stride are one. false: more than four are left.
bool leading(const std::vector<int64_t>& out, const array& a, const array& b, sf::matmul_args& g) {
  g.dims = 0;
  for (size_t d = 0; d + 2 < out.size(); ++d) {
    const int64_t size = out[d], at = out.size() - 3 - d, sa = a.lead(size_t(at)), sb = b.lead(size_t(at));
    if (size == 1) continue;
    const int64_t last = g.dims - 1;
    if (last >= 0 && g.a_step[last] == size * sa && g.b_step[last] == size * sb) {
      g.size[last] *= size, g.a_step[last] = sa, g.b_step[last] = sb;
      continue;
    }
    if (g.dims == 4) return false;
    g.size[g.dims] = size, g.a_step[g.dims] = sa, g.b_step[g.dims] = sb, ++g.dims;
  }
  if (g.dims == 0) g.size[0] = 1, g.a_step[0] = g.b_step[0] = 0, g.dims = 1;
  return true;
}

// `shape` is the result's; it is contiguous.
bool matmul(bool is_double, const array& a, const array& b, uintptr_t o, const std::vector<int64_t>& shape,
            sf::matmul_args& g) {
  const size_t na = a.shape.size(), nb = b.shape.size();
  g.is_double = is_double, g.conj_a = a.conj, g.conj_b = b.conj;
  g.a = a.p, g.b = b.p, g.out = out(o), g.pool = sf::torch_pool(), g.bad = -1;
  g.m = shape[shape.size() - 2], g.n = shape[shape.size() - 1], g.k = a.shape[a.transpose ? na - 2 : na - 1];
  g.a_row = a.stride[na - 2], g.a_col = a.stride[na - 1], g.b_row = b.stride[nb - 2], g.b_col = b.stride[nb - 1];
  if (a.transpose) std::swap(g.a_row, g.a_col);
  if (b.transpose) std::swap(g.b_row, g.b_col);
  return leading(shape, a, b, g);
}

}  // namespace

// a and b are (address, shape, strides, conjugate, transpose). -2: too many leading dimensions to walk.
void bind_matmul(py::module_& m) {
  m.def("cpu_mimo_matmul",
        [](bool d, const py::tuple& a, const py::tuple& b, uintptr_t o, const py::tuple& shape) -> int64_t {
          sf::matmul_args g{};
          return matmul(d, as_array(a), as_array(b), o, integers(shape), g) ? run(sf::kernels().mimo_matmul, g) : -2;
        });
  m.def("cpu_mimo_matmul_check", [](bool d, uintptr_t o, int64_t items, int64_t rows, int64_t cols) {
    sf::matmul_args g{};
    g.is_double = d, g.size[0] = items, g.m = rows, g.n = cols, g.out = out(o), g.pool = sf::torch_pool();
    return run(sf::kernels().mimo_matmul_check, g);
  });
#if defined(SF_HAVE_CUDA)
  m.def("cuda_mimo_matmul",
        [](bool d, const py::tuple& a, const py::tuple& b, uintptr_t o, const std::vector<int64_t>& shape, int device,
           uintptr_t stream) -> int64_t {
          sf::matmul_args g{};
          if (!matmul(d, as_array(a), as_array(b), o, shape, g)) return -2;
          sf::cuda::mimo_matmul(g, device, out(stream));
          return -1;
        });
#endif
}

}  // namespace semcom
