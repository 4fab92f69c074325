"""WaterfillDDIM.run: arguments, options, callback, noise kinds, split batches, and images that diverge."""

import sys
from itertools import pairwise

import pytest
import torch
import waterfill_cases as cases
from sf_testing import draw, same_bits, within

import semcom_fast as sf

NAN = float("nan")
PRESETS = ("paper", "authors_scalar", "authors_per_sample")


@pytest.fixture(params=["cpu", "reference"])
def backend(request):
    with sf.use_backend(request.param):
        yield request.param


def _predict(g, level):
    """Bits that depend on no other element."""
    b = level.reshape(-1, *(1,) * (g.ndim - 1))
    return (1 - b) * g / (1 + b * g * g)


def _pair(g, level):
    return _predict(g, level), 0.5 * g


def _state(b=5, latent=(4, 2, 4), dtype=torch.float32):
    f = draw(b, *latent, seed=1, dtype=torch.float64).to(dtype)
    u = torch.rand(b, f[0].numel() // 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return f, (0.05 + 0.9 * u).to(dtype)


def _run(f, d, predictor=_predict, config=None, preset="paper", **kwargs):
    options = {"steps": 8} | (config or {})
    return sf.WaterfillDDIM(predictor, sf.WaterfillConfig.preset(preset, **options)).run(f, d, **kwargs)


@pytest.mark.parametrize("fading", [False, True])
def test_guided_runs(fading, backend):
    """(x0, x0_uncond) is combined with w before the step; (x0, None) and a bare x0 are not guided."""
    f, d = _state(dtype=torch.float64)
    d = d if fading else d[:, 0]
    weights = (
        sf.WaterfillConfig(steps=8, guidance=3.0, cfg_schedule="pcs_1.0")
        .tables(d.numpy() if not fading else d.amax(1).numpy())
        .guidance
    )
    calls = iter(range(8))

    def mixed(g, level):
        w = torch.from_numpy(weights[next(calls)]).reshape(-1, 1, 1, 1)
        return w * _predict(g, level) + (1 - w) * 0.5 * g

    got = _run(f, d, _pair, {"guidance": 3.0, "cfg_schedule": "pcs_1.0"}, seed=3)
    within(got, _run(f, d, mixed, seed=3), 1e-12, "guided run")
    want = _run(f, d, seed=3)
    same_bits(_run(f, d, lambda g, b: (_predict(g, b), None), {"guidance": 3.0}, seed=3), want, "no unconditional rows")
    within(_run(f, d, _pair, seed=3), want, 1e-12, "guidance 1 is no guidance")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["philox", None, "tensor"])
@pytest.mark.parametrize(
    "preset, extra", [("paper", {}), ("authors_per_sample", {"solver": "ddim"}), ("paper", {"keep_clean": True})]
)
def test_split_batch(preset, extra, kind, dtype, backend):
    """first_item: a batch cut anywhere gives the same bits, fast fading with every option that draws."""
    f, d = _state(dtype=dtype)
    noise = draw(8, 5, 32, seed=7, dtype=torch.float64).to(dtype)

    def run(a, b):
        given = noise[:, a:b] if kind == "tensor" else kind
        return _run(f[a:b], d[a:b], _predict, extra, preset, seed=9, noise=given, first_item=3 + a)

    whole = run(0, 5)
    for cuts in ((0, 1, 5), (0, 2, 3, 5), (0, 1, 2, 3, 4, 5)):
        same_bits(torch.cat([run(a, b) for a, b in pairwise(cuts)]), whole, f"cuts {cuts}")
    if kind != "tensor":
        assert not torch.equal(_run(f, d, _predict, extra, preset, seed=9, noise=kind, first_item=4), whole)


@pytest.mark.parametrize("preset", PRESETS)
def test_split_slow_batch(preset, backend):
    """One level per image: nothing is drawn, and the split changes no bit."""
    f, d = _state()
    level = torch.full((5,), 0.4) if preset == "authors_scalar" else d[:, 0]
    whole = _run(f, level, _pair, preset=preset)
    parts = [_run(f[a:b], level[a:b], _pair, preset=preset, seed=4) for a, b in ((0, 2), (2, 5))]
    same_bits(torch.cat(parts), whole, preset)


def test_noise_kinds(backend):
    """philox is stream 6 with the level index as step, "torch" one full draw of its generator per level."""
    f, d = _state()
    philox = torch.stack([sf.philox_normal((5, 32), seed=11, step=k, stream=6, first_item=2) for k in range(8)])
    want = _run(f, d, seed=11, first_item=2)
    same_bits(_run(f, d, noise=philox), want, "philox as a tensor [T,B,N]")
    same_bits(_run(f, d, noise=philox.reshape(8, 5, 4, 2, 4)), want, "philox as a tensor [T,B,*latent]")
    same_bits(_run(f, d, seed=11, first_item=2, noise="philox"), want, "by name")
    torch.manual_seed(5)
    given = torch.stack([torch.randn(5, 4, 2, 4) for _ in range(8)])
    after = torch.rand(3)
    torch.manual_seed(5)
    same_bits(_run(f, d, noise="torch"), _run(f, d, noise=given), "torch's generator")
    assert torch.equal(torch.rand(3), after), "one draw per level, no more"
    assert not torch.equal(_run(f, d, seed=12, first_item=2), want)
    same_bits(_run(f, d, seed=torch.tensor(11), first_item=2), want, "seed as a tensor")


