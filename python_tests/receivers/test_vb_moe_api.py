"""VBMoE as people call it: arguments, results, callbacks and errors."""

import numpy as np
import pytest
import torch
from white_experts import NP, NR, NT, SMALL, T, White, experts, received, same

import semcom_fast as sf

# --- arguments and results


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("preset", ["recommended", "paper"])
def test_result(preset, dtype):
    y, p, noise_var, _ = received(dtype=dtype)
    r = sf.VBMoE(experts(), sf.VBMoEConfig.preset(preset, **SMALL)).run(y, p, noise_var)
    real = y.real.dtype
    assert r.h.shape == (5, NR, NT) and r.h.dtype is dtype
    assert r.responsibilities.shape == r.gamma.shape == r.log_evidence.shape == (5, 3)
    assert r.responsibilities.dtype is r.gamma.dtype is r.log_evidence.dtype is real
    assert r.iterations.shape == (5,) and r.calls.shape == (3,) and r.iterations.dtype is r.calls.dtype is torch.int64
    assert float((r.responsibilities.sum(1) - 1).abs().max()) < 1e-6
    assert int(r.iterations.min()) >= 2 and int(r.iterations.max()) <= 5


def test_calls_count_the_rows_experts_saw():
    y, p, noise_var, _ = received(7, snr_db=3)
    for options in ({}, {"prune": 0.0, "tolerance": 0.0}):
        made = experts()
        r = sf.VBMoE(made, sf.VBMoEConfig(**SMALL, **options)).run(y, p, noise_var)
        assert r.calls.tolist() == [e.rows for e in made]
    assert r.calls.tolist() == [5 * 7 * (T + 8)] * 3 and r.iterations.tolist() == [5] * 7


def test_prune_keeps_the_largest():
    y, p, noise_var, _ = received(6, snr_db=-10)
    found = []
    for prune in (0.0, 0.999):
        r = sf.VBMoE(experts(), sf.VBMoEConfig(prune=prune, iterations=2, **SMALL)).run(y, p, noise_var)
        found.append(r)
    assert int(found[0].calls.sum()) == 6 * 3 * (T + 8) * 2
    assert int(found[1].calls.sum()) == 6 * 3 * (T + 8) + 6 * (T + 3 * 8)  # one expert per channel in the second chain
    assert bool(torch.isfinite(torch.view_as_real(found[1].h)).all())


def test_one_expert_is_one_chain():
    y, p, noise_var, _ = received()
    alone = White(1.0)
    r = sf.VBMoE(alone, sf.VBMoEConfig(**SMALL)).run(y, p, noise_var)
    assert alone.rows == 5 * T == int(r.calls) and r.iterations.tolist() == [1] * 5
    assert torch.equal(r.responsibilities, torch.ones(5, 1)) and torch.equal(r.gamma, torch.full((5, 1), 2.0))
    assert bool(r.log_evidence.isnan().all())
    shared = sf.VBMoE([alone], sf.VBMoEConfig(shared=True, **SMALL)).run(y, p, noise_var)
    assert torch.equal(shared.h, r.h) and shared.gamma.tolist() == [6.0]


def test_empty_batch():
    y, p, noise_var, _ = received()
    r = sf.VBMoE(experts(), sf.VBMoEConfig(**SMALL)).run(y[:0], p, noise_var)
    assert r.h.shape == (0, NR, NT) and r.responsibilities.shape == (0, 3) and r.iterations.shape == (0,)
    assert r.calls.tolist() == [0, 0, 0]


def test_pilots_shared_decomposed_or_one_per_channel():
    y, p, noise_var, _ = received()
    v = sf.VBMoE(experts(), sf.VBMoEConfig(**SMALL))
    want = v.run(y, p, noise_var)
    assert same(v.run(y, sf.pilot_svd(p), noise_var), want)
    assert same(v.run(y, p[None], noise_var), want)
    own = v.run(y, p.expand(5, -1, -1), noise_var)
    error = float((own.h - want.h).abs().max())
    assert error < 1e-5 and own.calls.tolist() == want.calls.tolist()  # the bits of a batched SVD may differ


@pytest.mark.parametrize("kind", ["tensor", "numpy", "cuda-like 0-d", "int"])
def test_kinds_of_noise_var(kind):
    y, p, _, _ = received()
    v = sf.VBMoE(experts(), sf.VBMoEConfig(**SMALL))
    given = {"tensor": torch.full((5,), 2.0), "numpy": np.full(5, 2.0), "cuda-like 0-d": torch.tensor(2.0), "int": 2}
    assert same(v.run(y, p, given[kind]), v.run(y, p, 2.0))


def test_rows_of_unequal_snr_do_not_meet():
    y, p, _, _ = received(6)
    noise_var = [NT * 10 ** (-snr / 10) for snr in (10, -5, 20, 0, -5.1, 10)]
    v = sf.VBMoE(experts(), sf.VBMoEConfig(**SMALL))
    whole = v.run(y, p, torch.tensor(noise_var, dtype=torch.float64), first_item=3)
    for b, level in enumerate(noise_var):
        one = v.run(y[b : b + 1], p, level, first_item=3 + b)
        error = float((whole.h[b] - one.h[0]).abs().max())  # the product Y V may round otherwise in another batch
        assert error < 4e-6 and int(whole.iterations[b]) == int(one.iterations)


