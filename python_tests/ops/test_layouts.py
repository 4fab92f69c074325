"""Strided, transposed, lazily conjugated or negated, and misaligned operands give the results of plain copies."""

import pytest
import torch
from sf_testing import draw, same_bits, unit, within

import semcom_fast as sf


def _strided(t):
    return torch.stack([t, t * 3], -1)[..., 0]


def _transposed(t):
    return t.mT.contiguous().mT


def _offset(t):
    flat = torch.cat([t.new_zeros(1), t.reshape(-1)])
    return flat[1:].view(t.shape)


def _permuted(t):
    return t.movedim(0, -1).contiguous().movedim(-1, 0)


def _reversed_twice(t):
    return t.flip(0).flip(0)


VIEWS = {
    "strided": _strided,
    "transposed": _transposed,
    "offset": _offset,
    "permuted": _permuted,
    "conj": lambda t: t.conj().resolve_conj().conj(),
    "adjoint view": lambda t: t.mH.contiguous().mH,
    "neg": lambda t: torch._neg_view(-t),
    "conj of neg": lambda t: torch._neg_view(-t.conj().resolve_conj()).conj(),
    "negative imaginary": lambda t: torch.complex(t.real, t.conj().imag.neg()),
}
REAL_VIEWS = {k: VIEWS[k] for k in ("strided", "transposed", "offset", "permuted", "neg")} | {
    "imag of conj": lambda t: torch.complex(torch.zeros_like(t), -t).conj().imag,
    "real part": lambda t: torch.complex(t, t * 2).real,
}


def test_views_are_what_they_claim():
    """The lazily conjugated and negated cases really carry their bits, and none changes the values."""
    t = draw(2, 3, 4)
    assert VIEWS["conj"](t).is_conj() and VIEWS["adjoint view"](t).is_conj() and VIEWS["neg"](t).is_neg()
    assert VIEWS["conj of neg"](t).is_conj() and VIEWS["conj of neg"](t).is_neg()
    assert REAL_VIEWS["imag of conj"](t.real).is_neg()
    for view in VIEWS.values():
        assert torch.equal(view(t), t)
    for view in REAL_VIEWS.values():
        assert torch.equal(view(t.real.clone()), t.real)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("view", VIEWS)
def test_block_ops(view, dtype):
    """Every operand of the three block ops in turn, and all at once."""
    y, h = draw(2, 3, 4, 7, seed=1, dtype=dtype), draw(2, 2, 3, 4, 3, seed=2, dtype=dtype)
    x, dx = (draw(2, 2, 3, 3, 7, seed=s, dtype=dtype) for s in (3, 4))
    plain = [y, h, x, dx]
    for mask in ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (1, 1, 1, 1)):
        yv, hv, xv, dv = (VIEWS[view](t) if m else t for t, m in zip(plain, mask, strict=True))
        same_bits(sf.blockdiag_apply(hv, xv), sf.blockdiag_apply(h, x), "apply")
        same_bits(sf.blockdiag_adjoint(hv, yv), sf.blockdiag_adjoint(h, y), "adjoint")
        got, want = sf.likelihood_score(yv, hv, xv, probe=dv), sf.likelihood_score(y, h, x, probe=dx)
        for name, a, b in zip(got._fields, got, want, strict=True):
            same_bits(a, b, name)


@pytest.mark.parametrize("view", REAL_VIEWS)
def test_noise_variance_views(view):
    """The level tensor of likelihood_score may be a view too."""
    y, h, x = draw(4, 3, 4, 7), draw(4, 2, 3, 4, 3), draw(4, 2, 3, 3, 7)
    level = torch.tensor([[0.5, 0.25], [1.5, 3.0]], dtype=torch.float64)
    pair = [t.reshape(2, 2, *t.shape[1:]) for t in (y, h, x)]
    got, want = sf.likelihood_score(*pair, REAL_VIEWS[view](level)), sf.likelihood_score(*pair, level)
    same_bits(got.score_h, want.score_h)
    same_bits(got.score_x, want.score_x)


