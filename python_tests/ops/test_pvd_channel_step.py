"""The fused channel step: its definition, draws, levels, layouts, threads, instruction sets, derivatives and refusals."""

import forward_modes
import numpy as np
import pytest
import torch
from isa_levels import OTHERS, run_at
from sf_testing import draw, same_bits, unit, wide, within

import semcom_fast as sf
from semcom_fast import reference

LEVELS = {"sigma": 0.5, "sigma_above": 0.7, "zeta": 0.1, "score_var": 0.9, "var": 1.5}
KEY = {"seed": 2**40 + 3, "step": 5, "first_item": 7}
NAMES = ("y", "x", "mean", "anchor", "sample", "probe", "noise")
FIELDS = sf.PVDChannelStep._fields
# B, U, K, Nr, Nt, T: the demonstrations; the paper's widths; odd sizes whose blocks start inside a Philox counter;
# several slot chunks and more reals a block than one chunk of draws
SIZES = [(2, 1, 8, 4, 1, 8), (2, 4, 70, 4, 1, 24), (2, 1, 3, 8, 2, 16), (3, 3, 5, 3, 5, 7), (1, 2, 1, 1, 1, 1),
         (1, 1, 2, 40, 17, 50)]  # fmt: skip


def _operands(size, dtype=torch.complex128):
    b, u, k, nr, nt, t = size
    state, codeword = (b, u, k, nr, nt), (b, u, k, nt, t)
    shapes = (b, k, nr, t), codeword, state, state, state, codeword, state
    return {name: draw(*s, seed=i, dtype=dtype) for i, (name, s) in enumerate(zip(NAMES, shapes, strict=True))}


def _call(given, fn=None, noise=True, **keywords):
    """The op with explicit noise, or with a Philox key; levels may be overridden."""
    drawn = {"noise": given["noise"]} if noise else KEY
    operands = [given[name] for name in NAMES[:5]]
    return (fn or sf.pvd_channel_step)(*operands, **(LEVELS | {"probe": given["probe"]} | drawn | keywords))


def _bounds(given, levels):
    """Roundings of the longest sum of each output times the sum of its terms' sizes."""
    y, x, mean, anchor, sample, probe, noise = (given[n].abs().double() for n in NAMES)

    def column(v):
        v = torch.as_tensor(v, dtype=torch.float64)
        return v.reshape(v.shape + (1,) * (5 - v.ndim))

    s, above, zeta, s_y, v = (column(levels[k]) for k in ("sigma", "sigma_above", "zeta", "score_var", "var"))
    w, delta = v / (v + s * s), above**2 - s**2
    h = w * sample
    r = y + (h @ x).sum(1)
    size = mean + zeta * (anchor + sample + delta / s**2 * (h + sample) + delta * w / s_y * (r.unsqueeze(1) @ x.mT))
    moved = (h @ probe).sum(1)
    new = size + (s**2 * delta / above**2).sqrt() * noise.clamp_min(6.0)
    squares = [t.square().sum(tuple(range(1, t.ndim))) for t in (r, moved)]
    return size, new, h.mT @ r.unsqueeze(1), squares[0], probe.square().sum((-3, -2, -1)), squares[1]


def _check(got, want, given, levels, label, drawn=False):
    u, nr, nt, t = given["mean"].shape[1], *given["mean"].shape[3:], given["x"].shape[-1]
    # complex products cost two roundings a term; then eight of an update
    growth = (2 * (u * nt + max(nr, t)) + 8) * unit(given["mean"])
    for name, g, w, size in zip(FIELDS, got, want, _bounds(given, levels), strict=True):
        extra = 2e-6 if drawn and name == "sample" and unit(given["mean"]) > 1e-10 else 0  # the normals' own bound
        within(g, w, growth * size + extra, f"{label} {name}")


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_definition(size, dtype):
    """Explicit noise and the drawn one, against the twin in double precision."""
    given = _operands(size, dtype)
    doubles = dict(zip(NAMES, wide(*given.values()), strict=True))
    for noise in (True, False):
        want = _call(doubles, reference.pvd_channel_step, noise)
        _check(_call(given, noise=noise), want, given, LEVELS, f"pvd_channel_step {str(dtype)[6:]}", not noise)


