"""What the ops refuse: every message names the op, the argument and the shape, dtype, device, item or block at fault."""

import pytest
import torch
from sf_testing import draw

import semcom_fast as sf
from semcom_fast.ops._checks import tolerate_non_finite

NAN, INF = float("nan"), float("inf")
LEVELS = {"sigma": 0.5, "sigma_above": 0.7, "zeta": 0.1}
SIZE = {"x_energy": 10.0, "nr": 4, "count": 96}
backends = pytest.mark.parametrize("backend", ["cpu", "reference"])


def _blocks(dtype=torch.complex64):
    y, h = draw(2, 3, 4, 8, seed=1, dtype=dtype), draw(2, 1, 3, 4, 2, seed=2, dtype=dtype)
    return y, h, draw(2, 1, 3, 2, 8, seed=3, dtype=dtype)


def _state(dtype=torch.complex64):
    return [draw(3, 2, 5, seed=s, dtype=dtype) for s in range(6)]


def _calls():
    """Each op with its operands in a dict, so that one of them can be replaced."""
    y, h, x = _blocks()
    names = ("mean", "anchor", "sample", "denoised", "score", "noise")
    v = torch.rand(3, 2) + 0.1
    return {
        "blockdiag_apply": (sf.blockdiag_apply, {"h": h, "x": x}),
        "blockdiag_adjoint": (sf.blockdiag_adjoint, {"h": h, "y": y}),
        "likelihood_score": (sf.likelihood_score, {"y": y, "h": h, "x": x, "probe": x.clone()}),
        "pvd_update": (lambda **k: sf.pvd_update(**k, **LEVELS), dict(zip(names, _state(), strict=True))),
        "power_normalise": (sf.power_normalise, {"z": x}),
        "pvd_calibrate": (lambda **k: sf.pvd_calibrate(0.1, **k, **SIZE),
                          {"var_h": v, "probe_x": v.clone(), "probe_y": v[:, 0].clone()}),
    }  # fmt: skip


OPERANDS = [(op, name) for op, (_, args) in _calls().items() for name in args]
operands = pytest.mark.parametrize("op, name", OPERANDS)
several = pytest.mark.parametrize("op, name", [pair for pair in OPERANDS if pair[0] != "power_normalise"])


@operands
def test_wrong_kind(op, name):
    """Real where complex is needed, complex where real is, integers elsewhere: TypeError naming op and argument."""
    fn, args = _calls()[op]
    good = args[name]
    if op.startswith(("block", "like")):
        wrong = good.real.clone()
    elif op == "pvd_calibrate":
        wrong = good.to(torch.complex64)
    else:
        wrong = good.real.to(torch.int64)
    with pytest.raises(TypeError, match=f"^{op}: {name} is (float32|int64|complex64) but must be "):
        fn(**(args | {name: wrong}))


@operands
def test_not_a_tensor(op, name):
    """A list instead of a tensor is a TypeError naming op and argument."""
    fn, args = _calls()[op]
    with pytest.raises(TypeError, match=f"^{op}: {name} must be a tensor, got list"):
        fn(**(args | {name: [1.0, 2.0]}))


@several
def test_mixed_precision(op, name):
    """Nothing is cast silently: one operand in double precision is named with both dtypes."""
    fn, args = _calls()[op]
    wide = args[name].to(torch.complex128 if args[name].is_complex() else torch.float64)
    with pytest.raises(TypeError, match=rf"^{op}: .*(complex|float)(64|32|128).*nothing is cast silently"):
        fn(**(args | {name: wide}))


@several
def test_mixed_devices(op, name):
    """One operand on another device is named with both devices."""
    fn, args = _calls()[op]
    with pytest.raises(ValueError, match=rf"^{op}: .*on (meta|cpu) but .* on (meta|cpu)"):
        fn(**(args | {name: args[name].to("meta")}))


