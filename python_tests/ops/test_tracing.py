"""Each op as a real torch op: opcheck, fake tensors, make_fx, export, and torch.compile beside complex arithmetic."""

import warnings

import pytest
import torch
import vb_calls
import waterfill_calls
from op_samples import packet_samples
from sf_testing import draw, within
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import semcom_fast as sf
from semcom_fast.ops._register import OPS as REGISTERED

OPS = torch.ops.semcom_fast
DTYPES = (torch.complex64, torch.complex128)


NAMES = tuple(packet_samples(torch.complex128))


def test_every_registered_op_is_listed():
    """The samples below cover the whole library."""
    schemas = torch._C._jit_get_all_schemas()
    registered = {s.name.removeprefix("semcom_fast::") for s in schemas if s.name.startswith("semcom_fast::")}
    assert registered == set(NAMES)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("grad", [False, True])
def test_opcheck(name, dtype, grad):
    """Schema, autograd registration, fake tensors and aot dispatch with dynamic shapes."""
    for args in packet_samples(dtype)[name]:
        # levels, seeds and steps are not differentiated here; opcheck compares gradients of the operands
        given = [a.clone().requires_grad_(grad and i not in vb_calls.CONSTANT.get(name, ()) and a.ndim > 0 and
                                          (a.is_complex() or a.is_floating_point()))
                 if isinstance(a, torch.Tensor) else a for i, a in enumerate(args)]  # fmt: skip
        torch.library.opcheck(getattr(OPS, name).default, tuple(given))


@pytest.mark.parametrize("name", NAMES)
def test_fake_tensors(name):
    """Under FakeTensorMode shapes, dtypes and strides equal those of the kernel."""
    for args in packet_samples(torch.complex64)[name]:
        real = getattr(OPS, name)(*args)
        with FakeTensorMode() as mode:
            fake = getattr(OPS, name)(*[mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in args])
        for a, b in zip(
            real if isinstance(real, tuple) else (real,), fake if isinstance(fake, tuple) else (fake,), strict=True
        ):
            assert a.shape == b.shape and a.dtype is b.dtype and a.stride() == b.stride(), name


@pytest.mark.parametrize("name", [n for n in NAMES if not n.endswith("_vjp")])
def test_dispatcher_equals_eager(name):
    """torch.ops.semcom_fast.<op> and the direct call of the public function run the same kernel."""
    args = packet_samples(torch.complex64)[name][0]
    public = {
        "mimo_matmul": lambda a, b, p, q: sf.mimo_matmul(a, b, adjoint_a=p, adjoint_b=q),
        "blockdiag_apply": lambda h, x: sf.blockdiag_apply(h, x),
        "blockdiag_adjoint": lambda h, y: sf.blockdiag_adjoint(h, y),
        "likelihood_score": lambda y, h, x, n, p: sf.likelihood_score(y, h, x)[:3],
        "power_normalise": lambda z, p, d: sf.power_normalise(z, power=p, dims=d),
        "pvd_update": lambda *a: sf.pvd_update(
            *a[:5], noise=a[5], sigma=a[6], sigma_above=a[7], zeta=a[8], score_var=a[9]
        ),
        "pvd_calibrate": lambda n, v, p, q, e, nr, c: sf.pvd_calibrate(n, v, p, q, x_energy=e, nr=nr, count=c),
        "pvd_channel_step": lambda y, x, m, a, s, p, n, *lv: sf.pvd_channel_step(
            y,
            x,
            m,
            a,
            s,
            probe=p,
            noise=n,
            sigma=lv[0],
            sigma_above=lv[1],
            zeta=lv[2],
            score_var=lv[3],
            next_var=lv[4],
            var=lv[5],
        ),
        "philox_normal": lambda s, k, t, st, f, d, dev: sf.philox_normal(
            s, seed=k, step=t, stream=st, first_item=f, dtype=d
        ),
        "rzf_precode": lambda h, s, a, *_: sf.rzf_precode(h, s, a.repeat_interleave(2)),
        "lmmse_equalise": lambda y, h, v, *_: sf.lmmse_equalise(y[:, 0], h, v.repeat_interleave(2)),
        "cir_to_ofdm": lambda g, d, f, dim: sf.cir_to_ofdm(g, d, f, frequency_dim=dim),
        "waterfill_equalise": lambda y, h, n: sf.waterfill_equalise(y, h, n),
        "waterfill_inject": lambda f, d, n, b, k, t, i: sf.waterfill_inject(f, d, b, seed=k, step=t, first_item=i),
        "waterfill_step": lambda g, x, f, d, u, p, n, t, s, w, *_: sf.waterfill_step(
            g, x, f, d, t, s, x0_uncond=u, guidance=w, noise=n
        ),
        "waterfill_step_authors": lambda f, g, d, x, n, t, s, u, r, b, k, i, j: sf.waterfill_step_authors(
            f, g, d, x, t, s, seed=k, step=i, first_item=j
        ),
        "cdl_channels": REGISTERED["cdl_channels"],
        "pilot_posterior_step": lambda h, e, w, y, u, s, n, a, b, lam, x0: sf.pilot_posterior_step(
            h, e, w, y, sf.PilotSVD(u, s, u), noise_var=n, alpha_bar=a, beta=b, lam=lam, lik="x0" if x0 else "dmps"
        ),
        "renoise": lambda h, t, a, k, f, n: sf.renoise(h, t, a, seed=k, first_item=f, noise=n),
        "elbo_reduce": lambda e, h, t, a, w, y, u, s, v, i, k, f, n: sf.elbo_reduce(
            e, h, t, a, w, y, sf.PilotSVD(u, s, u), noise_var=v, tau=int(t[i]), seed=k, first_item=f, noise=n
        ),
        "dirichlet_responsibilities": lambda L, D, p, g, eta: sf.dirichlet_responsibilities(L, D, p, gamma=g, eta=eta),
    }
    want, got = public[name](*args), getattr(OPS, name)(*args)
    for a, b in zip(*(v if isinstance(v, tuple) else (v,) for v in (want, got)), strict=False):
        assert torch.equal(a, b)


