"""RLS and LASSO from known pilots: exact values, both forms, the optimality conditions, bad input."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sf_testing import draw, within

from semcom_fast import reference
from semcom_fast.baselines.lasso import lasso_channel
from semcom_fast.baselines.rls import rls_channel
from semcom_fast.errors import SingularChannelError

GOLDEN = Path(__file__).parents[1] / "golden" / "dm_vb.npz"


@pytest.fixture(scope="module")
def exact() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN) as file:
        return {k: torch.from_numpy(np.asarray(v)) for k, v in file.items() if v.dtype.kind in "fci"}


def _qpsk(nt: int, slots: int, seed: int = 0, dtype=torch.complex128) -> torch.Tensor:
    signs = draw(nt, slots, seed=seed)
    return (torch.complex(signs.real.sign(), signs.imag.sign()) * 0.5**0.5).to(dtype)


# ------------------------------------------------------------------------------------------------------- RLS


def test_rls_golden_values(exact) -> None:
    got = rls_channel(exact["y"], exact["pilots"], float(exact["noise_var"]))
    # one solve with P^H P + noise_var I of 9 slots: its condition number bounds the growth
    gram = exact["pilots"].mH @ exact["pilots"] + exact["noise_var"] * torch.eye(9, dtype=torch.float64)
    bound = 9 * float(torch.linalg.cond(gram)) * 2.0**-53 * float(exact["rls"].abs().max())
    within(got, exact["rls"], bound, "rls golden")


@pytest.mark.parametrize(("nt", "slots"), [(16, 9), (6, 6), (4, 11)])
def test_rls_both_forms_agree(nt: int, slots: int) -> None:
    y, p, noise_var = draw(3, 4, slots, seed=1), _qpsk(nt, slots), 0.3
    got = rls_channel(y, p, noise_var)
    antennas = y @ p.mH @ torch.linalg.inv(p @ p.mH + noise_var * torch.eye(nt, dtype=torch.float64))
    slots_form = y @ torch.linalg.inv(p.mH @ p + noise_var * torch.eye(slots, dtype=torch.float64)) @ p.mH
    # condition numbers stay below (sum |p|^2 + noise_var)/noise_var
    bound = 4 * max(nt, slots) * (nt * slots / noise_var + 1) * 2.0**-53 * float(got.abs().max())
    within(got, antennas, bound, "rls, antennas' form")
    within(got, slots_form, bound, "rls, slots' form")


def test_rls_takes_pilots_and_noise_of_each_channel() -> None:
    y, p = draw(3, 4, 9, seed=1), torch.stack([_qpsk(16, 9, seed) for seed in range(3)])
    noise_var = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    got = rls_channel(y, p, noise_var)
    one = [rls_channel(y[b : b + 1], p[b], float(noise_var[b])) for b in range(3)]
    torch.testing.assert_close(got, torch.cat(one), rtol=1e-12, atol=1e-13)
    shared = rls_channel(y, p[0], noise_var)
    torch.testing.assert_close(shared[1:2], rls_channel(y[1:2], p[0], 1.0), rtol=1e-12, atol=1e-13)


def test_rls_is_the_definition_in_single_precision() -> None:
    y, p = draw(5, 16, 38, seed=1, dtype=torch.complex64), _qpsk(64, 38, dtype=torch.complex64)
    want = reference.lmmse_channel(y.to(torch.complex128), p.to(torch.complex128), 0.64)
    got = rls_channel(y, p, 0.64)
    assert got.dtype is torch.complex64
    within(got, want, 38 * 2.0**-24 * 300 * float(want.abs().max()), "rls complex64")  # condition number below 300


def test_rls_of_noiseless_full_pilots_is_the_channel() -> None:
    h, p = draw(2, 4, 6, seed=3), _qpsk(6, 9, seed=4)
    torch.testing.assert_close(rls_channel(h @ p, p, 0.0), h, rtol=1e-11, atol=1e-11)
    with pytest.raises(SingularChannelError, match=r"^rls_channel: "):
        rls_channel(h @ p[:, :3], p[:, :3].repeat(1, 1) * 0, 0.0)


# ----------------------------------------------------------------------------------------------------- LASSO


def _angular(n: int, oversampling: int) -> torch.Tensor:
    """DFT columns of unit norm, written out anew."""
    k = torch.arange(n * oversampling, dtype=torch.float64)
    i = torch.arange(n, dtype=torch.float64)[:, None]
    return torch.exp(-2j * torch.pi * i * k / (n * oversampling)) / n**0.5


@pytest.mark.parametrize("oversampling", [1, 4])
@pytest.mark.parametrize("each", [False, True], ids=["shared", "each"])
def test_lasso_optimality(oversampling: int, each: bool) -> None:
    """KKT: D_r^H (Y - H P) P^H D_t = mu x/|x| on the support, and at most mu in modulus off it."""
    nr, nt, slots, batch = 4, 8, 6, 5
    p = torch.stack([_qpsk(nt, slots, seed) for seed in range(batch)]) if each else _qpsk(nt, slots)
    y = draw(batch, nr, nt, seed=1) @ p + 0.3 * draw(batch, nr, slots, seed=2)
    mu = torch.linspace(0.5, 3.0, batch, dtype=torch.float64) if each else 1.2
    h, info = lasso_channel(y, p, 0.09, mu=mu, oversampling=oversampling, iterations=20000, tolerance=1e-11,
                         return_info=True)  # fmt: skip
    x, d_r, d_t = info.x, _angular(nr, oversampling), _angular(nt, oversampling)
    assert info.iterations < 20000, "converged"
    torch.testing.assert_close(h, d_r @ x @ d_t.mH, rtol=1e-12, atol=1e-12)
    gradient = d_r.mH @ (y - h @ p) @ p.mH @ d_t
    mus = torch.as_tensor(mu, dtype=torch.float64).reshape(-1, 1, 1).expand(x.shape)
    assert float((gradient.abs() - mus).max()) < 1e-8
    on = x.abs() > 1e-9
    assert 0.02 < float(on.double().mean()) < 0.9, "neither empty nor full"
    assert float((gradient - mus * x / x.abs())[on].abs().max()) < 1e-7


@pytest.mark.parametrize(("snr_db", "factor"), [(-20, 2.0), (-10, 2.0), (0, 1.0), (10, 0.5), (15, 2**-1.5), (30, 0.25)])
def test_lasso_default_penalty(snr_db: float, factor: float) -> None:
    """clip(2^(-SNR/10), 1/4, 2) deviations of the noise in the angular domain."""
    nr, nt, slots, noise_var = 4, 16, 9, 16 * 10 ** (-snr_db / 10)
    p = _qpsk(nt, slots)
    noise = draw(2000, nr, slots, seed=5) * noise_var**0.5
    deviation = (_angular(nr, 1).mH @ noise @ p.mH @ _angular(nt, 1)).abs().square().mean().sqrt()
    assert float(deviation) == pytest.approx((noise_var * slots) ** 0.5, rel=0.01)
    y = noise[:3] + draw(3, nr, nt, seed=6) @ p
    got = lasso_channel(y, p, noise_var, iterations=3000, tolerance=1e-9)
    want = lasso_channel(y, p, noise_var, mu=factor * (noise_var * slots) ** 0.5, iterations=3000, tolerance=1e-9)
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)
    mixed = lasso_channel(y, p, torch.tensor([noise_var] * 3), iterations=3000, tolerance=1e-9)
    torch.testing.assert_close(mixed, got, rtol=1e-5, atol=1e-6)
    assert bool((lasso_channel(y, p, noise_var, mu=1e6) == 0).all()), "a penalty above every correlation leaves nothing"


def test_lasso_channels_do_not_meet() -> None:
    p, y = _qpsk(16, 9), draw(4, 4, 9, seed=7)
    whole = lasso_channel(y, p, 0.2, iterations=50, tolerance=0.0)
    parts = torch.cat([lasso_channel(part, p, 0.2, iterations=50, tolerance=0.0) for part in y.split(1)])
    torch.testing.assert_close(whole, parts, rtol=1e-11, atol=1e-12)


def test_lasso_finds_a_sparse_channel() -> None:
    """Three directions of a 8x32 channel, 20 slots, 20 dB: ten times better than RLS."""
    x = torch.zeros(6, 8, 32, dtype=torch.complex128)
    for b in range(6):
        places = torch.randperm(256, generator=torch.Generator().manual_seed(b))[:3]
        x[b].view(-1)[places] = 9 * draw(3, seed=b).sgn()
    h = _angular(8, 1) @ x @ _angular(32, 1).mH
    p, noise_var = _qpsk(32, 20), 0.01 * 32
    y = h @ p + noise_var**0.5 * draw(6, 8, 20, seed=9)

    def error(estimate: torch.Tensor) -> float:
        return float(((estimate - h).abs().square().sum((1, 2)) / h.abs().square().sum((1, 2))).mean())

    assert error(lasso_channel(y, p, noise_var)) < 0.1 * error(rls_channel(y, p, noise_var))


# ------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("estimate", [rls_channel, lasso_channel])
def test_shapes_and_kinds(estimate) -> None:
    y, p = draw(3, 4, 9), _qpsk(16, 9)
    for bad in ((y, p[:, :8]), (y[0], p), (y, p.expand(2, 16, 9)), (y, p[None, None])):
        with pytest.raises(ValueError, match=r"needs y \[B,Nr,Np\]"):
            estimate(*bad, 0.1)
    for worse in ((y, p.to(torch.complex64)), (y.real, p.real)):
        with pytest.raises(TypeError, match="one complex dtype"):
            estimate(*worse, 0.1)
    with pytest.raises(ValueError, match="noise_var"):
        estimate(y, p, -1.0)
    assert estimate(y[:0], p, 0.1).shape == (0, 4, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mu": -1.0}, "mu must be"),
        ({"mu": torch.ones(2)}, r"mu must be a number >= 0 or \[3\]"),
        ({"oversampling": 0}, "at least 1, got 0 and 300"),
        ({"iterations": 0}, "at least 1"),
    ],
)
def test_lasso_arguments(changes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lasso_channel(draw(3, 4, 9), _qpsk(16, 9), 0.1, **changes)


@pytest.mark.parametrize("fill", [0.0, float("nan")])
def test_lasso_refuses_pilots_without_content(fill: float) -> None:
    with pytest.raises(ValueError, match="finite and not all zero"):
        lasso_channel(draw(3, 4, 9), torch.full((16, 9), fill, dtype=torch.complex128), 0.1)


@pytest.mark.parametrize("estimate", [rls_channel, lasso_channel])
def test_received_pilots_that_are_not_finite(estimate) -> None:
    """The channel is named, not an estimate returned."""
    y, pilots = draw(3, 4, 5), _qpsk(6, 5)
    y[1, 2, 0] = complex(float("nan"), 0)
    with pytest.raises(ValueError, match=rf"{estimate.__name__}: y of channel 1 holds NaN or Inf"):
        estimate(y, pilots, 0.1)
