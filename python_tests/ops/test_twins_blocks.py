"""Native kernels of the block-diagonal ops against the reference in double precision, over shapes and broadcasts."""

import pytest
import torch
from sf_testing import DTYPES, block_bounds, dot_growth, draw, shadow_memory, unit, wide, within

import semcom_fast as sf
from semcom_fast import reference

ANTENNAS = [(nr, nt) for nr in range(1, 6) for nt in range(1, 6)] + [
    (8, 8),
    (16, 16),
    (64, 8),
    (8, 64),
    (64, 64),
    (5, 16),
    (33, 2),  # past one panel of rows in cache, by tiles of every size
    (35, 3),
    (66, 5),
    (96, 1),
]
SLOTS = (1, 7, 8, 24, 25, 50)
USERS_BLOCKS = ((1, 1), (2, 3), (3, 4), (1, 2))


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


def _operands(batch, u, k, nr, nt, t, dtype, seed=0):
    y = draw(batch, k, nr, t, seed=seed, dtype=dtype)
    h = draw(batch, u, k, nr, nt, seed=seed + 1, dtype=dtype)
    x, dx = (draw(batch, u, k, nt, t, seed=seed + s, dtype=dtype) for s in (2, 3))
    return y, h, x, dx


def _check_all(y, h, x, dx, label):
    """apply, adjoint and score of one set of operands, each entry within its rounding bound."""
    eps, twin = unit(y), 2.0 if y.dtype is torch.complex128 else 1.0  # in double the reference itself rounds
    shadow_memory(*(t.numel() * t.element_size() for t in (y, h, x)))
    yd, hd, xd, dd = wide(y, h, x, dx)
    want = reference.blockdiag_apply(hd, xd)
    size = torch.matmul(hd.abs(), xd.abs()).sum(-4)
    m = h.shape[-4] * h.shape[-1]
    within(sf.blockdiag_apply(h, x), want, eps * twin * dot_growth(m) * size, f"{label} blockdiag_apply")
    want, size = reference.blockdiag_adjoint(hd, yd), torch.matmul(hd.abs().mT, yd.abs().unsqueeze(-4))
    within(sf.blockdiag_adjoint(h, y), want, eps * twin * dot_growth(h.shape[-2]) * size, f"{label} blockdiag_adjoint")
    bounds = block_bounds(y, h, x, dx)
    got, want = sf.likelihood_score(y, h, x, probe=dx), reference.likelihood_score(yd, hd, xd, probe=dd)
    for name in got._fields:
        within(getattr(got, name), getattr(want, name), eps * twin * bounds[name], f"{label} {name}")
    bare = sf.likelihood_score(y, h, x)
    for name in ("score_h", "score_x", "energy"):
        assert torch.equal(getattr(bare, name), getattr(got, name)), f"{name} changes with a probe"


@pytest.mark.parametrize("nr, nt", ANTENNAS, ids=lambda v: str(v))
def test_antennas_and_slots(nr, nt, dtype):
    """Every compiled tile width and remainder: all antenna counts crossed with all slot counts."""
    for i, t in enumerate(SLOTS):
        u, k = USERS_BLOCKS[i % len(USERS_BLOCKS)] if nr * nt < 1000 else (1, 1)
        y, h, x, dx = _operands(2, u, k, nr, nt, t, dtype, seed=i)
        _check_all(y, h, x, dx, f"twin {str(dtype).removeprefix('torch.')}")


@pytest.mark.parametrize("u", [1, 2, 3])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_users_and_blocks(u, k, dtype):
    """Users are packed side by side: every combination of users and blocks, with an odd number of antennas each."""
    y, h, x, dx = _operands(3, u, k, 3, 3, 7, dtype)
    _check_all(y, h, x, dx, f"users {str(dtype).removeprefix('torch.')}")


@pytest.mark.parametrize(
    "lead_y, lead_h, lead_x",
    [((), (), ()), ((2,), (), (2,)), ((), (2,), ()), ((2, 3), (3,), (2, 1)), ((1,), (4,), (4,)), ((2, 1, 2), (3, 1), (1,)),
     ((5,), (1,), (1,))],
)  # fmt: skip
def test_leading_dimensions_broadcast(lead_y, lead_h, lead_x, dtype):
    """No batch, several batch dimensions, and operands shared by the whole batch, as torch broadcasts them."""
    y = draw(*lead_y, 2, 4, 5, seed=1, dtype=dtype)
    h = draw(*lead_h, 2, 2, 4, 3, seed=2, dtype=dtype)
    x, dx = (draw(*lead_x, 2, 2, 3, 5, seed=s, dtype=dtype) for s in (3, 4))
    lead = torch.broadcast_shapes(lead_y, lead_h, lead_x)
    out = sf.likelihood_score(y, h, x, probe=dx)
    assert out.score_h.shape == (*lead, 2, 2, 4, 3) and out.score_x.shape == (*lead, 2, 2, 3, 5)
    assert out.energy.shape == out.probe_y.shape == lead and out.probe_x.shape == (*lead, 2)
    full = [t.expand(*lead, *t.shape[t.ndim - n :]) for t, n in ((y, 3), (h, 4), (x, 4), (dx, 4))]
    want = reference.likelihood_score(*wide(*full[:3]), probe=wide(full[3])[0])
    bounds = block_bounds(*full)
    for name in out._fields:
        bound = 2 * unit(dtype) * bounds[name]
        within(getattr(out, name), getattr(want, name), bound, f"broadcast {str(dtype)[6:]} {name}")
    lead = torch.broadcast_shapes(lead_h, lead_x)
    assert sf.blockdiag_apply(h, x).shape == (*lead, 2, 4, 5)
    assert torch.equal(sf.blockdiag_apply(h, x), sf.blockdiag_apply(h.expand(*lead, 2, 2, 4, 3), x))
    lead = torch.broadcast_shapes(lead_h, lead_y)
    assert sf.blockdiag_adjoint(h, y).shape == (*lead, 2, 2, 3, 5)
    assert torch.equal(sf.blockdiag_adjoint(h, y), sf.blockdiag_adjoint(h, y.expand(*lead, 2, 4, 5)))


