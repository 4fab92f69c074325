"""The expert-mixture kernels at every instruction-set level built for this machine, against NumPy."""

import pytest
from isa_levels import BUILT, run_at

CODE = """
import torch, numpy as np, vb_math as vb, semcom_fast as sf
from sf_testing import draw, unit, within
from vb_cases import NORMAL, call, elbo_expected, elbo_state, expected, numpy, state
from semcom_fast import reference
levels = {"noise_var": 0.3, "alpha_bar": 0.42, "beta": 0.05, "lam": 1.3}
for dtype in (torch.complex64, torch.complex128):
    for nr, nt, np_, experts in ((16, 64, 38, 4), (3, 17, 9, 1), (1, 1, 1, 2), (5, 33, 40, 7), (2, 4, 6, 3)):
        for shared, lik in ((True, "dmps"), (False, "x0"), (True, "x0")):
            c = state(3, nr, nt, np_, experts, dtype=dtype, shared=shared)
            within(call(c, **levels, lik=lik), *expected(c, **levels, lik=lik), "step")
            e = elbo_state(2, 2, experts, nr, nt, np_, dtype=dtype, shared=shared)
            key = {"seed": 9, "first_item": 4}
            normals = [reference.philox_normal(e.h.shape, step=t, stream=8, dtype=torch.complex128, **key) for t in e.steps]
            noise = torch.stack(normals, 1)
            want = vb.renoise(*numpy(e.h), e.alpha_bar[e.steps], noise.numpy())
            size = e.h.abs()[:, None].double() + noise.abs()
            got = sf.renoise(e.h, e.steps, e.table, **key)
            within(got, torch.from_numpy(want), 4 * unit(dtype) * size + NORMAL[dtype], "renoise")
            L, D, bound_l, bound_d = elbo_expected(e, 0.3, 0, noise, NORMAL[dtype])
            got = sf.elbo_reduce(e.eps, e.h, e.steps, e.table, e.weights, e.yv, e.svd, noise_var=0.3, tau=30, **key)
            within(got[0], L, bound_l, "L")
            within(got[1], D, bound_d, "D")
    L, D = (-5 * draw(9, 5, seed=s, dtype=dtype.to_real()).abs() for s in (1, 2))
    rho, gamma = vb.responsibilities(L.double().numpy(), D.double().numpy(), 0.3)
    got = sf.dirichlet_responsibilities(L, D, 0.3)
    for a, b in zip(got, (rho, gamma)):
        bound = (2 * unit(dtype) + 500 * 2.0**-53) * torch.from_numpy(b) + 1e-38  # gamma0 is rounded too
        within(a, torch.from_numpy(b), bound, "rho")
"""


@pytest.mark.parametrize("level", BUILT)
def test_every_built_instruction_set(level):
    """The step, renoise, elbo_reduce and the responsibilities stay within the bounds of the default level."""
    run_at(level, CODE)
