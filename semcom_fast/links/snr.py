"""The only place where decibels become a noise variance.

Everywhere else `noise_var` is E|n|^2 per complex entry (docs/conventions.md). Each paper counts the signal power in its
own way, so each system has its own factor between the two.
"""

from typing import TypeVar

from torch import Tensor

Decibels = TypeVar("Decibels", float, Tensor)

SYSTEMS = ("blind_mimosc", "dm_vb", "mu_mimo", "sgd_jscc")


def _signal_power(system: str, users: int, nt: int, power: float, channel_var: float) -> float:
    if system == "blind_mimosc":
        return users * nt * power * channel_var
    if system == "dm_vb":
        return float(nt)
    if system == "mu_mimo":
        return 1.0
    if system == "sgd_jscc":
        return 2.0
    raise ValueError(f"unknown system {system!r}: choose one of {', '.join(SYSTEMS)}")


def noise_var_from_snr_db(
    snr_db: Decibels,
    system: str = "blind_mimosc",
    *,
    users: int = 1,
    nt: int = 1,
    power: float = 1.0,
    channel_var: float = 1.0,
) -> Decibels:
    """The noise variance E|n|^2 per complex entry at which a system's signal-to-noise ratio is `snr_db`.

    noise_var = S 10^(-snr_db/10), where S is the expected signal power that the system's papers divide by:

    =============  ============================  =====================================================
    `system`       S                             what the ratio compares
    =============  ============================  =====================================================
    blind_mimosc   users * nt * power *          E|sum_u H_u X_u|^2 with E|N|^2 per receive antenna, all
                   channel_var                   streams together (the expected, not the realised, ratio)
    dm_vb          nt                            E|H P|^2 with E|N|^2 for pilots of unit power per entry
    mu_mimo        1                             a unit-gain link of unit power with the user's noise
    sgd_jscc       2                             complex symbols of power 2 (1 per real part) with E|n|^2
    =============  ============================  =====================================================

    Args:
        snr_db: ratio in dB; a number, or a tensor of any shape.
        system: one of the names above.
        users, nt: users and transmit antennas per user (blind_mimosc; dm_vb uses nt).
        power: power per transmitted symbol (blind_mimosc).
        channel_var: E|h|^2 per channel entry (blind_mimosc).

    Returns:
        noise_var, of the kind of `snr_db`.

    Raises:
        ValueError: unknown system, or a signal power that is not positive.
    """
    signal = _signal_power(system, users, nt, power, channel_var)
    if not signal > 0:
        raise ValueError(f"the signal power must be positive, got {signal}")
    return signal * 10.0 ** (-snr_db / 10.0)