def test_views_and_layouts(backend):
    """Permuted latents and expanded levels are read as they are; the result is like f; f is left alone."""
    f, d = _state()
    before = f.clone()
    want = _run(f, d, seed=1)
    same_bits(f, before, "f is not written to")
    same_bits(_run(f.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), d, seed=1), want, "permuted f")
    same_bits(_run(torch._neg_view(-f), torch._neg_view(-d), seed=1), want, "negated views")
    same_bits(_run(f, d.repeat(1, 2), seed=1), want, "d per real")
    same_bits(_run(f.flatten(1), d, seed=1).reshape(f.shape), want, "flat latent")
    assert want.shape == f.shape and want.dtype is f.dtype


def test_on_step_and_progress(backend):
    """The callback sees every update: level index, level reached, next input, and x0 as the predictor gave it."""
    f, d = _state()
    seen, calls = [], []

    def spy(g, level):
        calls.append((g.clone(), level.clone()))
        return _predict(g, level)

    got = _run(f, d, spy, seed=1, on_step=seen.append, progress=True)
    assert [s.step for s in seen] == list(range(1, 9)) and len(calls) == 8
    for s, (g, level) in zip(seen[:-1], calls[1:], strict=True):
        same_bits(s.g, g, "the next input")
        same_bits(s.beta_bar, level, "the next level")
    for s, (g, level) in zip(seen, calls, strict=True):
        assert s.g.shape == s.x0.shape == f.shape
        same_bits(s.x0, _predict(g, level), "x0")
    assert not seen[-1].beta_bar.any()
    same_bits(seen[-1].g, got, "the end")
    same_bits(calls[0][1], d.amax(1), "the first level is max d itself")


def test_missing_progress_bar_names_the_extra(monkeypatch):
    """progress=True without tqdm is a clear error."""
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(sf.MissingExtra, match=r"tqdm.*semcom-fast\[demo\]"):
        _run(*_state(), progress=True)


@pytest.mark.parametrize("preset", ["paper", "authors_per_sample"])
def test_start_level(preset, backend):
    """start=: above max d the whole state is topped up first; below it only init_clip accepts, counting d as the start."""
    f, d = _state(dtype=torch.float64)
    extra = {"solver": "ddim", "latent_shift": 0.0, "output_renorm": False}
    levels = []
    _run(f, d, lambda g, b: (levels.append(b), _predict(g, b))[1], extra, preset, seed=1, start=0.97)
    within(levels[0], torch.full((5,), 0.97, dtype=torch.float64), 1e-15, "start level")
    if preset == "paper":
        with pytest.raises(ValueError, match=r"image \d.*init_clip"):
            _run(f, d, seed=1, start=0.5)
    want = _run(f, d.clamp(max=0.5), _predict, extra, preset, seed=1, start=0.5)
    same_bits(_run(f, d, _predict, extra | {"init_clip": True}, preset, seed=1, start=0.5), want, "init_clip")


def test_output_options(backend):
    """latent_shift, output_renorm and keep_clean act on the final latent and on nothing else."""
    f, d = _state(dtype=torch.float64)
    base = _run(f, d, seed=1)
    shifted = _run(f, d, config={"latent_shift": 0.1}, seed=1) - base
    want = torch.zeros_like(f)
    want[:, [0, 3]] = 0.1
    within(shifted, want, 1e-15 * 4, "latent_shift")
    scaled = _run(f, d, config={"output_renorm": True}, seed=1)
    within(scaled, base / base.square().mean((1, 2, 3), keepdim=True).sqrt(), 1e-14, "output_renorm")
    last = cases.span_levels(d.amax(1).numpy(), 8)[-2]
    clean = d.clone()
    clean[:, 0], clean[2, 1] = 0.0, last[2] * (1 - 1e-9)
    plain = _run(f, clean, seed=1)
    kept = _run(f, clean, config={"keep_clean": True}, seed=1)
    mask = (clean < torch.from_numpy(last)[:, None]).repeat(1, 2)
    assert 12 <= int(mask.sum()) < mask.numel() // 2
    own = clean.repeat(1, 2)
    within(kept.flatten(1)[mask], (f.flatten(1) / (1 - own).sqrt())[mask], 1e-15 * 8, "keep_clean")
    same_bits(kept.flatten(1)[~mask], plain.flatten(1)[~mask], "the others")
    assert not torch.equal(plain.flatten(1)[mask], kept.flatten(1)[mask])