def test_start():
    y, p, noise_var, _ = received()
    zero = sf.VBMoE(experts(), sf.VBMoEConfig(start="zero", **SMALL)).run(y, p, noise_var)
    v = sf.VBMoE(experts(), sf.VBMoEConfig(**SMALL))
    assert same(v.run(y, p, noise_var, start=torch.zeros(5, NR, NT, dtype=y.dtype)), zero)
    drawn = sf.philox_normal((5, NR, NT), seed=4, stream=7, first_item=2, dtype=y.dtype)
    assert same(v.run(y, p, noise_var, seed=4, first_item=2), v.run(y, p, noise_var, seed=4, first_item=2, start=drawn))
    assert not torch.equal(v.run(y, p, noise_var, seed=4).h, zero.h)


def test_the_caller_s_tensors_stay_as_they_are():
    y, p, noise_var, _ = received()
    start = sf.philox_normal((5, NR, NT), seed=4, dtype=y.dtype)
    kept = [t.clone() for t in (y, p, start)]
    sf.VBMoE(experts(), sf.VBMoEConfig(**SMALL)).run(y, p, noise_var, start=start)
    assert all(torch.equal(a, b) for a, b in zip(kept, (y, p, start), strict=True))


# --- callbacks and interruption


def test_on_iteration_sees_every_iteration():
    y, p, noise_var, _ = received()
    seen = []
    v = sf.VBMoE(experts(), sf.VBMoEConfig(**SMALL))
    r = v.run(y, p, noise_var, on_iteration=lambda i, rho, h: seen.append((i, rho.clone(), rho, h.clone(), h)))
    assert [s[0] for s in seen] == list(range(1, int(r.iterations.max()) + 1))
    assert torch.equal(seen[-1][2], r.responsibilities) and torch.equal(seen[-1][4], r.h)
    assert all(torch.equal(s[1], s[2]) and torch.equal(s[3], s[4]) for s in seen)  # later iterations write elsewhere


def test_interrupted_run_keeps_what_it_has():
    y, p, noise_var, _ = received(snr_db=0)
    v = sf.VBMoE(experts(), sf.VBMoEConfig(tolerance=0.0, **SMALL))

    def stop(iteration, rho, h):
        if iteration == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        v.run(y, p, noise_var, on_iteration=stop)
    want = sf.VBMoE(experts(), sf.VBMoEConfig(tolerance=0.0, iterations=2, **SMALL)).run(y, p, noise_var)
    assert same(v.partial, want)
    whole = v.run(y, p, noise_var)
    assert whole.iterations.tolist() == [5] * 5 and same(v.partial, whole)


def test_progress_bar(capsys):
    pytest.importorskip("tqdm", reason="tqdm is not installed: pip install 'semcom-fast[demo]'")
    y, p, noise_var, _ = received()
    v = sf.VBMoE(experts(), sf.VBMoEConfig(tolerance=0.0, iterations=2, **SMALL))
    want = v.run(y, p, noise_var)
    assert capsys.readouterr().err == ""
    assert same(v.run(y, p, noise_var, progress=True), want)
    assert "VBMoE" in capsys.readouterr().err


# --- errors


def _with(**changes):
    y, p, noise_var, _ = received()
    return {"y": y, "pilots": p, "noise_var": noise_var} | changes


def _spoilt(t, index, value):
    t = t.clone()
    t[index] = value
    return t