WRONG_SHAPES = [
    ("blockdiag_apply", "h", (2, 1, 3, 4, 3)),
    ("blockdiag_apply", "x", (2, 2, 3, 2, 8)),
    ("blockdiag_apply", "x", (2, 1, 4, 2, 8)),
    ("blockdiag_apply", "h", (3, 4, 2)),
    ("blockdiag_apply", "h", (3, 1, 3, 4, 2)),
    ("blockdiag_adjoint", "y", (2, 3, 5, 8)),
    ("blockdiag_adjoint", "y", (2, 4, 4, 8)),
    ("blockdiag_adjoint", "y", (4, 8)),
    ("blockdiag_adjoint", "y", (3, 3, 4, 8)),
    ("likelihood_score", "y", (2, 3, 4, 9)),
    ("likelihood_score", "y", (2, 3, 5, 8)),
    ("likelihood_score", "h", (2, 1, 3, 4, 3)),
    ("likelihood_score", "x", (2, 2, 3, 2, 8)),
    ("likelihood_score", "probe", (2, 1, 3, 2, 9)),
    ("likelihood_score", "probe", (3, 1, 3, 2, 8)),
    ("likelihood_score", "y", (5, 3, 4, 8)),
    ("pvd_update", "anchor", (3, 2, 4)),
    ("pvd_update", "sample", (3, 2, 4)),
    ("pvd_update", "denoised", (2, 3, 2, 5)),
    ("pvd_update", "score", (1, 2, 5)),
    ("pvd_update", "noise", (3, 2, 6)),
    ("pvd_update", "mean", (2, 3, 2, 5)),
    ("pvd_calibrate", "var_h", (3, 3)),
    ("pvd_calibrate", "probe_x", (2, 2)),
    ("pvd_calibrate", "probe_y", (2,)),
    ("pvd_calibrate", "probe_x", (3,)),
]


@pytest.mark.parametrize("op, name, shape", WRONG_SHAPES)
def test_wrong_shapes_are_shown(op, name, shape):
    """The op, the expected pattern, and every operand's own shape are in the message; ValueError."""
    fn, args = _calls()[op]
    args = args | {name: torch.zeros(shape, dtype=args[name].dtype)}
    with pytest.raises(ValueError, match=f"^{op}: need ") as caught:
        fn(**args)
    text = str(caught.value)
    assert f"{name} {shape}" in text, text


@backends
@pytest.mark.parametrize(
    "noise_var",
    [
        0,
        0.0,
        -1,
        NAN,
        INF,
        *[torch.tensor(v) for v in (0.0, -1.0, NAN, INF)],
        torch.tensor([1.0, 0.0]),
        torch.tensor([-2.0, 1.0]),
    ],
    ids=str,
)
def test_likelihood_noise_variance(noise_var, backend):
    """Zero, negative and non-finite levels, as a number or any entry of a tensor."""
    with sf.use_backend(backend), pytest.raises(ValueError, match=r"^likelihood_score: noise_var must be positive"):
        sf.likelihood_score(*_blocks(), noise_var)


@pytest.mark.parametrize("shape", [(3,), (2, 1, 1, 1, 1, 1), (2, 2)])
def test_likelihood_noise_variance_shape(shape):
    """A level tensor must fit the leading dimensions: ValueError with both shapes."""
    with pytest.raises(ValueError, match=rf"^likelihood_score: noise_var \({shape[0]}"):
        sf.likelihood_score(*_blocks(), torch.ones(shape))