def test_final_prediction(backend):
    """final_predict: n points are n - 1 updates and one more call, whose prediction is the output."""
    f, _ = _state(dtype=torch.float64)
    level, calls = torch.full((5,), 0.4, dtype=torch.float64), []

    def spy(g, b):
        calls.append((g.clone(), b.clone()))
        return _predict(g, b)

    got = _run(f, level, spy, {"latent_shift": 0.0, "output_renorm": False}, "authors_scalar")
    assert len(calls) == 8
    within(calls[-1][1], torch.full((5,), float(cases.schedule(1e-3)), dtype=torch.float64), 1e-15, "the last level")
    same_bits(got, _predict(*calls[-1]), "the output")


ARGUMENTS = [
    (lambda f, d: (f.to(torch.complex64), d), TypeError, "f must be"),
    (lambda f, d: (f[0, 0, 0], d), ValueError, "f must be"),
    (lambda f, d: (f.numpy(), d), TypeError, "f must be"),
    (lambda f, d: (f.index_fill(0, torch.tensor(3), NAN), d), ValueError, "image 3"),
    (lambda f, d: (f, d.double()), TypeError, "d is"),
    (lambda f, d: (f, d[:, :5]), ValueError, "d must be"),
    (lambda f, d: (f, d[:3]), ValueError, "d must be"),
    (lambda f, d: (f, d * 3), ValueError, r"image \d"),
    (lambda f, d: (f, -d), ValueError, "image 0"),
    (lambda f, d: (f, d.index_fill(0, torch.tensor(2), NAN)), ValueError, "image 2"),
    (lambda f, d: (f, 1.5), ValueError, r"\[0, 1\]"),
]


@pytest.mark.parametrize("change, kind, message", ARGUMENTS)
def test_arguments(change, kind, message):
    """Latents and levels that do not fit are refused by name, the offending image included."""
    with pytest.raises(kind, match=rf"^WaterfillDDIM.run: .*{message}"):
        _run(*change(*_state()), seed=1)


def test_other_arguments():
    """Noise, seed, predictor results and solver are checked before or in the first update."""
    f, d = _state()
    for noise, kind in (("normal", ValueError), (torch.zeros(7, 5, 32), ValueError), (torch.zeros(8, 4, 32), ValueError),
                        (torch.zeros(8, 5, 32).double(), TypeError), (3, (TypeError, ValueError))):  # fmt: skip
        with pytest.raises(kind, match=r"^WaterfillDDIM.run: .*noise"):
            _run(f, d, noise=noise)
    with pytest.raises((ValueError, TypeError), match="seed"):
        _run(f, d, seed=None)
    with pytest.raises(ValueError, match=r"(x0|prediction).*like g"):
        _run(f, d, lambda g, b: g.flatten(1), seed=1)
    with pytest.raises(TypeError, match=r"must (be|return) a tensor"):
        _run(f, d, lambda g, b: 1.0, seed=1)
    with pytest.raises(ValueError, match=r"(x0_uncond|prediction).*like g"):
        _run(f, d, lambda g, b: (g, g[:2]), seed=1)
    with pytest.raises(TypeError, match="callable"):
        sf.WaterfillDDIM(3)
    with pytest.raises(ValueError, match=r"dpmpp2m.*image 0"):
        _run(f, d, config={"solver": "dpmpp2m"}, seed=1)
    with pytest.raises(ValueError, match="one_level"):
        _run(f, d[:, 0], preset="authors_scalar")


def test_a_predictor_that_diverges_is_named(backend):
    """NaN from the predictor for image 2 names image 2 (or the op's item 2)."""

    def bad(g, b):
        x0 = _predict(g, b)
        x0[2, 0] = NAN
        return x0

    with pytest.raises(ValueError, match=r"(image|item) 2\b"):
        _run(*_state(), bad, seed=1)


@pytest.mark.parametrize("latent", [(0,), (4, 0, 2)])
@pytest.mark.parametrize("batch", [0, 2])
def test_empty(latent, batch, backend):
    """Empty batches and latents come back empty."""
    f = torch.zeros(batch, *latent)
    assert _run(f, torch.zeros(batch)).shape == f.shape
    f = torch.zeros(0, 4, 2)
    assert _run(f, torch.zeros(0, 4), seed=1).shape == f.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "preset, extra", [("paper", {}), ("authors_per_sample", {"solver": "ddim", "latent_shift": 0.0})]
)
def test_backends_agree(preset, extra, dtype):
    """Native and reference over a whole fast-fading run with explicit noise: rounding only, masks the same."""
    f, d = _state(dtype=dtype)
    noise, outs = draw(8, 5, 32, seed=7, dtype=torch.float64).to(dtype), []
    for choice in ("cpu", "reference"):
        with sf.use_backend(choice):
            outs.append(_run(f, d, _predict, extra, preset, noise=noise))
    limit = (8 * 2e-6 if dtype is torch.float32 else 1e-14) * (1 + outs[1].abs().max())
    within(outs[0], outs[1], limit, f"backends over a run {str(dtype)[6:]}")


def test_threads(backend):
    """The thread count changes no bit of a run."""
    f = draw(64, 512, seed=1, dtype=torch.float32)
    d = 0.05 + 0.9 * torch.rand(64, 256, generator=torch.Generator().manual_seed(5))
    outs = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        outs.append(_run(f, d, config={"steps": 3}, seed=1))
    same_bits(*outs, "threads")