@pytest.mark.parametrize("level", ["number", "0-d", "[B]", "[1]", "[B,C]", "[B] aligned left"])
def test_noise_variance_divides_the_scores(level, dtype):
    """A number, a 0-d tensor and tensors over the leading dimensions, aligned from the left; energies stay unscaled."""
    lead = (2, 3) if level in ("[B,C]", "[B] aligned left") else (3,)
    y, h, x, dx = (t.expand(*lead, *t.shape[1:]) if len(lead) == 1 else t.reshape(*lead, *t.shape[1:])
                   for t in _operands(6 if len(lead) == 2 else 3, 2, 2, 4, 2, 5, dtype))  # fmt: skip
    real = y.real.dtype
    values = {
        "number": 0.3, "0-d": torch.tensor(0.3), "[1]": torch.tensor([0.3], dtype=real),
        "[B]": torch.tensor([0.3, 2.0, 7.0], dtype=torch.float64),
        "[B,C]": torch.arange(1.0, 7.0, dtype=real).reshape(2, 3), "[B] aligned left": torch.tensor([0.5, 4.0], dtype=real),
    }  # fmt: skip
    noise_var = values[level]
    column = torch.as_tensor(noise_var, dtype=torch.float64)
    column = column.reshape(column.shape + (1,) * (len(lead) - column.ndim)).expand(lead)
    got, plain = sf.likelihood_score(y, h, x, noise_var, probe=dx), sf.likelihood_score(y, h, x, probe=dx)
    for name in ("score_h", "score_x"):
        want = wide(getattr(plain, name))[0] / column.reshape(*lead, 1, 1, 1, 1)
        # the variance, its reciprocal and the product are rounded once each
        within(getattr(got, name), want, 4 * unit(dtype) * want.abs(), f"noise_var {str(dtype)[6:]}")
    assert torch.equal(got.energy, plain.energy) and torch.equal(got.probe_y, plain.probe_y)


@pytest.mark.parametrize("zero", ["batch", "users", "blocks", "nr", "nt", "slots"])
def test_zero_dimensions(zero, dtype):
    """An empty dimension gives empty or zero results of the right shape, whichever dimension it is."""
    size = dict(b=2, u=2, k=2, nr=3, nt=2, t=4) | {
        {"batch": "b", "users": "u", "blocks": "k", "slots": "t"}.get(zero, zero): 0
    }
    b, u, k, nr, nt, t = size.values()
    y, h, x, dx = _operands(b, u, k, nr, nt, t, dtype)
    shadow_memory(64, 256, 1024)
    for got, want in (
        (sf.blockdiag_apply(h, x), reference.blockdiag_apply(h, x)),
        (sf.blockdiag_adjoint(h, y), reference.blockdiag_adjoint(h, y)),
        *zip(sf.likelihood_score(y, h, x, probe=dx), reference.likelihood_score(y, h, x, probe=dx), strict=True),
    ):
        assert got.dtype is want.dtype
        within(got, want, 1e-5 * want.abs().max() if want.numel() else 0.0, "zero dimensions")


def test_shadow_memory_reaches_new_tensors():
    """The trick of this file works here: torch's allocator hands the poisoned bytes to the next tensors of that size."""
    poisoned = 0
    for _ in range(20):
        shadow_memory(4096)
        poisoned += int(torch.empty(512, dtype=torch.float64).isnan().any())
    assert poisoned > 0


def test_rounding_bound_can_fail():
    """The bounds are tight enough to catch one entry off by one part in 10^5 in complex64."""
    y, h, x, _ = _operands(2, 2, 2, 4, 2, 8, torch.complex64)
    got = sf.likelihood_score(y, h, x).score_h.clone()
    want = reference.likelihood_score(*wide(y, h, x)).score_h
    bound = unit(y) * block_bounds(y, h, x)["score_h"]
    at = int((want.abs() / bound).argmax())
    got.view(-1)[at] *= 1 + 3e-5
    with pytest.raises(AssertionError, match="exceeds its bound"):
        within(got, want, bound, "mutated")
    from sf_testing import worst

    del worst["mutated"]
