// Bindings of the ops of pilot-aided variational Bayes: pilot_posterior_step, renoise, elbo_reduce,
// dirichlet_responsibilities.
#include "bindings.hpp"

namespace semcom {
namespace {
// seed, step, stream, first_item; `renoise` and `elbo_reduce` take the step from the schedule
using philox_at = std::tuple<uint64_t, int64_t, int64_t, int64_t>;
}  // namespace

void bind_pilots(py::module_& m) {
  m.def("cpu_pilot_posterior_step",
        [](const std::tuple<bool, bool, bool>& flags, const sizes5& n, const std::array<uintptr_t, 6>& operands,
           const std::array<py::object, 4>& levels, uintptr_t o) {
          sf::posterior_args a{};
          std::tie(a.is_double, a.x0, a.own_basis) = flags;
          std::tie(a.b, a.e, a.nr, a.nt, a.r) = n;
          a.h = in(operands[0]), a.eps = in(operands[1]), a.weights = in(operands[2]), a.yv = in(operands[3]);
          a.u = in(operands[4]), a.s = in(operands[5]), a.out = out(o), a.pool = sf::torch_pool();
          a.noise_var = as_level(levels[0]), a.alpha_bar = as_level(levels[1]);
          a.beta = as_level(levels[2]), a.lam = as_level(levels[3]);
          return run(sf::kernels().pilot_posterior_step, a);
        });
  m.def("cpu_renoise",
        [](const std::tuple<bool, int>& flags, const sizes3& n, const std::array<uintptr_t, 2>& operands,
           const std::tuple<std::vector<int64_t>, std::vector<double>>& schedule, const philox_at& at, uintptr_t o) {
          sf::renoise_args a{};
          std::tie(a.is_double, a.draw) = flags;
          std::tie(a.b, a.steps, a.n) = n;
          a.h = in(operands[0]), a.noise = in(operands[1]), a.out = out(o), a.pool = sf::torch_pool();
          a.at = std::get<0>(schedule).data(), a.alpha_bar = std::get<1>(schedule).data();
          a.key = std::apply(key, at);
          return run(sf::kernels().renoise, a);
        });
  m.def("cpu_elbo_reduce",
        [](const std::tuple<bool, int, bool>& flags, const sizes6& n, const std::array<uintptr_t, 6>& operands,
           const std::tuple<std::vector<int64_t>, std::vector<double>, std::vector<double>, int64_t>& schedule,
           const py::object& noise_var, const philox_at& at, const std::tuple<uintptr_t, uintptr_t>& outputs) {
          sf::elbo_args a{};
          std::tie(a.is_double, a.draw, a.own_basis) = flags;
          std::tie(a.b, a.steps, a.e, a.nr, a.nt, a.r) = n;
          a.eps = in(operands[0]), a.h = in(operands[1]), a.yv = in(operands[2]), a.u = in(operands[3]);
          a.s = in(operands[4]), a.noise = in(operands[5]), a.noise_var = as_level(noise_var);
          a.at = std::get<0>(schedule).data(), a.alpha_bar = std::get<1>(schedule).data();
          a.w = std::get<2>(schedule).data(), a.tau = std::get<3>(schedule), a.pool = sf::torch_pool();
          a.key = std::apply(key, at);
          a.out_l = out(std::get<0>(outputs)), a.out_d = out(std::get<1>(outputs));
          return run(sf::kernels().elbo_reduce, a);
        });
  m.def("cpu_dirichlet_responsibilities",
        [](bool d, const std::tuple<int64_t, int64_t>& n, const std::array<uintptr_t, 4>& operands, double eta,
           const std::tuple<uintptr_t, uintptr_t>& outputs) {
          sf::dirichlet_args a{};
          a.is_double = d, a.eta = eta, a.pool = sf::torch_pool();
          std::tie(a.b, a.e) = n;
          a.l = in(operands[0]), a.d = in(operands[1]), a.gamma0 = in(operands[2]), a.gamma = in(operands[3]);
          a.rho = out(std::get<0>(outputs)), a.after = out(std::get<1>(outputs));
          return run(sf::kernels().dirichlet_responsibilities, a);
        });
}

}  // namespace semcom