PUBLIC = {
    "mimo_matmul": lambda y, h, x: sf.mimo_matmul(sf.mimo_matmul(y[:, None], x, adjoint_b=True), h, adjoint_a=True) + 1,
    "blockdiag_apply": lambda y, h, x: sf.blockdiag_apply(h, x) + y,
    "blockdiag_adjoint": lambda y, h, x: sf.blockdiag_adjoint(h, y) + x,
    "likelihood_score": lambda y, h, x: sf.likelihood_score(y, h, x, 0.5, probe=x).score_h + h,
    "likelihood_score energies": lambda y, h, x: (lambda s: s.energy * 2 + s.probe_y + s.probe_x.sum(-1))(
        sf.likelihood_score(y, h, x, probe=2 * x)
    ),
    "power_normalise": lambda y, h, x: sf.power_normalise(x + 1j * x)[0] + x,
    "pvd_update": lambda y, h, x: (
        sf.pvd_update(h, 2 * h, h + 1, h * 1j, h, sigma=0.5, sigma_above=0.7, zeta=0.1, seed=3)[1] + h
    ),
    "pvd_update levels": lambda y, h, x: sf.pvd_update(
        h,
        2 * h,
        h + 1,
        h * 1j,
        h,
        sigma=0.5,
        sigma_above=0.7,
        zeta=0.1,
        noise=h,
        score_var=h.abs().square().sum((1, 2, 3, 4)).detach(),
    )[0],
    "pvd_calibrate": lambda y, h, x: (
        lambda s: sf.pvd_calibrate(0.1, s.probe_x, s.probe_x + 1, s.probe_y, x_energy=10.0, nr=4, count=60)
    )(sf.likelihood_score(y, h, x, probe=x)),
    "rzf_precode": lambda y, h, x: _precode(y, h, h.abs().square().mean((1, 2, 3, 4))),
    "lmmse_equalise": lambda y, h, x: (lambda s, n: s + n)(*sf.lmmse_equalise(y[:, None, ..., 0] * 2, h, 0.3)),
    "lmmse_channel": lambda y, h, x: sf.lmmse_channel(y[:, None], x, 0.3, x @ x.mH + torch.eye(2)) + h,
    "cir_to_ofdm": lambda y, h, x: sf.cir_to_ofdm(x, x.real, y[0, 0, 0].real.detach().double(), frequency_dim=1) * 2,
    "waterfill": lambda y, h, x: waterfill_calls.denoise(y, h[:, 0, ..., :1]),
    "estimation": lambda y, h, x: vb_calls.estimate(y[:, 0, :, :3], h[:, 0], x),
}


