// pybind11 module `_core`: addresses, sizes, strides and a stream cross this border; torch never does. The Python side
// (semcom_fast/ops) owns every check and every allocation.
#include "bindings.hpp"
#if defined(SF_HAVE_CUDA)
#include "cuda/launch.hpp"
#endif

namespace {

using namespace semcom;

// sizes = (B, U, K, Nr, Nt, T); strides = batch strides of y, h, x, probe in complex entries

sf::block_args block(bool is_double, const sizes6& n) {
  sf::block_args a{};
  a.is_double = is_double;
  std::tie(a.b, a.u, a.k, a.nr, a.nt, a.t) = n;
  a.pool = sf::torch_pool();
  a.bad = -1;
  return a;
}

sf::block_args apply_args(bool is_double, uintptr_t h, uintptr_t x, uintptr_t y, int64_t h_b, int64_t x_b,
                          const sizes6& n) {
  sf::block_args a = block(is_double, n);
  a.h = in(h), a.x = in(x), a.out_y = out(y), a.h_b = h_b, a.x_b = x_b;
  return a;
}

sf::block_args adjoint_args(bool is_double, uintptr_t h, uintptr_t y, uintptr_t x, int64_t h_b, int64_t y_b,
                            const sizes6& n) {
  sf::block_args a = block(is_double, n);
  a.h = in(h), a.y = in(y), a.out_x = out(x), a.h_b = h_b, a.y_b = y_b;
  return a;
}

sf::block_args score_args(bool is_double,
                          const std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t>& inputs,
                          const std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>& strides,
                          const std::tuple<uintptr_t, uintptr_t, uintptr_t>& outputs, const sizes6& n) {
  sf::block_args a = block(is_double, n);
  a.y = in(std::get<0>(inputs)), a.h = in(std::get<1>(inputs)), a.x = in(std::get<2>(inputs));
  a.noise_var = in(std::get<3>(inputs)), a.probe = in(std::get<4>(inputs));
  std::tie(a.y_b, a.h_b, a.x_b, a.noise_var_b, a.probe_b) = strides;
  a.out_h = out(std::get<0>(outputs)), a.out_x = out(std::get<1>(outputs));
  a.energies = static_cast<double*>(out(std::get<2>(outputs)));
  return a;
}

// Not set to zero: most of it stays untouched where kernels need less.
std::unique_ptr<double[]> block_energies(const sf::block_args& a) {
  return std::unique_ptr<double[]>(new double[size_t(a.b * a.k * (2 + a.u))]);
}

// inputs = (y, x, probe, mean, anchor, sample, noise); strides = batch strides of y, x, probe in complex entries;
// outputs = (mean, sample, score_x, energy, probe_x, probe_y); levels = (sigma, sigma_above, zeta, score_var, next_var,
// var); at = (seed, step, stream, first_item)
int64_t channel_step(bool is_double, const sizes6& n, const std::array<uintptr_t, 7>& inputs, const sizes3& strides,
                     const std::array<uintptr_t, 6>& outputs, const std::array<py::handle, 6>& levels, int draw,
                     double scale, const std::tuple<uint64_t, int64_t, int64_t, int64_t>& at) {
  sf::channel_step_args a{};
  sf::block_args& s = a.score = block(is_double, n);
  s.y = in(inputs[0]), s.x = in(inputs[1]), s.probe = in(inputs[2]), s.out_x = out(outputs[2]);
  std::tie(s.y_b, s.x_b, s.probe_b) = strides;
  const auto scratch = block_energies(s);
  s.energies = scratch.get();
  s.energy = out(outputs[3]), s.probe_x = out(outputs[4]), s.probe_y = out(outputs[5]);
  sf::pvd_args& p = a.move;
  p.l = 1, p.b = s.b, p.g = s.u, p.e = 2 * s.k * s.nr * s.nt, p.is_double = is_double;
  p.mean = in(inputs[3]), p.anchor = in(inputs[4]), p.sample = in(inputs[5]), p.noise = in(inputs[6]);
  p.new_mean = out(outputs[0]), p.new_sample = out(outputs[1]);
  p.sigma = as_level(levels[0]), p.sigma_above = as_level(levels[1]), p.zeta = as_level(levels[2]);
  p.score_var = as_level(levels[3]), a.var = as_level(levels[5]);
  p.default_next_var = levels[4].is_none();
  if (!p.default_next_var) p.next_var = as_level(levels[4]);
  p.draw = draw, p.scale = scale;
  p.key = key(std::get<0>(at), std::get<1>(at), std::get<2>(at), std::get<3>(at));
  return run(sf::kernels().pvd_channel_step, a);
}

// flags = (double, rows, m_form, pinv, refuse_zero, shared); sizes = (n, K, M, T, stride of h, alpha_run, items)
using rzf_flags = std::tuple<bool, bool, bool, bool, bool, bool>;

sf::rzf_args rzf(const rzf_flags& flags, const sizes7& n, double scale, uintptr_t h, uintptr_t s, uintptr_t alpha) {
  sf::rzf_args a{};
  std::tie(a.is_double, a.rows, a.m_form, a.pinv, a.refuse_zero, a.shared) = flags;
  std::tie(a.n, a.k, a.m, a.t, a.h_b, a.alpha_run, a.items) = n;
  a.scale = scale, a.h = in(h), a.s = in(s), a.alpha = in(alpha);
  a.pool = sf::torch_pool(), a.bad = a.spoilt = -1;
  return a;
}

using cdl_end = std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t, bool>;

sf::cdl_end end_of(const cdl_end& e) {
  const auto real = [](uintptr_t p) { return static_cast<const double*>(in(p)); };
  return {real(std::get<0>(e)), real(std::get<1>(e)), real(std::get<2>(e)), real(std::get<3>(e)), std::get<4>(e)};
}

// sizes = (rows, rows that share delays, P, F); strides of a path in gains and delays, of a frequency in h; `at` holds
// the offsets of every row's gains, every group's delays and every row's result
sf::cir_args cir(bool is_double, const sizes4& n, uintptr_t gains, uintptr_t delays, uintptr_t frequencies,
                 const sizes3& strides, const std::tuple<uintptr_t, uintptr_t, uintptr_t>& at, uintptr_t h) {
  sf::cir_args a{};
  a.is_double = is_double;
  std::tie(a.rows, a.group, a.p, a.f) = n;
  std::tie(a.gain_p, a.delay_p, a.out_f) = strides;
  a.gains = in(gains), a.delays = in(delays), a.frequencies = static_cast<const double*>(in(frequencies));
  a.gain_at = static_cast<const int64_t*>(in(std::get<0>(at)));
  a.delay_at = static_cast<const int64_t*>(in(std::get<1>(at)));
  a.out_at = static_cast<const int64_t*>(in(std::get<2>(at)));
  a.out = out(h), a.pool = sf::torch_pool(), a.bad = -1;
  return a;
}

std::tuple<int64_t, int64_t, int64_t> run_flagged(void (*kernel)(sf::rzf_args&), sf::rzf_args& a) {
  py::gil_scoped_release release;
  kernel(a);
  return {a.count, a.bad, a.spoilt};
}

// flags = (double, bfloat16 predictions, d per symbol, draw); sizes = (items, rows per item, N, strides of d over rows
// and symbols); inputs = (state, x0, uncond, prev, f, d, noise); outputs = (g, f); levels = (beta_t, beta_s, guidance,
// ratio); choices = (variance top-up, unit RMS, common base); at = (seed, step, stream, first_item)
using waterfill_flags = std::tuple<bool, bool, bool, int>;
using waterfill_inputs = std::array<uintptr_t, 7>;

sf::waterfill_args waterfill(const waterfill_flags& flags, const sizes5& n, const waterfill_inputs& inputs,
                             const std::array<uintptr_t, 2>& outputs, const std::array<py::handle, 4>& levels,
                             const std::array<bool, 3>& choices,
                             const std::tuple<uint64_t, int64_t, int64_t, int64_t>& at) {
  sf::waterfill_args a{};
  std::tie(a.is_double, a.x0_bf16, a.halves, a.draw) = flags;
  std::tie(a.b, a.g, a.n, a.d_row, a.d_symbol) = n;
  const void** slots[] = {&a.state, &a.x0, &a.uncond, &a.prev, &a.f, &a.d, &a.noise};
  for (size_t i = 0; i < 7; ++i) *slots[i] = in(inputs[i]);
  a.out = out(outputs[0]), a.out_f = out(outputs[1]);
  a.beta_t = as_level(levels[0]), a.beta_s = as_level(levels[1]);
  a.guidance = as_level(levels[2]), a.ratio = as_level(levels[3]);
  a.variance_topup = choices[0], a.renorm = choices[1], a.common_base = choices[2];
  a.key = key(std::get<0>(at), std::get<1>(at), std::get<2>(at), std::get<3>(at));
  a.pool = sf::torch_pool(), a.bad = a.joined = -1;
  return a;
}

template <auto Kernel>
void def_waterfill(py::module_& m, const char* name) {
  m.def(name, [](const waterfill_flags& flags, const sizes5& n, const waterfill_inputs& inputs,
                 const std::array<uintptr_t, 2>& outputs, const std::array<py::handle, 4>& levels,
                 const std::array<bool, 3>& choices, const std::tuple<uint64_t, int64_t, int64_t, int64_t>& at) {
    sf::waterfill_args a = waterfill(flags, n, inputs, outputs, levels, choices, at);
    const int64_t bad = run(sf::kernels().*Kernel, a);
    return std::make_pair(bad, a.joined);
  });
}

void bind_waterfill(py::module_& m) {
  def_waterfill<&sf::kernel_table::waterfill_inject>(m, "cpu_waterfill_inject");
  def_waterfill<&sf::kernel_table::waterfill_step>(m, "cpu_waterfill_step");
  def_waterfill<&sf::kernel_table::waterfill_step_authors>(m, "cpu_waterfill_step_authors");
  m.def("cpu_waterfill_equalise", [](bool d, const sizes4& n, uintptr_t y, uintptr_t h, const py::handle& noise_var,
                                     uintptr_t f, uintptr_t level) {
    sf::equalise_args a{};
    a.is_double = d;
    std::tie(a.rows, a.m, a.h_row, a.h_symbol) = n;
    a.y = in(y), a.h = in(h), a.noise_var = as_level(noise_var), a.f = out(f), a.d = out(level);
    a.pool = sf::torch_pool(), a.bad = -1;
    return run(sf::kernels().waterfill_equalise, a);
  });
}

void bind_cpu(py::module_& m) {
  m.def("cpu_blockdiag_apply",
        [](bool d, uintptr_t h, uintptr_t x, uintptr_t y, int64_t h_b, int64_t x_b, const sizes6& n) {
          sf::block_args a = apply_args(d, h, x, y, h_b, x_b, n);
          return run(sf::kernels().blockdiag_apply, a);
        });
  m.def("cpu_blockdiag_adjoint",
        [](bool d, uintptr_t h, uintptr_t y, uintptr_t x, int64_t h_b, int64_t y_b, const sizes6& n) {
          sf::block_args a = adjoint_args(d, h, y, x, h_b, y_b, n);
          return run(sf::kernels().blockdiag_adjoint, a);
        });
  m.def("cpu_likelihood_score",
        [](bool d, const std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t>& inputs,
           const std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>& strides,
           const std::tuple<uintptr_t, uintptr_t, uintptr_t>& outputs, uintptr_t energy, uintptr_t probe_x,
           uintptr_t probe_y, bool h_adjoint, const sizes6& n) {
          sf::block_args a = score_args(d, inputs, strides, outputs, n);
          const auto scratch = block_energies(a);
          a.energies = scratch.get(), a.h_adjoint = h_adjoint;
          a.energy = out(energy), a.probe_x = out(probe_x), a.probe_y = out(probe_y);
          return run(sf::kernels().likelihood_score, a);
        });
  m.def("cpu_philox_normal", [](bool d, uintptr_t o, int64_t items, int64_t reals, double scale, uint64_t seed,
                                int64_t step, int64_t stream, int64_t first_item) {
    sf::normal_args a{d, items, reals, scale, key(seed, step, stream, first_item), out(o), sf::torch_pool()};
    py::gil_scoped_release release;
    sf::kernels().philox_normal(a);
  });
  m.def("cpu_pvd_update",
        [](bool d, const std::tuple<int64_t, int64_t, int64_t, int64_t>& n,
           const std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t>& inputs,
           uintptr_t new_mean, uintptr_t new_sample, const py::handle& sigma, const py::handle& sigma_above,
           const py::handle& zeta, const py::handle& score_var, const py::handle& next_var, int draw, double scale,
           uint64_t seed, int64_t step, int64_t stream, int64_t first_item) {
          sf::pvd_args a{};
          a.is_double = d;
          std::tie(a.l, a.b, a.g, a.e) = n;
          a.mean = in(std::get<0>(inputs)), a.anchor = in(std::get<1>(inputs)), a.sample = in(std::get<2>(inputs));
          a.denoised = in(std::get<3>(inputs)), a.score = in(std::get<4>(inputs)), a.noise = in(std::get<5>(inputs));
          a.new_mean = out(new_mean), a.new_sample = out(new_sample);
          a.sigma = as_level(sigma), a.sigma_above = as_level(sigma_above), a.zeta = as_level(zeta);
          a.score_var = as_level(score_var);
          a.default_next_var = next_var.is_none();
          if (!next_var.is_none()) a.next_var = as_level(next_var);
          a.draw = draw, a.scale = scale, a.key = key(seed, step, stream, first_item), a.pool = sf::torch_pool();
          return run(sf::kernels().pvd_update, a);
        });
  m.def("cpu_pvd_calibrate", [](bool d, int64_t b, int64_t u, int64_t nr, int64_t count, double x_energy,
                                const py::handle& noise_var, uintptr_t var_h, uintptr_t probe_x, uintptr_t probe_y,
                                const std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>& strides, uintptr_t o) {
    sf::calibrate_args a{};
    a.is_double = d, a.b = b, a.u = u, a.nr = nr, a.count = count, a.x_energy = x_energy,
    a.noise_var = as_level(noise_var);
    a.var_h = in(var_h), a.probe_x = in(probe_x), a.probe_y = in(probe_y), a.out = out(o);
    std::tie(a.var_h_b, a.var_h_u, a.probe_x_b, a.probe_x_u, a.probe_y_b) = strides;
    return run(sf::kernels().pvd_calibrate, a);
  });
  m.def("cpu_pvd_channel_step", &channel_step);
  m.def("cpu_power_normalise",
        [](bool d, int64_t b, int64_t n, double scale, uintptr_t z, uintptr_t x, uintptr_t norm) {
          sf::normalise_args a{d, b, n, scale, in(z), nullptr, out(x), out(norm), sf::torch_pool(), -1};
          return run(sf::kernels().power_normalise, a);
        });
  m.def("cpu_power_normalise_vjp",
        [](bool d, int64_t b, int64_t n, double scale, uintptr_t z, uintptr_t norm, uintptr_t g, uintptr_t o) {
          sf::normalise_args a{d, b, n, scale, in(z), in(g), out(o), out(norm), sf::torch_pool(), -1};
          return run(sf::kernels().power_normalise_vjp, a);
        });
  m.def("cpu_rzf_precode", [](const rzf_flags& flags, const sizes7& n, double scale, uintptr_t h, uintptr_t s,
                              uintptr_t alpha, uintptr_t x, uintptr_t norm, uintptr_t info) {
    sf::rzf_args a = rzf(flags, n, scale, h, s, alpha);
    a.out_x = out(x), a.norm = static_cast<double*>(out(norm)), a.info = static_cast<int32_t*>(out(info));
    return run_flagged(sf::kernels().rzf_precode, a);
  });
  m.def("cpu_rzf_precode_vjp",
        [](const rzf_flags& flags, const sizes7& n, double scale, uintptr_t h, uintptr_t s, uintptr_t alpha,
           uintptr_t x, uintptr_t norm, uintptr_t g, uintptr_t dh, uintptr_t ds, uintptr_t da) {
          sf::rzf_args a = rzf(flags, n, scale, h, s, alpha);
          a.x = in(x), a.norm = static_cast<double*>(out(norm)), a.g = in(g);
          a.dh = out(dh), a.ds = out(ds), a.da = static_cast<double*>(out(da));
          return run_flagged(sf::kernels().rzf_precode_vjp, a);
        });
  m.def("cpu_cir_to_ofdm",
        [](bool d, const sizes4& n, uintptr_t gains, uintptr_t delays, uintptr_t frequencies, const sizes3& strides,
           const std::tuple<uintptr_t, uintptr_t, uintptr_t>& at, uintptr_t h) {
          sf::cir_args a = cir(d, n, gains, delays, frequencies, strides, at, h);
          return run(sf::kernels().cir_to_ofdm, a);
        });
  m.def("cpu_cdl_channels", [](bool d, const sizes4& n, uintptr_t gains, uintptr_t rx, uintptr_t tx, uintptr_t h) {
    sf::cdl_args a{};
    a.is_double = d, std::tie(a.b, a.r, a.nr, a.nt) = n;
    a.gains = in(gains), a.rx = in(rx), a.tx = in(tx), a.out = out(h), a.pool = sf::torch_pool();
    return run(sf::kernels().cdl_channels, a);
  });
  // ends: (zenith, sine, cosine, yaw, whether every item has its own yaw) of the receiver and of the transmitter
  m.def("cpu_cdl_rays", [](bool d, const sizes3& n, bool los, bool los_random, uintptr_t factors, const cdl_end& rx_end,
                           const cdl_end& tx_end, uint64_t seed, int64_t stream, int64_t first_item,
                           const std::tuple<uintptr_t, uintptr_t, uintptr_t>& outs) {
    sf::cdl_ray_args a{};
    a.is_double = d, a.los = los, a.los_random = los_random, std::tie(a.b, a.clusters, a.f) = n;
    a.factors = static_cast<const double*>(in(factors)), a.rx_end = end_of(rx_end), a.tx_end = end_of(tx_end);
    a.key = key(seed, 0, stream, first_item), a.pool = sf::torch_pool();
    a.gains = out(std::get<0>(outs)), a.rx = out(std::get<1>(outs)), a.tx = out(std::get<2>(outs));
    return run(sf::kernels().cdl_rays, a);
  });
  m.def("cpu_lmmse_equalise", [](const rzf_flags& flags, const sizes7& n, double scale, uintptr_t h, uintptr_t y,
                                 uintptr_t noise_var, uintptr_t s_hat, uintptr_t noise_eff, uintptr_t info) {
    sf::rzf_args a = rzf(flags, n, scale, h, y, noise_var);
    a.out_x = out(s_hat), a.out_noise = out(noise_eff), a.info = static_cast<int32_t*>(out(info));
    return run_flagged(sf::kernels().lmmse_equalise, a);
  });
}

#if defined(SF_HAVE_CUDA)
// CUDA calls only launch: no synchronisation. `flag` is an optional int32 the kernel lowers to the first bad block.
void bind_cuda(py::module_& m) {
  m.def("cuda_blockdiag_apply",
        [](bool d, uintptr_t h, uintptr_t x, uintptr_t y, int64_t h_b, int64_t x_b, const sizes6& n, int device,
           uintptr_t stream) { sf::cuda::blockdiag_apply(apply_args(d, h, x, y, h_b, x_b, n), device, out(stream)); });
  m.def("cuda_blockdiag_adjoint", [](bool d, uintptr_t h, uintptr_t y, uintptr_t x, int64_t h_b, int64_t y_b,
                                     const sizes6& n, int device, uintptr_t stream) {
    sf::cuda::blockdiag_adjoint(adjoint_args(d, h, y, x, h_b, y_b, n), device, out(stream));
  });
  m.def("cuda_likelihood_score",
        [](bool d, const std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t>& inputs,
           const std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>& strides,
           const std::tuple<uintptr_t, uintptr_t, uintptr_t>& outputs, uintptr_t energy, uintptr_t probe_x,
           uintptr_t probe_y, const sizes6& n, int device, uintptr_t stream) {
          sf::cuda::likelihood_score(score_args(d, inputs, strides, outputs, n), out(energy), out(probe_x),
                                     out(probe_y), device, out(stream));
        });
  m.def(
      "cuda_rzf_scratch",
      [](const std::string& op, const rzf_flags& flags, const sizes7& n, double scale) {
        return sf::cuda::rzf_scratch_bytes(rzf(flags, n, scale, 0, 0, 0), op);
      },
      py::arg("op"), py::arg("flags"), py::arg("sizes"), py::arg("scale") = 0.0);
  m.def("cuda_rzf_precode",
        [](const rzf_flags& flags, const sizes7& n, double scale, uintptr_t h, uintptr_t s, uintptr_t alpha,
           uintptr_t x, uintptr_t norm, uintptr_t info, uintptr_t scratch, int device, uintptr_t stream) {
          sf::rzf_args a = rzf(flags, n, scale, h, s, alpha);
          a.out_x = out(x), a.norm = static_cast<double*>(out(norm)), a.info = static_cast<int32_t*>(out(info));
          sf::cuda::rzf_precode(a, out(scratch), device, out(stream));
        });
  m.def("cuda_rzf_precode_vjp", [](const rzf_flags& flags, const sizes7& n, double scale, uintptr_t h, uintptr_t s,
                                   uintptr_t alpha, uintptr_t x, uintptr_t norm, uintptr_t g, uintptr_t dh,
                                   uintptr_t ds, uintptr_t da, uintptr_t scratch, int device, uintptr_t stream) {
    sf::rzf_args a = rzf(flags, n, scale, h, s, alpha);
    a.x = in(x), a.norm = static_cast<double*>(out(norm)), a.g = in(g);
    a.dh = out(dh), a.ds = out(ds), a.da = static_cast<double*>(out(da));
    sf::cuda::rzf_precode_vjp(a, out(scratch), device, out(stream));
  });
  m.def("cuda_lmmse_equalise",
        [](const rzf_flags& flags, const sizes7& n, double scale, uintptr_t h, uintptr_t y, uintptr_t noise_var,
           uintptr_t s_hat, uintptr_t noise_eff, uintptr_t info, uintptr_t scratch, int device, uintptr_t stream) {
          sf::rzf_args a = rzf(flags, n, scale, h, y, noise_var);
          a.out_x = out(s_hat), a.out_noise = out(noise_eff), a.info = static_cast<int32_t*>(out(info));
          sf::cuda::lmmse_equalise(a, out(scratch), device, out(stream));
        });
  m.def("cuda_cir_to_ofdm",
        [](bool d, const sizes4& n, uintptr_t gains, uintptr_t delays, uintptr_t frequencies, const sizes3& strides,
           const std::tuple<uintptr_t, uintptr_t, uintptr_t>& at, uintptr_t h, int device, uintptr_t stream) {
          sf::cuda::cir_to_ofdm(cir(d, n, gains, delays, frequencies, strides, at, h), device, out(stream));
        });
}
#endif

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "Kernels of semcom_fast behind raw addresses; call the functions of semcom_fast instead.";
  m.attr("compiler") = SF_COMPILER;
  m.def("isa", &sf::isa);
  m.def("isa_built", &sf::isa_built);
  m.def("has_torch_pool", [] { return sf::torch_pool() != nullptr; });
  bind_cpu(m);
  bind_waterfill(m);
  bind_pilots(m);
  bind_matmul(m);
#if defined(SF_HAVE_CUDA)
  m.attr("cuda_built") = true;
  m.attr("cuda_archs") = SF_CUDA_ARCHS;
  m.def("cuda_device_count", &sf::cuda::device_count);
  m.def("cuda_runs_on", &sf::cuda::runs_on);
  bind_cuda(m);
#else
  m.attr("cuda_built") = false;
  m.attr("cuda_archs") = "";
  m.def("cuda_device_count", [] { return 0; });
#endif
}