def test_the_three_ops_it_fuses():
    """Shrink, `likelihood_score`, `pvd_update` with the shrunk score: the same draws, all else to rounding."""
    given = _operands(SIZES[3], torch.complex64)
    w = 1.5 / (1.5 + 0.5**2)
    score = sf.likelihood_score(given["y"], w * given["sample"], given["x"], probe=given["probe"])
    state = [given[n] for n in ("mean", "anchor", "sample")]
    levels = {k: v for k, v in LEVELS.items() if k != "var"}
    moved = sf.pvd_update(*state, w * state[2], w * score.score_h, **levels, **KEY, stream=1)
    _check(_call(given, noise=False), (*moved, *score[1:]), given, LEVELS, "pvd_channel_step fused")


def test_draws_are_philox_normals():
    """The Philox draw equals the explicit noise of `philox_normal` bit for bit."""
    for size in SIZES[1], SIZES[3], SIZES[5]:
        given = _operands(size, torch.complex64)
        given["noise"] = sf.philox_normal(given["mean"].shape, **KEY, stream=1, dtype=torch.complex64)
        for a, b in zip(_call(given), _call(given, noise=False), strict=True):
            same_bits(a, b)


@pytest.mark.parametrize("shape", [(), (3,), (3, 1), (1, 3), (3, 3)], ids=str)
@pytest.mark.parametrize("kind", [torch.float32, torch.float64], ids=str)
def test_level_tensors(shape, kind):
    """Every level a tensor over items and users, strided; next_var given, by default and absent."""
    given = _operands(SIZES[3])
    offset = {"sigma_above": 1.2}
    levels = {
        k: (draw(*shape, 2, seed=i, dtype=kind).abs() / 2 + 0.3 + offset.get(k, 0))[..., 0]
        for i, k in enumerate(LEVELS)
    }
    doubles = {k: v.double() for k, v in levels.items()}
    _check(_call(given, **levels), _call(given, reference.pvd_channel_step, **doubles), given, doubles, "levels")
    following = _call(given, next_var=levels["zeta"])
    want = _call(given)[0] + doubles["zeta"].reshape(shape + (1,) * (5 - len(shape))).sqrt() * given["noise"]
    within(following[1], want, 1e-14 * (want.abs() + given["noise"].abs()), "next_var")
    still = _call(given, noise=False, next_var=0)
    same_bits(still[0], still[1])