def _precode(y, h, alpha):
    """With and without power, a level per item, both forms, and the matrix, beside complex arithmetic."""
    s = y[:, None, ..., 0].expand(-1, 2, -1, -1)
    scaled = sf.rzf_precode(2 * h, s, alpha, power=1.0)
    return scaled + sf.rzf_precode(h, s, alpha.detach(), form="K") + sf.rzf_matrix(h, alpha).sum(-1)


def _operands(batch, dtype, grad=True):
    shapes = ((batch, 3, 4, 5), (batch, 2, 3, 4, 2), (batch, 2, 3, 2, 5))
    return [draw(*s, seed=i, dtype=dtype).requires_grad_(grad) for i, s in enumerate(shapes)]


def _run(fn, args):
    out = fn(*args)
    loss = out.abs().square().sum() if out.is_complex() else out.square().sum()
    return [out.detach(), *(g for g in torch.autograd.grad(loss, args, allow_unused=True) if g is not None)]


def _same(fn, compiled, batch, dtype, label):
    want, got = _run(fn, _operands(batch, dtype)), _run(compiled, _operands(batch, dtype))
    unit = 2.0**-24 if dtype is torch.complex64 else 2.0**-53
    for a, b in zip(want, got, strict=True):
        # the same kernels; only the complex arithmetic around them may be contracted or ordered differently
        within(b, a, 64 * unit * (1e-30 + a.abs().max()), label)


DOUBLE_ONLY = (
    "rzf_precode",
    "lmmse_equalise",
    "lmmse_channel",
    "cir_to_ofdm",
    "waterfill",
    "estimation",
)  # slow to trace, and no other branch in complex64


COMPILED = [(n, d) for n in PUBLIC for d in DTYPES if d is torch.complex128 or n not in DOUBLE_ONLY]


@pytest.mark.parametrize("name, dtype", COMPILED, ids=str)
def test_compile_beside_complex_arithmetic(name, dtype):
    """torch.compile(fullgraph=True) with aot_eager: op + complex add, forward and backward, with a dynamic batch."""
    torch._dynamo.reset()
    compiled = torch.compile(PUBLIC[name], fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (3, 5):
        _same(PUBLIC[name], compiled, batch, dtype, "compile aot_eager")
    torch._dynamo.reset()


def test_compile_recompiles_for_a_new_batch():
    """Without dynamic=True the second batch size marks the dimension dynamic; results stay right."""
    torch._dynamo.reset()
    compiled = torch.compile(PUBLIC["likelihood_score"], fullgraph=True, backend="aot_eager")
    for batch in (2, 3, 1, 4):
        _same(PUBLIC["likelihood_score"], compiled, batch, torch.complex64, "compile recompiled")
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["blockdiag_apply"])
def test_compile_with_inductor(name, dtype):
    """The default backend: complex arithmetic beside the op is left to eager kernels, the results are the same."""
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Inductor says that it has no complex code generation
        compiled = torch.compile(PUBLIC[name], fullgraph=True, dynamic=True)
        for batch in (3, 5):
            _same(PUBLIC[name], compiled, batch, dtype, "compile inductor")
    torch._dynamo.reset()


def test_compile_sees_one_node():
    """The op is one opaque node of the compiled graph, not a decomposition."""
    torch._dynamo.reset()
    seen = []

    def spy(graph, inputs):
        seen.extend(str(n.target) for n in graph.graph.nodes if n.op == "call_function")
        return graph

    y, h, x = _operands(2, torch.complex64, grad=False)
    torch.compile(lambda *a: sf.likelihood_score(*a).score_h, fullgraph=True, backend=spy)(y, h, x)
    assert sum("semcom_fast.likelihood_score" in s for s in seen) == 1
    assert not any("matmul" in s or "bmm" in s for s in seen), seen
    torch._dynamo.reset()


@pytest.mark.parametrize("value", ["number", "tensor", "[B]"])
def test_compile_with_levels(value):
    """Levels as numbers, 0-d tensors and [B] tensors inside a compiled function."""
    torch._dynamo.reset()
    level = {"number": 0.4, "tensor": torch.tensor(0.4), "[B]": torch.tensor([0.4, 0.5, 0.6])}[value]

    def fn(h, v):
        return sf.pvd_update(h, h, h + 1, h, h, sigma=v, sigma_above=0.9, zeta=0.1, next_var=v, noise=h)[1]

    h = draw(3, 2, 5, dtype=torch.complex64)
    got = torch.compile(fn, fullgraph=True, backend="aot_eager")(h, level)
    within(got, fn(h, level), 1e-6, "compile levels")
    torch._dynamo.reset()


