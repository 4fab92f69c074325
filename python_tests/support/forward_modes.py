"""Forward-mode derivatives of a function of tensors against central differences."""

import torch
from sf_testing import draw, within
from torch.autograd import forward_ad as fwd_ad


def outputs(found) -> tuple:
    return found if isinstance(found, tuple) else (found,)


def tangents(args, only=None) -> list:
    return [
        draw(*a.shape, seed=50 + i, dtype=a.dtype) * (0.0 if only is not None and i != only else 0.3)
        for i, a in enumerate(args)
    ]


def finite_difference(fn, args, along, step=1e-6) -> list:
    up, down = (outputs(fn(*[a + e * t for a, t in zip(args, along, strict=True)])) for e in (step, -step))
    return [(a - b) / (2 * step) for a, b in zip(up, down, strict=True)]


def dual(fn, args, along, only=None) -> list:
    """The outputs' tangents by torch.autograd.forward_ad; with `only`, the other operands are plain tensors."""
    with fwd_ad.dual_level():
        given = [
            fwd_ad.make_dual(a.clone(), t) if only in (None, i) else a
            for i, (a, t) in enumerate(zip(args, along, strict=True))
        ]
        return [fwd_ad.unpack_dual(o).tangent for o in outputs(fn(*given))]


def compare(got, want, label, missing=False) -> None:
    """`missing`: an output that does not move may have no tangent."""
    for g, w in zip(got, want, strict=True):
        if g is None and missing:
            assert float(w.abs().max()) < 1e-8, "silent zero tangent"
            continue
        assert g is not None, "silent zero tangent"
        # central differences: truncation step^2 times third derivatives of order 1e3, cancellation unit/step
        within(g, w, 1e-7 * (1 + w.abs().max()), label)


def check(fn, args) -> None:
    """Both of torch's forward modes, in all operands together and in each alone."""
    along = tangents(args)
    want = finite_difference(fn, args, along)
    compare(dual(fn, args, along), want, "forward_ad")
    compare(outputs(torch.func.jvp(fn, tuple(args), tuple(along))[1]), want, "func.jvp")
    for i in range(len(args)):
        alone = tangents(args, only=i)
        compare(dual(fn, args, alone, only=i), finite_difference(fn, args, alone), "forward_ad one operand", True)