def test_without_probe_and_shared_signals():
    given = _operands(SIZES[3])
    plain, bare = _call(given), _call(given, probe=None)
    assert bare.probe_x is None and bare.probe_y is None
    for name in FIELDS[:4]:
        same_bits(getattr(bare, name), getattr(plain, name), name)
    shared = given | {n: given[n][:1] for n in ("y", "x", "probe")}
    full = given | {n: given[n][:1].expand_as(given[n]) for n in ("y", "x", "probe")}
    for a, b in zip(_call(shared), _call(full), strict=True):
        same_bits(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_layouts(name):
    """Strided, conjugated and negated operands give the bits of plain copies."""
    given = _operands(SIZES[3])
    want = _call(given)
    for view in (lambda t: torch.stack([t, 3 * t], -1)[..., 0], lambda t: t.conj().resolve_conj().conj(),
                 lambda t: torch._neg_view(-t)):  # fmt: skip
        for a, b in zip(_call(given | {name: view(given[name])}), want, strict=True):
            same_bits(a, b, name)


@pytest.mark.parametrize("size", [(23, 1, 8, 4, 1, 8), (5, 3, 41, 3, 5, 7)], ids=str)
def test_threads_and_split_batches(size):
    """Neither changes a bit; groups of blocks depend on the sizes alone."""
    given = _operands(size, torch.complex64)
    whole = _call(given, noise=False)
    torch.set_num_threads(2)
    for a, b in zip(whole, _call(given, noise=False), strict=True):
        same_bits(a, b, "threads")
    cut = 2
    parts = [
        _call({n: t[a:b] for n, t in given.items()}, noise=False, first_item=7 + a)
        for a, b in ((0, cut), (cut, size[0]))
    ]
    for i, want in enumerate(whole):
        same_bits(torch.cat([p[i] for p in parts]), want, FIELDS[i])


@pytest.mark.parametrize("shape", [0, 1, 2, 3, 5])
def test_empty(shape):
    """No items, users, blocks, receive antennas or slots."""
    size = list(SIZES[3])
    size[shape] = 0
    out = _call(_operands(size, torch.complex64))
    assert [t.shape for t in out[:3]] == [(*size[:5],)] * 2 + [(*size[:3], *size[4:])]
    assert out.energy.shape == out.probe_y.shape == (size[0],) and out.probe_x.shape == (*size[:2],)


LEVEL = """
import torch, test_pvd_channel_step as t
from semcom_fast import reference
for dtype in (torch.complex64, torch.complex128):
    for size in t.SIZES:
        given = t._operands(size, dtype)
        doubles = dict(zip(t.NAMES, t.wide(*given.values()), strict=True))
        want = t._call(doubles, reference.pvd_channel_step, False)
        t._check(t._call(given, noise=False), want, given, t.LEVELS, "isa", True)
"""


@pytest.mark.parametrize("level", OTHERS)
def test_other_instruction_sets(level):
    """The levels that the tests above do not run, in a process of their own."""
    run_at(level, LEVEL)


def test_numpy_in_numpy_out():
    given = _operands(SIZES[2], torch.complex64)
    got = _call({n: t.numpy() for n, t in given.items()})
    assert type(got) is sf.PVDChannelStep and all(type(a) is np.ndarray for a in got)
    for a, b in zip(got, _call(given), strict=True):
        same_bits(torch.from_numpy(a), b)


def test_gradients():
    """Reverse mode in every operand and level; forward mode is the slope; vmap equals a loop, draws included."""
    given = _operands((1, 2, 1, 2, 1, 2))
    levels = {k: torch.tensor(v, dtype=torch.float64) for k, v in LEVELS.items()}

    def step(*args):
        return tuple(_call(dict(zip(NAMES, args, strict=False)), **dict(zip(LEVELS, args[7:], strict=True))))

    leaves = [t.detach().clone().requires_grad_(True) for t in (*given.values(), *levels.values())]
    assert torch.autograd.gradcheck(step, leaves, atol=1e-7, rtol=1e-6)
    forward_modes.check(step, [t.detach() for t in leaves])
    pair = torch.stack([given["y"], 2 * given["y"]])
    got = torch.func.vmap(lambda y: tuple(_call(given | {"y": y}, noise=False)))(pair)
    for i, row in enumerate(pair):
        for a, b in zip(got, _call(given | {"y": row}, noise=False), strict=True):
            same_bits(a[i], b, "vmap")


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", NAMES)
def test_not_finite_names_the_item(name, backend):
    given = _operands(SIZES[0], torch.complex64)
    given[name] = given[name].clone()
    given[name][1, 0, 0, 0] = complex(float("nan"), 0.0)
    with sf.use_backend(backend), pytest.raises(ValueError, match=r"^pvd_channel_step: item 1 is not finite"):
        _call(given)


def test_refusals():
    """Every message names the op and the argument."""
    given = _operands(SIZES[0], torch.complex64)
    for name in NAMES:
        with pytest.raises(ValueError, match=rf"^pvd_channel_step: need .*got .*{name} \("):
            _call(given | {name: given[name][..., :-1]} if name != "y" else given | {"y": given["y"][:, :, :-1]})
        with pytest.raises(TypeError, match=f"^pvd_channel_step: {name} is "):
            _call(given | {name: given[name].real.clone()})
    for name in ("sigma", "sigma_above", "score_var", "var"):
        with pytest.raises(ValueError, match=f"^pvd_channel_step: {name} must be positive"):
            _call(given, **{name: 0.0})
        with pytest.raises(ValueError, match=r"^pvd_channel_step: item 1 .*not positive"):
            _call(given, **{name: torch.tensor([0.6, -1.0])})
        with pytest.raises(ValueError, match=f"^pvd_channel_step: {name} .*must align from the left"):
            _call(given, **{name: torch.ones(3)})
    with pytest.raises(ValueError, match="draws the next sample"):
        _call(given, noise=False, seed=None)
    with pytest.raises(ValueError, match="must not be negative"):
        _call(given, stream=-1)