def test_compile_draws():
    """Draws inside a compiled function are those of eager, for number and tensor seeds and steps, and change with step."""
    torch._dynamo.reset()

    def fn(h, seed, step):
        _, sample = sf.pvd_update(h, h, h, h, h, sigma=0.5, sigma_above=0.7, zeta=0.1, seed=seed, step=step, stream=1)
        return sample + sf.philox_normal((3, 2, 5), seed=seed, step=step, dtype=torch.complex64)

    compiled, h = torch.compile(fn, fullgraph=True, backend="aot_eager"), draw(3, 2, 5, dtype=torch.complex64)
    seen = []
    for step in range(3):
        for seed in (7, torch.tensor(7)):
            at = torch.tensor(step) if isinstance(seed, torch.Tensor) else step
            got = compiled(h, seed, at)
            within(got, fn(h, seed, at), 1e-6, "compile draws")
        seen.append(got)
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])
    torch._dynamo.reset()


def test_compile_large_seed():
    """A seed of the upper half of 64 bits survives tracing."""
    torch._dynamo.reset()

    def fn(h):
        return h + sf.philox_normal((2, 3), seed=2**63 + 5, dtype=torch.float64)

    h = torch.zeros(2, 3, dtype=torch.float64)
    assert torch.equal(torch.compile(fn, fullgraph=True, backend="aot_eager")(h), fn(h))
    torch._dynamo.reset()


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("name", PUBLIC)
def test_make_fx(name, mode):
    """make_fx records the op and replays on other values; symbolic shapes replay on another batch."""
    args = _operands(3, torch.complex128, grad=False)
    graph = make_fx(PUBLIC[name], tracing_mode=mode)(*args)
    assert any("semcom_fast" in str(n.target) for n in graph.graph.nodes)
    other = [2 * a for a in _operands(4 if mode == "symbolic" else 3, torch.complex128, grad=False)]
    want = PUBLIC[name](*other)
    within(graph(*other), want, 1e-13 * want.abs().max(), "make_fx")


def test_export():
    """torch.export of a module around likelihood_score with a dynamic batch."""

    class Module(torch.nn.Module):
        def forward(self, y, h, x):
            out = sf.likelihood_score(y, h, x, 0.5)
            return out.score_h + h, out.energy

    batch = torch.export.Dim("batch", min=2, max=64)
    args = tuple(_operands(3, torch.complex64, grad=False))
    program = torch.export.export(Module(), args, dynamic_shapes=({0: batch}, {0: batch}, {0: batch}))
    assert any("semcom_fast.likelihood_score" in str(n.target) for n in program.graph.nodes)
    other = _operands(7, torch.complex64, grad=False)
    for a, b in zip(program.module()(*other), Module()(*other), strict=True):
        assert torch.equal(a, b)


def test_tracing_checks_shapes():
    """Shape errors are raised while tracing too, with the op's own message."""
    torch._dynamo.reset()
    y, h, x = _operands(2, torch.complex64, grad=False)
    with pytest.raises(Exception, match="likelihood_score: need"):
        torch.compile(lambda *a: sf.likelihood_score(*a).energy, fullgraph=True, backend="eager")(y[..., :3], h, x)
    short = y[..., :3].clone()
    with FakeTensorMode() as mode, pytest.raises(ValueError, match="likelihood_score: need"):
        sf.likelihood_score(*(mode.from_tensor(t) for t in (short, h, x)))
    torch._dynamo.reset()


def test_autocast_and_inference_mode():
    """Ops keep their precision under autocast and run in inference mode."""
    y, h, x = _operands(2, torch.complex64, grad=False)
    want = sf.likelihood_score(y, h, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sf.likelihood_score(y, h, x).score_h, want.score_h)
    with torch.inference_mode():
        assert torch.equal(sf.likelihood_score(y, h, x).energy, want.energy)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", list(PUBLIC))
def test_jit_trace(name):
    """The recorded graph holds the op; a kernel called past it would leave uninitialised memory there."""
    operands = _operands(2, torch.complex128, grad=False)
    want = PUBLIC[name](*operands)
    got = torch.jit.trace(PUBLIC[name], tuple(operands))(*operands)
    within(got, want, 1e-13 * want.abs().max(), f"jit.trace {name}")
