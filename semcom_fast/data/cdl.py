"""38.901 clustered delay line channels between two arrays: rays, exact moments, random orientations."""

import math

import torch
from torch import Tensor

from ..ops import _cdl_rays
from ..ops._cdl_rays import CDLRays
from ..reference import cdl_steering

__all__ = ["CDLRays", "cdl_moments", "cdl_rays", "uniform_yaw"]


def cdl_rays(
    profile: str,
    batch: int,
    *,
    seed: int,
    delay_spread: float = 30e-9,
    los_phase: str = "fixed",
    first_item: int = 0,
    device: torch.device | str = "cpu",
) -> CDLRays:
    """The rays that :func:`semcom_fast.cdl_channels` draws for the same arguments, to look at or to change.

    Words: channel b takes the Philox words of item first_item + b in stream 9, step 0, in order. A cluster uses 80: the
    phases of its 20 rays, u = ((w >> 8) + 1/2) 2^-24 turns, then 20 keys for each of the zenith of departure, the
    azimuth of arrival and the zenith of arrival; ray m has the m-th offset in azimuth of departure and, in the others,
    the offset whose key is the m-th smallest. The word after the last cluster is the random phase of a specular path.

    Args:
        profile: "A" .. "E", or "CDL-A" .. "CDL-E".
        batch: channels B.
        seed: of the Philox words.
        delay_spread: RMS delay spread in seconds.
        los_phase: "fixed" or "random" phase of the specular path.

    Returns:
        CDLRays of float64 tensors [B,R] (amplitude and delay [1,R]): 20 rays per cluster, then the specular path.
    """
    letter, _ = _cdl_rays.profile_of(profile)
    _cdl_rays.require_choice("los_phase", los_phase, _cdl_rays.LOS_PHASES)
    drawn = _cdl_rays.draw(letter, batch, seed, first_item, los_phase, device)
    return _cdl_rays.rays_of(letter, drawn, delay_spread)


def uniform_yaw(count: int, half_width: float, *, seed: int, first_item: int = 0, end: str = "tx") -> Tensor:
    """Yaw angles uniform on (-half_width, half_width) radians, float64 [count], to go with channels of the same items.

    Philox stream 9, step 1, word 0 for end "tx" and word 1 for "rx": independent of each other and of the rays.
    """
    if end not in ("tx", "rx"):
        raise ValueError(f'uniform_yaw: end must be "tx" or "rx", got {end!r}')
    words = _cdl_rays.words_of(count, 4, seed, first_item, 1, "cpu")[:, int(end == "rx")]
    return (2 * _cdl_rays.uniform(words) - 1) * half_width


def _outer_mean(turns: Tensor, n: int) -> Tensor:
    """Average of a a^H over plane waves of the given cycles per element (any shape)."""
    a = cdl_steering(turns.flatten(), n)
    return a.mT @ a.conj() / a.shape[0]


def cdl_moments(
    profile: str, *, nr: int, nt: int, array: str = "horizontal", los_phase: str = "fixed"
) -> tuple[Tensor, Tensor]:
    r"""Exact mean and covariance of the vector h.flatten() (row-major) of unrotated half-wavelength channels.

    The rays' phases are uniform and independent, so cluster c of power p_c contributes :math:`p_c R_{rx} \otimes R_{tx}`
    with R the average of :math:`a a^H` over the 400 couplings of an azimuth and a zenith offset at that end. A specular
    path is the mean, or with a random phase one more term of rank one. Neither moment depends on frequency or delays.

    Returns:
        mean [nr*nt] and covariance [nr*nt,nr*nt], complex128, with |mean|^2 + trace(covariance) = nr*nt.
    """
    _cdl_rays.require_choice("array", array, _cdl_rays.ARRAYS)
    _cdl_rays.require_choice("los_phase", los_phase, _cdl_rays.LOS_PHASES)
    letter, _ = _cdl_rays.profile_of(profile)
    table, still = _cdl_rays.clusters(letter), torch.zeros((), dtype=torch.float64)
    ends = ((1, 3, nr), (0, 2, nt))  # azimuth, zenith and antennas of arrival and of departure
    covariance = torch.zeros(nr * nt, nr * nt, dtype=torch.complex128)
    for c, power in enumerate(table.powers.tolist()):
        pairs = [
            _cdl_rays.progression(table.angles[azimuth, c].unsqueeze(-1), table.angles[zenith, c], still, array, 0.5)
            for azimuth, zenith, _ in ends
        ]
        sides = [_outer_mean(turns, n) for turns, (_, _, n) in zip(pairs, ends, strict=True)]
        covariance += power * torch.kron(*sides)
    mean = torch.zeros(nr * nt, dtype=torch.complex128)
    if table.los_power:
        at = torch.tensor(table.los_angles, dtype=torch.float64)
        turns = [_cdl_rays.progression(at[azimuth], at[zenith], still, array, 0.5) for azimuth, zenith, _ in ends]
        sides = [cdl_steering(t, n) for t, (_, _, n) in zip(turns, ends, strict=True)]
        path = math.sqrt(table.los_power) * torch.kron(*sides)
        if los_phase == "fixed":
            mean = path
        else:
            covariance += torch.outer(path, path.conj())
    return mean, covariance
