// One inner iteration of parallel variational diffusion for one real entry, and the coefficients it shares.
#pragma once
#include "lane.hpp"

namespace sf {
inline namespace SF_NS {

// mean + zeta*[(anchor - sample) + rho*(denoised - sample) + D*score/score_var], D = s_{j+1}^2 - s_j^2, rho = D/s_j^2.
// Formed in double, rounded once. `share` is 1/L when L samples are averaged.
template <class T>
struct pvd_coefficients {
  T pull, rho, score;
  SF_HD static pvd_coefficients from(double sigma, double above, double zeta, double score_var, double share) {
    const double delta = above * above - sigma * sigma, z = zeta * share;
    return {T(z), T(z * delta / (sigma * sigma)), T(z * delta / score_var)};
  }
};

// lambda_j with v0 = 0: the variance of the next draw unless the caller gives one
SF_HD double pvd_default_next_var(double sigma, double above) {
  return sigma * sigma * (above * above - sigma * sigma) / (above * above);
}

// The denoiser of an i.i.d. Gaussian channel, E[h|x] = w x with w = v/(v + sigma^2). It is linear and self-adjoint, so
// the score of the sample is w times that of the denoised channel: score_var/w in place of score_var.
SF_HD double gaussian_weight(double var, double sigma) { return var / (var + sigma * sigma); }

template <class L, class T>
SF_HD L pvd_increment(const pvd_coefficients<T>& c, L anchor, L sample, L denoised, L score) {
  return (anchor - sample) * L(c.pull) + (denoised - sample) * L(c.rho) + score * L(c.score);
}

}  // namespace SF_NS
}  // namespace sf
