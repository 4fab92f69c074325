"""RZF precoding, LMMSE equalisation and path sums on a device against double precision; skipped without one."""

import pytest
import torch
from rzf_cases import KINDS, conditioned, precode_bound, singular, smaller_form, textbook, vjp_bounds
from sf_testing import DTYPES, draw, same_bits, unit, wide, within

import semcom_fast as sf
from semcom_fast import reference
from semcom_fast._native import cuda_built, cuda_usable

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
    pytest.mark.skipif(not cuda_built(), reason="the extension was built without CUDA kernels"),
    pytest.mark.skipif(cuda_built() and not cuda_usable(), reason="the extension's CUDA runtime sees no device"),
]
# Every kernel of csrc/cuda/plan_rzf.hpp: a thread per matrix (both forms, compiled 4x4), a team, and a large matrix
SIZES = [(1, 1), (2, 2), (3, 5), (4, 2), (4, 4), (4, 16), (4, 64), (5, 5), (8, 8), (9, 6), (16, 16), (17, 20), (40, 36)]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
sizes = pytest.mark.parametrize("size", SIZES, ids=str)


@pytest.fixture(autouse=True)
def _cuda_backend():
    """Forced, so that no other backend can answer in its place."""
    with sf.use_backend("cuda"):
        yield


def _operands(size, dtype, batch=37, streams=1, seed=0):
    k, m = size
    return draw(batch, k, m, seed=seed, dtype=dtype), draw(batch, k, streams, seed=seed + 1, dtype=dtype)


@dtypes
@sizes
@pytest.mark.parametrize("alpha", [0.5, 1e-5], ids=["plain", "double"])
@pytest.mark.parametrize("streams", [1, 3, 21])
def test_precode(size, dtype, alpha, streams):
    h, s = _operands(size, dtype, streams=streams)
    bound = precode_bound(h, s, alpha, dtype, smaller_form(*size))
    got, info = sf.rzf_precode(h.cuda(), s.cuda(), alpha, return_info=True)
    within(got.cpu(), textbook(h, s, alpha), bound, "cuda rzf_precode")
    assert info.dtype is torch.int32 and not info.any()


@dtypes
@pytest.mark.parametrize("form", ["K", "M"])
def test_forms_and_ill_conditioned_channels(dtype, form):
    h, s = conditioned(64, 4, 4, 1e3).to(dtype), draw(64, 4, 1, seed=5, dtype=dtype)
    for alpha in (1.0, 1e-4, 0.0):
        bound = precode_bound(h, s, alpha, dtype, form)
        within(sf.rzf_precode(h.cuda(), s.cuda(), alpha, form=form).cpu(), textbook(h, s, alpha), bound, f"cuda {form}")


@dtypes
@pytest.mark.parametrize("size", [(4, 4), (2, 3), (8, 8), (34, 35)], ids=str)
def test_static_channel_power_and_alpha_per_item(size, dtype):
    """A channel that is constant in time is factored once; each item has its own alpha and its own power scale."""
    k, m = size
    h, s = draw(3, 6, 1, k, m, dtype=dtype), draw(3, 6, 14, k, seed=1, dtype=dtype)
    alpha = torch.tensor([0.25, 2.0**-17, 2.0], dtype=torch.float64)
    columns = s.unsqueeze(-1)
    bound = precode_bound(h, columns, alpha, dtype, "K").squeeze(-1)
    want = textbook(h, columns, alpha).squeeze(-1)
    for channel in (h.cuda(), h.cuda().expand(3, 6, 14, k, m)):
        level = alpha.to(h.real.dtype).cuda()
        x = sf.rzf_precode(channel, s.cuda(), level)
        within(x.cpu(), want, bound, "cuda rzf_precode, static channel")
        got = sf.rzf_precode(channel, s.cuda(), level, power=2.0)
        exact = wide(x)[0]
        exact = exact * (2 / exact.abs().square().mean((1, 2, 3), keepdim=True)).sqrt()
        within(got, exact, 4 * unit(dtype) * exact.abs(), "cuda power scale")  # rounding of the scale and of x


@dtypes
@sizes
def test_matrix(size, dtype):
    h, _ = _operands(size, dtype)
    eye = torch.eye(size[0], dtype=dtype).expand(37, -1, -1)
    bound = precode_bound(h, eye, 0.4, dtype, smaller_form(*size))
    within(sf.rzf_matrix(h.cuda(), 0.4).cpu(), textbook(h, eye, 0.4), bound, "cuda rzf_matrix")


