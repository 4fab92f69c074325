"""The algebra of one inner iteration of parallel variational diffusion, shared by the kernels that move means."""

import triton
import triton.language as tl


@triton.jit
def differences(sigma2, above):
    """D = sigma_above^2 - sigma^2 and rho = D/sigma^2."""
    delta = above * above - sigma2
    return delta, delta / sigma2


@triton.jit
def between(sigma2, above, delta):
    """sigma^2 D/sigma_above^2, the variance of a draw at sigma given the level above."""
    return sigma2 * delta / (above * above)


@triton.jit
def pull(anchor, x, denoised, score, rho, weight):
    """(anchor - sample) + rho (denoised - sample) + weight score."""
    return tl.fma(weight, score, tl.fma(rho, denoised - x, anchor - x))
