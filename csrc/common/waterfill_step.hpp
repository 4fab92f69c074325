// The algebra of water-filling for one real or a pack of them. Levels are noise variances of a unit-power state.
#pragma once
#include "lane.hpp"

namespace sf {
inline namespace SF_NS {

// g_s = a g_t + b x0 from level t to level s: formed in double, rounded once. Equal levels, also 0 and 0: no change.
struct ddim_weights {
  double a, b;
  SF_HD static ddim_weights from(double beta_t, double beta_s) {
    if (beta_t == beta_s) return {1, 0};
    const double a = __builtin_sqrt(beta_s / beta_t);
    return {a, __builtin_sqrt(1 - beta_s) - a * __builtin_sqrt(1 - beta_t)};
  }
};

// keep = sqrt(r), add = sqrt(1-r) with r = (1-beta)/(1-d), 1-r = (beta-d)/(1-d): brings an element of level d < beta to
// beta. Meaningless, but harmless, where d >= beta.
template <class L>
struct injection {
  L keep, add;
  SF_HD static injection from(L root_left, L beta, L d) {  // root_left = sqrt(1-beta)
    const L scale = inverse_root(L(1) - d);
    return {root_left * scale, square_root(beta - d) * scale};
  }
};

// Classifier-free guidance, then the second-order correction: weights of x0, of the unconditional and previous one.
template <class T>
struct prediction_weights {
  T cond, uncond, now, before;
  SF_HD static prediction_weights from(double guidance, double ratio) {
    return {T(guidance), T(1 - guidance), T(1 + 0.5 / ratio), T(0.5 / ratio)};
  }
};

}  // namespace SF_NS
}  // namespace sf