def test_strides_views_and_offsets():
    """Adjoint and conjugate views, a slice off 16-byte boundaries, a transposed batch: the same as contiguous copies."""
    h, s = (t.cuda() for t in _operands((3, 5), torch.complex64, streams=2))
    plain = sf.rzf_precode(h, s, 0.5)
    shifted = torch.cat([h.new_zeros(1), h.flatten()])[1:].view(h.shape)
    for view in (h.mT.contiguous().mT, h.conj().contiguous().conj(), torch._neg_view(-h), shifted):
        same_bits(sf.rzf_precode(view, s, 0.5), plain, "view of h")
    swapped = s.transpose(0, 1).contiguous().transpose(0, 1)
    same_bits(sf.rzf_precode(h, swapped, 0.5), plain, "view of s")


@dtypes
@sizes
@pytest.mark.parametrize("streams", [1, 4, 20])
def test_gradients(size, dtype, streams):
    h, s = _operands(size, dtype, batch=9, streams=streams)
    g = draw(9, size[1], streams, seed=7, dtype=dtype)
    bounds = vjp_bounds(h, s, g, 0.5, dtype, smaller_form(*size))
    a = torch.full((9,), 0.5, dtype=h.real.dtype)
    leaves = [t.cuda().requires_grad_() for t in (h, s, a)]
    sf.rzf_precode(*leaves).backward(g.cuda())
    exact = [t.requires_grad_() for t in wide(h, s, a)]
    reference.rzf_precode(*exact)[0].backward(wide(g)[0])
    for leaf, want, name in zip(leaves, exact, ("dh", "ds", "da"), strict=True):
        within(leaf.grad.cpu(), want.grad, bounds[name], f"cuda {name}")


@pytest.mark.parametrize("size", [(4, 4), (4, 2), (8, 8), (34, 34)], ids=str)
def test_gradients_with_power(size):
    h, s = _operands(size, torch.complex128, batch=12, streams=3)
    g = draw(12, size[1], 3, seed=7)
    leaves = [t.cuda().requires_grad_() for t in (h.view(2, 6, *size), s.view(2, 6, size[0], 3))]
    exact = [t.detach().cpu().requires_grad_() for t in leaves]
    sf.rzf_precode(*leaves, 0.3, power=1.5).backward(g.view(2, 6, size[1], 3).cuda())
    reference.rzf_precode(*exact, 0.3, power=1.5)[0].backward(g.view(2, 6, size[1], 3))
    for leaf, want in zip(leaves, exact, strict=True):
        torch.testing.assert_close(leaf.grad.cpu(), want.grad, rtol=1e-9, atol=1e-9)