@pytest.mark.parametrize("view, complex_state", [(v, True) for v in VIEWS] + [(v, False) for v in REAL_VIEWS])
def test_pvd_update(view, complex_state):
    """Every operand of pvd_update in turn, complex and real."""
    views = VIEWS if complex_state else REAL_VIEWS
    dtype = torch.complex128 if complex_state else torch.float64
    plain = [draw(2, 3, 4, 5, seed=s, dtype=dtype) for s in range(6)]
    levels = {"sigma": 0.5, "sigma_above": 0.7, "zeta": 0.1}
    want = sf.pvd_update(*plain[:5], **levels, noise=plain[5])
    for i in range(6):
        ops = [views[view](t) if i == j else t for j, t in enumerate(plain)]
        got = sf.pvd_update(*ops[:5], **levels, noise=ops[5])
        same_bits(got[0], want[0], f"new_mean, operand {i}")
        same_bits(got[1], want[1], f"new_sample, operand {i}")


@pytest.mark.parametrize("name", ["sigma", "sigma_above", "zeta", "score_var", "next_var"])
@pytest.mark.parametrize("view", REAL_VIEWS)
def test_pvd_update_levels(view, name):
    """Level tensors over [B,U] honour strides and the lazy negative bit."""
    plain = [draw(2, 3, 4, 5, seed=s) for s in range(6)]
    levels = {"sigma": 0.5, "sigma_above": 2.7, "zeta": 0.1}
    tensor = torch.linspace(0.6, 2.5, 6, dtype=torch.float64).reshape(2, 3)
    got = sf.pvd_update(*plain[:5], **(levels | {name: REAL_VIEWS[view](tensor)}), noise=plain[5])
    want = sf.pvd_update(*plain[:5], **(levels | {name: tensor}), noise=plain[5])
    same_bits(got[0], want[0])
    same_bits(got[1], want[1])


@pytest.mark.parametrize("which", ["noise_var", "var_h", "probe_x", "probe_y"])
@pytest.mark.parametrize("view", REAL_VIEWS)
def test_pvd_calibrate(view, which):
    """All four operands of pvd_calibrate, strided and negated."""
    one, two = (draw(3, *shape, dtype=torch.float64).abs() + 0.1 for shape in ((), (2,)))
    given = {"noise_var": one, "var_h": two, "probe_x": two + 1, "probe_y": one + 1}
    seen = dict(given)
    if view != "transposed" or given[which].ndim > 1:
        seen[which] = REAL_VIEWS[view](given[which])
    size = {"x_energy": 12.0, "nr": 4, "count": 30}
    want = sf.pvd_calibrate(**given, **size)
    # strides may select another contraction of multiply and add: at most one rounding per term of the sum
    within(sf.pvd_calibrate(**seen, **size), want, 8 * unit(want) * want, "pvd_calibrate views")


@pytest.mark.parametrize("view", VIEWS)
def test_power_normalise_and_gradient(view):
    """Views of the codeword and of the cotangent."""
    z, g = draw(2, 3, 4, 5, seed=1), draw(2, 3, 4, 5, seed=2)
    leaf, other = z.clone().requires_grad_(True), z.clone().requires_grad_(True)
    x, norm = sf.power_normalise(VIEWS[view](leaf))
    x_want, norm_want = sf.power_normalise(other)
    same_bits(x.detach(), x_want.detach())
    same_bits(norm.detach(), norm_want.detach())
    (got,) = torch.autograd.grad(x, leaf, VIEWS[view](g))
    (want,) = torch.autograd.grad(x_want, other, g)
    assert torch.equal(got, want)


@pytest.mark.parametrize("view", VIEWS)
def test_gradients_through_views(view):
    """Cotangents may be views: gradients of likelihood_score against those of plain cotangents."""
    y, h, x = draw(2, 3, 4, 7, seed=1), draw(2, 2, 3, 4, 3, seed=2), draw(2, 2, 3, 3, 7, seed=3)
    leaves = [t.clone().requires_grad_(True) for t in (y, h, x)]
    out = sf.likelihood_score(*leaves)
    cotangents = [draw(*t.shape, seed=9) for t in out[:2]]
    want = torch.autograd.grad(out[:2], leaves, cotangents, retain_graph=True)
    got = torch.autograd.grad(out[:2], leaves, [VIEWS[view](g) for g in cotangents])
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
