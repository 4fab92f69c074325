"""Regularised least-squares channel estimates: nothing is assumed of the channel but its power."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from ..errors import SingularChannelError
from ..ops._checks import non_finite_row, readable
from ..ops.lmmse_channel import lmmse_channel


def check_pilot_link(name: str, y: Tensor, pilots: Tensor) -> None:
    """Received pilots [B,Nr,Np] and pilots [Nt,Np] or [B,Nt,Np] fit each other, and what was received is finite (looked at
    in host memory); ValueError or TypeError else."""
    fits = y.ndim == 3 and pilots.ndim in (2, 3) and pilots.shape[-1] == y.shape[-1]
    if not fits or (pilots.ndim == 3 and pilots.shape[0] != y.shape[0]):
        raise ValueError(
            f"{name} needs y [B,Nr,Np] and pilots [Nt,Np] or [B,Nt,Np], got {tuple(y.shape)} and {tuple(pilots.shape)}"
        )
    if not y.is_complex() or y.dtype is not pilots.dtype:
        raise TypeError(f"{name} needs y and pilots of one complex dtype, got {y.dtype} and {pilots.dtype}")
    if y.is_cpu and readable(y):
        channel = non_finite_row(y)
        if channel is not None:
            raise ValueError(f"{name}: y of channel {channel} holds NaN or Inf")


@contextmanager
def named(estimator: str) -> Iterator[None]:
    """Errors of `lmmse_channel` in the name of the estimator that calls it."""
    try:
        yield
    except SingularChannelError as err:
        raise SingularChannelError(str(err).replace("lmmse_channel", estimator, 1), err.count, err.index) from None
    except ValueError as err:
        raise ValueError(str(err).replace("lmmse_channel", estimator, 1)) from None


def rls_channel(y: Tensor, pilots: Tensor, noise_var: float | Tensor) -> Tensor:
    r"""Regularised least-squares estimate of channels from known pilots.

    Signal model: :math:`Y = H P + N`, N white with variance noise_var. Definition, both forms the same matrix:

    .. math:: \hat H = Y P^H (P P^H + \sigma^2 I)^{-1} = Y (P^H P + \sigma^2 I)^{-1} P^H

    This is LMMSE for channels of i.i.d. CN(0, 1) entries. Pilots of several channels cost one solve, on the smaller of
    Nt and Np: the rows of all the channels are its right-hand sides.

    Args:
        y: received pilots [B,Nr,Np], complex64 or complex128.
        pilots: [Nt,Np] of all channels, or [B,Nt,Np].
        noise_var: E|n|^2 per entry; a number, or a tensor [B].

    Returns:
        h_hat [B,Nr,Nt].

    Raises:
        ValueError: shapes disagree, noise_var < 0; SingularChannelError for pilots without full rank at noise_var = 0.

    Source: "Mixture-of-Experts Diffusion Models for Adaptive Massive MIMO Channel Estimation via Variational Bayesian
    Inference", eq. (42).
    """
    check_pilot_link("rls_channel", y, pilots)
    with named("rls_channel"):
        if pilots.ndim == 2 and not (isinstance(noise_var, Tensor) and noise_var.ndim):
            return lmmse_channel(y.reshape(-1, y.shape[-1]), pilots, noise_var).unflatten(0, y.shape[:2])
        return lmmse_channel(y, pilots.expand(y.shape[0], *pilots.shape[-2:]), noise_var)