@dtypes
@pytest.mark.parametrize("size", [(2, 2), (4, 4), (5, 5), (16, 16), (34, 36)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_singular_channels(size, dtype, kind):
    """None missed, x = 0 and zero gradients there, the other channels bit for bit, and an error when asked for."""
    h, s = _operands(size, dtype, batch=12)
    bad = h.clone()
    bad[5:7] = singular(kind, h[5:7])
    clean = sf.rzf_precode(h.cuda(), s.cuda(), 0.0)
    leaf = bad.cuda().requires_grad_()
    x, info = sf.rzf_precode(leaf, s.cuda(), 0.0, return_info=True)
    rest = torch.tensor([i for i in range(12) if i not in (5, 6)])
    assert (info[5:7] > 0).all() and not info[rest].any() and not x[5:7].any()
    same_bits(x[rest].detach(), clean[rest], "neighbours")
    x.backward(torch.ones_like(x))
    assert not leaf.grad[5:7].any() and leaf.grad[rest].abs().sum() > 0
    with pytest.raises(sf.SingularChannelError, match=r"2 of 12 .* \(5,\)"):
        sf.rzf_precode(bad.cuda(), s.cuda(), 0.0, on_singular="raise")


def test_a_spoilt_sample_stands_alone():
    h, s = draw(6, 1, 4, 4, dtype=torch.complex64), draw(6, 14, 4, seed=1, dtype=torch.complex64)
    s[3, 5, 1] = float("nan")
    x, info = sf.rzf_precode(h.cuda(), s.cuda(), 0.5, return_info=True)
    assert info.shape == (6, 14) and int(info[3, 5]) == -1 and int(info.abs().sum()) == 1
    assert not x[3, 5].any() and x[3, 6].abs().sum() > 0 and torch.isfinite(torch.view_as_real(x)).all()


@dtypes
@sizes
def test_equalise(size, dtype):
    h, y = draw(37, *size, dtype=dtype), draw(37, size[0], seed=3, dtype=dtype)
    for noise_var in (1e-3, 0.7):
        want = reference.lmmse_equalise(*wide(y, h), noise_var)
        got = sf.lmmse_equalise(y.cuda(), h.cuda(), noise_var)
        # float64 inside: cond(A) <= 1e5 here, a growth of 200 and 2^-53 on either side make 4e-9; then one rounding
        for a, b in zip(got, want[:2], strict=True):
            size = torch.linalg.vector_norm(b, dim=-1, keepdim=True)
            within(a.cpu(), b, (2 * unit(dtype) + 4e-9) * size, "cuda lmmse_equalise")


@dtypes
@pytest.mark.parametrize("antennas", [1, 2, 4, 9])
def test_path_sums(antennas, dtype):
    gains = draw(3, 2, antennas, 23, dtype=dtype)
    delays = (draw(3, 2, 1, 23, seed=1).real.abs() * 1e-6).to(gains.real.dtype)
    grid = torch.arange(-64, 64, dtype=torch.float64) * 15e3
    want = reference.cir_to_ofdm(wide(gains)[0], delays.double(), grid)
    # (2P + 4) roundings of each product and 8 of a phase; in double also those of f tau, below 60 turns
    bound = (2 * 23 + 12 + (400 if dtype is torch.complex128 else 0)) * unit(dtype) * gains.abs().double().sum(-1)
    for dim in (-1, 1):
        got = sf.cir_to_ofdm(gains.cuda(), delays.cuda(), grid.cuda(), frequency_dim=dim)
        within(got.cpu().movedim(dim, -1), want, bound.unsqueeze(-1), "cuda cir_to_ofdm")


def test_empty_batches():
    h = torch.zeros(0, 4, 4, dtype=torch.complex64, device="cuda")
    s = h[..., 0]
    assert sf.rzf_precode(h, s, 0.5, power=1.0).shape == (0, 4) and sf.rzf_matrix(h, 0.5).shape == (0, 4, 4)
    assert [tuple(t.shape) for t in sf.lmmse_equalise(s, h, 0.5)] == [(0, 4), (0, 4)]
    assert sf.cir_to_ofdm(s, s.real, torch.ones(7, device="cuda")).shape == (0, 7)


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (40, 36)], ids=str)
def test_runs_and_batch_splits_give_the_same_bits(size):
    h, s = (t.cuda().view(4, 5, *t.shape[1:]) for t in _operands(size, torch.complex64, batch=20, streams=2))
    whole, again = (sf.rzf_precode(h, s, 0.5, power=1.0) for _ in range(2))
    same_bits(whole, again, "second run")
    same_bits(whole[2:], sf.rzf_precode(h[2:], s[2:], 0.5, power=1.0), "split batch")


def _all_ops(h, s, g):
    leaf = h.detach().requires_grad_()
    x = sf.rzf_precode(leaf, s, 0.5, power=1.0)
    (dh,) = torch.autograd.grad(x, leaf, g)
    return x.detach(), dh, *sf.lmmse_equalise(s, h, 0.1)


def test_no_synchronisation_and_graph_capture():
    h, s, g = (t.cuda() for t in (draw(8, 6, 4, 4), draw(8, 6, 4, seed=1), draw(8, 6, 4, seed=2)))
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        want = _all_ops(h, s, g)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = _all_ops(h, s, g)
    for t in got:
        t.fill_(float("nan"))
    graph.replay()
    for a, b in zip(got, want, strict=True):
        same_bits(a, b, "replayed")


def test_side_stream():
    """The kernels and their scratch run on torch's current stream, after what was queued there."""
    h, s, g = (t.cuda() for t in (draw(64, 6, 4, 4), draw(64, 6, 4, seed=1), draw(64, 6, 4, seed=2)))
    want = _all_ops(h, s, g)
    late, side = torch.zeros_like(h), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)
        late.copy_(h)
        got = _all_ops(late, s, g)
    side.synchronize()
    for a, b in zip(got, want, strict=True):
        same_bits(a, b, "side stream")