BAD = {
    "y real": (lambda: _with(y=torch.zeros(5, NR, NP)), TypeError, "y must be a complex64 or complex128 tensor, got torch"),
    "y list": (lambda: _with(y=[1]), TypeError, "y must be .* got list"),
    "y 2-d": (lambda: _with(y=received()[0][0]), ValueError, r"y must be \[B,Nr,Np\], got shape \(2, 4\)"),
    "y NaN": (lambda: _with(y=_spoilt(received()[0], (3, 0, 1), torch.nan)), ValueError, "y of item 3 holds NaN or Inf"),
    "pilots NaN": (lambda: _with(pilots=_spoilt(received()[1], (0, 0), torch.nan)), ValueError, "pilot_svd: .*NaN or Inf"),
    "pilots zero": (lambda: _with(pilots=received()[1] * 0), ValueError, "pilot_svd: .*all zero"),
    "pilots dtype": (
        lambda: _with(pilots=received()[1].to(torch.complex128)), TypeError, "pilots must be torch.complex64 on cpu"
    ),
    "pilots slots": (lambda: _with(pilots=received()[1][:, :3]), ValueError, r"pilots must be \[Nt,Np\] .* got \(6, 3\)"),
    "pilots batch": (lambda: _with(pilots=received()[1].expand(4, -1, -1)), ValueError, r"got \(4, 6, 4\)"),
    "svd slots": (lambda: _with(pilots=sf.pilot_svd(received()[1][:, :3])), ValueError, r"decomposition's v must be"),
    "noise 0": (lambda: _with(noise_var=0), ValueError, "noise_var must be positive and finite, got 0"),
    "noise negative": (
        lambda: _with(noise_var=torch.tensor([1.0, 1, -2, 1, 1])), ValueError, "noise_var of item 2 must be positive"
    ),
    "noise NaN": (lambda: _with(noise_var=float("nan")), ValueError, "noise_var must be positive and finite, got nan"),
    "noise batch": (lambda: _with(noise_var=torch.ones(4)), ValueError, r"noise_var must be a number or \[B\] = \[5\]"),
    "start shape": (lambda: _with(start=torch.zeros(5, NT, NR, dtype=torch.complex64)), ValueError, "start must be"),
    "start dtype": (lambda: _with(start=torch.zeros(5, NR, NT)), TypeError, "start must be a torch.complex64 tensor"),
    "start NaN": (
        lambda: _with(start=torch.full((5, NR, NT), torch.nan, dtype=torch.complex64)), ValueError, "start of item 0"
    ),
    "seed": (lambda: _with(seed=None), TypeError, "seed and first_item must be integers"),
    "first_item": (lambda: _with(first_item=-1), ValueError, "first_item must not be negative"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_arguments_that_do_not_fit(case):
    make, error, message = BAD[case]
    made = experts()
    with pytest.raises(error, match=message):
        sf.VBMoE(made, sf.VBMoEConfig(**SMALL)).run(**make())
    assert all(e.rows == 0 for e in made)  # refused before any network ran


def test_experts_that_are_none():
    with pytest.raises(ValueError, match="at least one expert"):
        sf.VBMoE([])
    with pytest.raises(TypeError, match=r"expert 1 must be a callable .* a int is not"):
        sf.VBMoE([White(1.0), 3])
    with pytest.raises(ValueError, match="gamma0 has 2 entries for 3 experts"):
        sf.VBMoE(experts(), sf.VBMoEConfig(gamma0=(1.0, 2.0)))


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        (
            lambda e: e[:, :, :-1],
            ValueError,
            r"expert 1 must return eps \(5, 2, 6\) at diffusion step 4, got \(5, 2, 5\)",
        ),
        (lambda e: e.real, TypeError, "expert 1 must return torch.complex64 on cpu, .* gave torch.float32 .* step 4"),
        (lambda e: e.numpy(), TypeError, "expert 1 must return a tensor, got ndarray at diffusion step 4"),
        (
            lambda e: _spoilt(e, (3, 1, 2), torch.nan),
            ValueError,
            "expert 1 returned NaN or Inf at diffusion step 4 for item 3",
        ),
        (
            lambda e: _spoilt(e, (0, 0, 0), torch.inf),
            ValueError,
            "expert 1 returned NaN or Inf at diffusion step 4 for item 0",
        ),
    ],
)
@pytest.mark.parametrize("init", ["per_expert", "uniform"])
def test_expert_that_fails_in_the_chain(init, what, error, message):
    y, p, noise_var, _ = received()
    made = [White(0.3), White(1.0, 4, what), White(2.5)]
    with pytest.raises(error, match=message):
        sf.VBMoE(made, sf.VBMoEConfig(init=init, elbo_steps=(5, 10), **SMALL)).run(y, p, noise_var)


def test_expert_that_fails_in_the_evidence():
    y, p, noise_var, _ = received()
    calls = []

    def failing(h_t, t):
        calls.append(t)
        eps = White(1.0)(h_t, t)
        return _spoilt(eps, (2, 0, 0), torch.nan) if calls.count(t) == 2 and t == 7 else eps

    v = sf.VBMoE([White(0.3), failing], sf.VBMoEConfig(init="uniform", elbo_steps=(5, 7), **SMALL))
    with pytest.raises(
        ValueError, match="expert 1 returned NaN or Inf at diffusion step 7 for item 2, in the evidence"
    ):
        v.run(y, p, noise_var)


def test_failure_that_does_not_repeat_is_still_an_error():
    y, p, noise_var, _ = received()
    calls = []

    def failing(h_t, t):
        calls.append(t)
        return White(1.0)(h_t, t) * (torch.nan if len(calls) == 3 else 1)

    with pytest.raises(ValueError, match="but not when it was run again: is an expert's result random"):
        sf.VBMoE(failing, sf.VBMoEConfig(**SMALL)).run(y, p, noise_var)


def test_what_was_found_before_a_failure_is_kept():
    y, p, noise_var, _ = received(snr_db=0)
    third = White(2.5)
    v = sf.VBMoE([White(0.3), White(1.0), third], sf.VBMoEConfig(tolerance=0.0, prune=0.0, **SMALL))

    def poison(iteration, rho, h):
        if iteration == 2:
            third.at, third.what = 6, lambda e: e * torch.nan

    with pytest.raises(ValueError, match="expert 2 returned NaN or Inf at diffusion step 6 for item 0"):
        v.run(y, p, noise_var, on_iteration=poison)
    assert v.partial.iterations.tolist() == [2] * 5 and bool(torch.isfinite(torch.view_as_real(v.partial.h)).all())
