"""The fused channel step on Triton: its definition in double precision, draws, levels, flags and split batches."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install 'semcom-fast[triton]'")

import semcom_fast as sf
from semcom_fast import reference
from semcom_fast.triton import pvd_channel_step
from semcom_fast.triton._launch import as_level

NAMES = ("sigma", "sigma_above", "zeta", "score_var", "next_var", "var")
NUMBERS = {"sigma": 0.5, "sigma_above": 0.7, "zeta": 0.1, "score_var": 0.8, "next_var": 0.2, "var": 1.5}
SIZES = [(2, 1, 2, 4, 1, 8), (1, 2, 2, 3, 2, 5), (1, 3, 1, 1, 3, 1)]  # B, U, K, Nr, Nt, T: whole tiles, odd, degenerate


def _operands(size, dtype=torch.complex64, seed=0):
    b, u, k, nr, nt, t = size
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, dtype=dtype, generator=g)

    signals = {"y": normal(b, k, nr, t), "x": normal(b, u, k, nt, t), "probe": normal(b, u, k, nt, t)}
    return signals | {name: normal(b, u, k, nr, nt) for name in ("mean", "anchor", "sample", "noise")}


def _run(operands, levels=NUMBERS, *, probe=True, noise=False, device="cpu", **draw):
    on = {name: torch.view_as_real(t).to(device) for name, t in operands.items()}
    b, u = operands["mean"].shape[:2]
    cells = [
        v if v is None or isinstance(v, float) else as_level(v.to(device), device=on["mean"].device, batch=b, groups=u)
        for v in map(levels.get, NAMES)
    ]
    n = b if probe else 0
    empty = on["mean"].new_empty
    out = (*(torch.empty_like(on[name]) for name in ("mean", "sample")), empty(b, *on["x"].shape[1:]), empty(b))
    out = (*out, empty(n, u), empty(n))
    names = ("y", "x", "probe", "mean", "anchor", "sample", "noise")
    given = {**on, "probe": on["probe"] if probe else None, "noise": on["noise"] if noise else None}
    levels = pvd_channel_step.ChannelLevels(*cells)
    pvd_channel_step.run(*(given[name] for name in names), levels, out=out, **draw)
    return tuple((torch.view_as_complex(o) if o.ndim > 2 else o).cpu() for o in out)


def _twin(operands, levels, *, probe=True, noise=False, **draw):
    wide = {name: t.to(torch.complex128) for name, t in operands.items()}
    names = ("y", "x", "mean", "anchor", "sample")
    optional = {"probe": wide["probe"] if probe else None, "noise": wide["noise"] if noise else None}
    return reference.pvd_channel_step(*(wide[name] for name in names), **levels, **optional, **draw)


def _close(got, want, size, dtype):
    """Sums of Nt*U products, then of T or Nr of them; the normals' own bound in single precision, u in double."""
    unit = torch.finfo(dtype.to_real()).eps
    terms = size[1] * size[4] + size[3] + size[5] + 8
    for g, w in zip(got, want, strict=True):
        if w is None:
            assert g.numel() == 0
            continue
        scale = float(w.abs().max())
        assert float((g - w).abs().max()) <= (terms * unit + (2e-6 if dtype is torch.complex64 else 0)) * 4 * scale


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_definition(size, dtype, device):
    operands = _operands(size, dtype)
    draw = {"seed": 2**40 + 3, "step": 5, "stream": 1, "first_item": 7}
    _close(_run(operands, device=device, **draw), _twin(operands, NUMBERS, **draw), size, dtype)


def test_without_probe(device):
    got = _run(_operands(SIZES[1]), probe=False, device=device, seed=1)
    _close(got, _twin(_operands(SIZES[1]), NUMBERS, probe=False, seed=1), SIZES[1], torch.complex64)


@pytest.mark.parametrize("noise", [True, False])
def test_noise_and_no_draw(noise, device):
    operands = _operands(SIZES[1])
    got = _run(operands, noise=noise, device=device)
    still = {} if noise else {"next_var": 0}
    _close(got, _twin(operands, NUMBERS | still, noise=noise), SIZES[1], torch.complex64)
    assert torch.equal(got[0], got[1]) is not noise


@pytest.mark.parametrize("users", [False, True])
def test_levels_of_items_and_users(users, device):
    """Every level a tensor over [B] or [B,U]; next_var given and by default."""
    size = (2, 2, 1, 2, 2, 2)
    operands, g = _operands(size), torch.Generator().manual_seed(1)
    levels = {name: 0.3 + torch.rand(size[: 2 if users else 1], generator=g) for name in NAMES}
    levels["sigma_above"] += 1.0
    if not users:
        levels["next_var"] = None
    _close(_run(operands, levels, device=device, seed=1), _twin(operands, levels, seed=1), size, torch.complex64)


@pytest.mark.parametrize("large", [False, True])
def test_public_op(large, monkeypatch, triton_selected, device):
    """The public function on the kernel, and on the ops it fuses where a block exceeds a tile."""
    operands = _operands(SIZES[1])
    if large:
        monkeypatch.setattr(pvd_channel_step, "fits", lambda *size: False)
    names = ("y", "x", "mean", "anchor", "sample")
    levels = NUMBERS | {"sigma": torch.tensor([0.4], device=device), "next_var": None}
    with triton_selected():
        got = sf.pvd_channel_step(
            *(operands[n].to(device) for n in names), probe=operands["probe"].to(device), **levels, seed=3
        )
    _close([t.cpu() for t in got], _twin(operands, levels, seed=3), SIZES[1], torch.complex64)


def test_split_batch_has_the_same_bits(device):
    operands = _operands(SIZES[0])
    whole = _run(operands, device=device, seed=4, first_item=10)
    for b in range(SIZES[0][0]):
        part = _run({n: t[b : b + 1] for n, t in operands.items()}, device=device, seed=4, first_item=10 + b)
        assert all(torch.equal(w[b : b + 1], p) for w, p in zip(whole, part, strict=True))


def test_shared_signals_and_cells(device):
    """y, x and probe of one item serve the batch; seed and step may be cells on the device."""
    operands = _operands(SIZES[0])
    shared = operands | {n: operands[n][:1] for n in ("y", "x", "probe")}
    full = operands | {n: operands[n][:1].expand(2, *operands[n].shape[1:]).contiguous() for n in ("y", "x", "probe")}
    cells = {"seed": torch.tensor(9, device=device), "step": torch.tensor(2, device=device)}
    got, want = _run(shared, device=device, **cells), _run(full, device=device, seed=9, step=2)
    assert all(map(torch.equal, got, want))


@pytest.mark.parametrize("name", ["y", "mean", "sample"])
def test_flag_names_the_lowest_item(name, device):
    operands = _operands(SIZES[0])
    operands[name][1, 0, 0, 0] = complex(float("nan"), 0)
    flag = torch.full((1,), 2**31 - 1, dtype=torch.int32, device=device)
    _run(operands, device=device, seed=1, flag=flag)
    assert int(flag) == 1


def test_refuses_what_it_cannot_do(device):
    operands = _operands(SIZES[0])
    with pytest.raises(ValueError, match="anchor must be contiguous"):
        _run(operands | {"anchor": operands["anchor"][:1]}, device=device, seed=1)
    assert pvd_channel_step.fits(128, 16, 24) and not pvd_channel_step.fits(256, 16, 24)
    with pytest.raises(ValueError, match="exceed a tile"):
        _run(_operands((1, 1, 1, 256, 1, 24)), device=device, seed=1)