def test_likelihood_noise_variance_kind():
    """A complex level or one on another device is refused, not converted."""
    with pytest.raises(TypeError, match=r"^likelihood_score: noise_var.*(real|complex)"):
        sf.likelihood_score(*_blocks(), torch.ones(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"^likelihood_score: noise_var is on meta"):
        sf.likelihood_score(*_blocks(), torch.ones(2, device="meta"))


@pytest.mark.parametrize("name", ["sigma", "sigma_above", "score_var"])
@pytest.mark.parametrize("value", [0, -0.5, NAN, INF])
def test_update_levels_must_be_positive(name, value):
    """Numbers are checked before the kernel; entries of a tensor name the item on the CPU."""
    with pytest.raises(ValueError, match=f"^pvd_update: {name} must be positive and finite"):
        sf.pvd_update(*_state()[:5], **(LEVELS | {name: value}), seed=1)
    tensor = torch.tensor([0.6, value, 0.6]) if name != "sigma" else torch.tensor([0.5, value, 0.5])
    with pytest.raises(ValueError, match=r"^pvd_update: .*(item|entry) 1"):
        sf.pvd_update(*_state()[:5], **(LEVELS | {name: tensor}), seed=1)


@pytest.mark.parametrize("name", ["sigma", "zeta", "score_var", "next_var"])
@pytest.mark.parametrize("shape", [(4,), (3, 3), (3, 2, 5), (2, 3)])
def test_update_level_shapes(name, shape):
    """Levels align from the left with the leading dimensions; a misfit shows both."""
    with pytest.raises(ValueError, match=rf"^pvd_update: {name} .*must align from the left.*\(3, 2\)"):
        sf.pvd_update(*_state()[:5], **(LEVELS | {name: torch.full(shape, 0.3)}), seed=1)


@pytest.mark.parametrize(
    "level", [torch.ones(3, dtype=torch.complex64), "big", [1, 2, 3]], ids=["complex", "str", "list"]
)
def test_level_kind(level):
    """Levels are numbers or real tensors."""
    with pytest.raises(TypeError, match=r"^pvd_update: zeta"):
        sf.pvd_update(*_state()[:5], **(LEVELS | {"zeta": level}), seed=1)


@backends
def test_a_draw_needs_noise_or_seed(backend):
    """Neither noise nor seed is an error unless next_var is the Python number 0 (a tensor 0 still draws)."""
    state = _state()[:5]
    with sf.use_backend(backend):
        for next_var in (None, 0.1, torch.tensor(0.0), torch.zeros(3)):
            with pytest.raises(ValueError, match="pass noise= or seed="):
                sf.pvd_update(*state, **LEVELS, next_var=next_var)
        sf.pvd_update(*state, **LEVELS, next_var=0)
        sf.pvd_update(*state, **LEVELS, next_var=0.0)


@backends
@pytest.mark.parametrize("negative", [-0.1, torch.tensor([0.1, -0.1, 0.1])], ids=["number", "tensor"])
def test_negative_next_variance(negative, backend):
    """A negative variance cannot be drawn from; the item or the argument is named."""
    with sf.use_backend(backend), pytest.raises(ValueError, match=r"^pvd_update"):
        sf.pvd_update(*_state()[:5], **LEVELS, next_var=negative, seed=1)


@backends
@pytest.mark.parametrize(
    "noise_var", [0.0, -0.1, NAN, torch.tensor([0.1, -0.1, 0.1]), torch.tensor([0.1, 0.0, 0.1])], ids=str
)
def test_calibrate_noise_variance(noise_var, backend):
    """noise_var <= 0 is refused even where the sum would be positive."""
    v = torch.rand(3, 2) + 0.1
    with sf.use_backend(backend), pytest.raises(ValueError, match=r"^pvd_calibrate: "):
        sf.pvd_calibrate(noise_var, v, v, v[:, 0], **SIZE)


@backends
@pytest.mark.parametrize("name", ["var_h", "probe_x", "probe_y"])
@pytest.mark.parametrize("bad", [NAN, INF])
def test_calibrate_names_the_item(name, bad, backend):
    """A NaN or Inf operand names its item."""
    args = {k: t.clone() for k, t in _calls()["pvd_calibrate"][1].items()}
    args[name][1, ...] = bad
    with sf.use_backend(backend), pytest.raises(ValueError, match=r"^pvd_calibrate: .*(item|entry) 1 "):
        sf.pvd_calibrate(0.1, **args, **SIZE)


@pytest.mark.parametrize("count", [0, -5])
def test_calibrate_count(count):
    """count is a positive number of entries."""
    v = torch.rand(3, 2)
    with pytest.raises(ValueError, match="count must be positive"):
        sf.pvd_calibrate(0.1, v, v, v[:, 0], x_energy=1.0, nr=1, count=count)


BLOCK_OPERANDS = [(op, name) for op, name in OPERANDS if op.startswith(("block", "like"))]


@pytest.mark.parametrize("op, name", BLOCK_OPERANDS)
@pytest.mark.parametrize("bad", [complex(NAN, 0), complex(0, NAN), complex(INF, 0), complex(0, -INF)], ids=str)
def test_non_finite_blocks_are_named(op, name, bad):
    """NaN or Inf in any operand of a block op names batch item and block; the same input is tolerated inside a loop."""
    fn, args = _calls()[op]
    broken = args[name].clone()
    broken[(1, 0, 2) if name != "y" else (1, 2)][1, 1] = bad
    with pytest.raises(ValueError, match=f"^{op}: batch item 1, block 2 is not finite"):
        fn(**(args | {name: broken}))
    with tolerate_non_finite():
        fn(**(args | {name: broken}))
    with sf.use_backend("reference"), pytest.raises(ValueError, match=f"^{op}: batch item 1"):
        fn(**(args | {name: broken}))


def test_the_first_bad_block_is_named_with_threads():
    """With many bad blocks over two threads the lowest is named."""
    torch.set_num_threads(2)
    h, x = draw(4096, 1, 1, 4, 2, dtype=torch.complex64), draw(4096, 1, 1, 2, 8, dtype=torch.complex64)
    h[137:, 0, 0, 0, 0] = NAN
    for _ in range(5):
        with pytest.raises(ValueError, match="batch item 137, block 0"):
            sf.blockdiag_apply(h, x)


def test_overflow_is_named():
    """Finite input whose result overflows single precision is an error, not a silent Inf."""
    y, h, x = _blocks()
    with pytest.raises(ValueError, match="blockdiag_apply: batch item 1"):
        big = x.clone()
        big[1] *= 1e38
        sf.blockdiag_apply(h * 100, big)
    with pytest.raises(ValueError, match="likelihood_score: batch item 0"):
        sf.likelihood_score(y * 1e25, h, x * 1e25)
    with pytest.raises(ValueError, match="likelihood_score: batch item 0"):
        sf.likelihood_score(y * 1e25, h, x)


@backends
@pytest.mark.parametrize("name", ["mean", "anchor", "sample", "denoised", "score", "noise"])
@pytest.mark.parametrize("samples", [None, 2])
def test_update_names_the_item(name, samples, backend):
    """NaN in any operand of pvd_update names the item of axis 0 of the mean, also with a sample axis."""
    shapes = {k: (3, 2, 5) if samples is None or k in ("mean", "anchor") else (samples, 3, 2, 5)
              for k in ("mean", "anchor", "sample", "denoised", "score", "noise")}  # fmt: skip
    args = {k: draw(*s, seed=i) for i, (k, s) in enumerate(shapes.items())}
    args[name][..., 1, 1, 3] = NAN
    noise = args.pop("noise")
    with sf.use_backend(backend), pytest.raises(ValueError, match=r"^pvd_update: item 1 is not finite"):
        sf.pvd_update(**args, **LEVELS, noise=noise)


@backends
def test_zero_codeword(backend):
    """A codeword of zeros cannot be normalised: it is named by its index and norm."""
    z = draw(2, 3, 2, 2, 4)
    z[1, 2] = 0
    with sf.use_backend(backend), pytest.raises(ValueError, match=r"^power_normalise: codeword 5 has norm 0"):
        sf.power_normalise(z)
    z[0, 1, 0, 0, 0] = NAN
    with sf.use_backend(backend), pytest.raises(ValueError, match=r"^power_normalise: codeword 1 has norm nan"):
        sf.power_normalise(z)


@pytest.mark.parametrize("dims", [0, -1, 4, 7])
def test_normalise_dims(dims):
    """dims must lie within the codeword's rank; the shape is shown."""
    with pytest.raises(ValueError, match=rf"dims={dims} does not fit z of shape \(2, 3, 4\)"):
        sf.power_normalise(draw(2, 3, 4), dims=dims)


@pytest.mark.parametrize("power", [0.0, -1.0, NAN, INF])
def test_normalise_power(power):
    """The power must be positive and finite."""
    with pytest.raises(ValueError, match=r"^power_normalise: power must be positive and finite"):
        sf.power_normalise(draw(2, 3, 4), power=power)


def test_normalise_empty_codeword():
    """A codeword without entries has no direction."""
    with pytest.raises(ValueError, match="empty codeword"):
        sf.power_normalise(torch.zeros(2, 0, 3, 4))


@pytest.mark.parametrize("wrong", [{"dtype": torch.float16}, {"dtype": torch.int64}])
def test_normals_dtype(wrong):
    """Normals exist in single and double precision, real and complex."""
    with pytest.raises(TypeError, match=r"^philox_normal: dtype"):
        sf.philox_normal((2, 3), seed=1, **wrong)


@pytest.mark.parametrize("wrong", [{"first_item": -1}, {"stream": -1}])
def test_normals_addresses(wrong):
    """Addresses are not negative."""
    with pytest.raises(ValueError, match=r"^philox_normal: .*must not be negative"):
        sf.philox_normal((2, 3), seed=1, **wrong)
    with pytest.raises(ValueError, match=r"^pvd_update: .*must not be negative"):
        sf.pvd_update(*_state()[:5], **LEVELS, seed=1, **wrong)


@backends
def test_normals_need_a_seed(backend):
    """A draw without a seed is an error, never a silent default."""
    with sf.use_backend(backend), pytest.raises((ValueError, TypeError), match="seed"):
        sf.philox_normal((2, 3), seed=None)


def test_normals_shape():
    """Negative sizes are refused."""
    with pytest.raises((ValueError, RuntimeError), match="-3"):
        sf.philox_normal((-3, 2), seed=1)
