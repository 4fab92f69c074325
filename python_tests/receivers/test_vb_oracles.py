"""VBMoE against closed forms and against the whole algorithm written out in NumPy."""

import numpy as np
import pytest
import torch
import vb_gauss as gauss
import vb_math as vb
from sf_testing import within
from vb_runs import drawn, run, scene

import semcom_fast as sf

BETA, BAR = vb.schedule(100)


@pytest.fixture(params=["cpu", "reference"])
def backend(request):
    with sf.use_backend(request.param):
        yield request.param


def _close(got, want, limit, label):
    within(torch.as_tensor(got), torch.as_tensor(want), limit * (1 + np.abs(np.asarray(want)).max()), label)


def test_the_package_knows_the_schedule():
    """beta, alpha_bar and w_t of the configuration, for several T; entry 0 is the clean channel."""
    for steps, last in ((100, 0.1), (10, 0.7), (1000, 0.01), (1, 0.5)):
        tables = sf.VBMoEConfig(steps=steps, beta_max=last).tables()
        beta, bar = vb.schedule(steps, last=last)
        _close(tables.beta, beta, 1e-15, "beta")
        _close(tables.alpha_bar, bar, 1e-15, "alpha_bar")
        _close(tables.elbo_weights[1:], vb.elbo_weights(beta, bar)[1:], 1e-14, "w")


def test_tweedie_is_the_linear_estimator():
    """(h_t - sqrt(1-ab) eps)/sqrt(ab) of a Gaussian expert is the LMMSE denoiser of h_t = sqrt(ab) h + noise."""
    rng = np.random.default_rng(0)
    for law in gauss.scenario(2, 2, 5):
        for t in (1, 30, 100):
            ab, n = BAR[t], 10
            h = gauss.complex_normal(rng, 6, 2, 5)
            denoised = (h - np.sqrt(1 - ab) * law.eps(h, ab)) / np.sqrt(ab)
            gain = np.sqrt(ab) * law.cov @ np.linalg.inv(ab * law.cov + (1 - ab) * np.eye(n))
            want = law.mean + (h.reshape(6, n) - np.sqrt(ab) * law.mean) @ gain.T
            _close(denoised.reshape(6, n), want, 1e-10, "Tweedie")
            torch_eps = gauss.TorchExpert(law, BAR, torch.complex128)(torch.from_numpy(h), t)
            _close(torch_eps, law.eps(h, ab), 1e-12, "torch expert")


def _residual(values, vectors, mean, start):
    """What a deterministic chain leaves of its start: sqrt(ab_T) S (ab_T S + (1-ab_T) I)^-1 (h_T - sqrt(ab_T) m)."""
    ab = BAR[-1]
    at = (start - np.sqrt(ab) * mean) @ vectors.conj()
    return mean + (at * np.sqrt(ab) * values / (ab * values + 1 - ab)) @ vectors.T


def test_telescoping_of_an_exact_posterior_score(backend):
    """An expert that is the posterior score of a Gaussian channel given Y: 100 steps == the closed form to 1e-10."""
    s = scene(3, count=2)
    law = s.laws[2]
    a = np.kron(np.eye(4), s.p.T)
    gain = law.cov @ a.conj().T @ np.linalg.inv(a @ law.cov @ a.conj().T + s.noise_var * np.eye(36))
    cov = law.cov - gain @ a @ law.cov
    means = law.mean + (s.y.reshape(2, 36) - law.mean @ a.T) @ gain.T
    posteriors = [gauss.Gaussian(m, (cov + cov.conj().T) / 2) for m in means]
    rng = np.random.default_rng(8)
    start = gauss.complex_normal(rng, 2, 4, 16)
    for b, posterior in enumerate(posteriors):
        expert = gauss.TorchExpert(posterior, BAR, torch.complex128)
        got = run(s, [expert], {"lam": 0.0}, y=s.yt[b : b + 1], start=torch.from_numpy(start[b : b + 1])).h
        want = _residual(*posterior.eigen, posterior.mean, start[b].reshape(1, 64))
        _close(got.reshape(1, 64), want, 1e-10, f"telescoping {backend}")


@pytest.mark.parametrize("np_", [9, 16, 20])
@pytest.mark.parametrize("noise_var", [1e-3, 1.0, 50.0])
def test_telescoping_of_the_likelihood(noise_var, np_, backend):
    """With a flat prior (zero expert) the H_t residual is the exact score, so the chain has a closed form per direction.

    There the posterior is CN(y u^H/s, noise_var/s^2) along a direction of the pilots and flat, h_T/sqrt(ab_T), elsewhere.
    """
    s = scene(4, count=3, np_=np_)
    start = gauss.complex_normal(np.random.default_rng(1), 3, 4, 16)
    got = run(s, [lambda h, t: torch.zeros_like(h)], {"lam": 1.0, "lik": "dmps"}, noise_var=noise_var,
              start=torch.from_numpy(start)).h  # fmt: skip
    u, sv, vh = np.linalg.svd(s.p, full_matrices=True)
    r = len(sv)
    ab = BAR[-1]
    at, found = start @ u, (s.y @ vh.conj().T)[..., :r] / sv
    want = at / np.sqrt(ab)
    var = noise_var / sv**2
    want[..., :r] = found + np.sqrt(ab) * var / (ab * var + 1 - ab) * (at[..., :r] - np.sqrt(ab) * found)
    _close(got, want @ u.conj().T, 1e-10, f"likelihood chain {backend}")


PLANS = {
    "recommended": {},
    "uniform": {"init": "uniform"},
    "paper": {"init": "uniform", "lik": "dmps"},
    "x0": {"lik": "x0", "lam": 1.6, "eta": 0.5},
    "small prior": {"gamma0": 0.01, "iterations": 3},
    "late steps": {"elbo_steps": (70, 80), "iterations": 2},
    "first pass": {"iterations": 1},
    "mixed": {"iterations": 3},
    "pruned": {"iterations": 3, "prune": 0.1},
}


@pytest.mark.parametrize("snr_db", [-10.0, 5.0, 20.0])
@pytest.mark.parametrize("name", PLANS)
def test_the_whole_algorithm(name, snr_db):
    """Channels, responsibilities, evidence and iteration counts of the plain NumPy version, row by row."""
    laws = gauss.similar(gauss.scenario(5, 3, 8)[2], 0.3) if name in ("mixed", "pruned") else None
    s = scene(5, count=4, snr_db=snr_db, np_=5, nr=3, nt=8, laws=laws)
    plan = gauss.Plan(**PLANS[name])
    start, noise = drawn((4, 3, 8), plan.elbo_steps, seed=6, first_item=3)
    h, rho, evidence, used = gauss.estimate(s.laws, s.y, s.p, s.noise_var, start, noise, plan)
    paper = name == "paper"
    options = {"prune": 0.0} | ({} if paper else PLANS[name])
    got = run(s, config=options, preset="paper" if paper else "recommended", seed=6, first_item=3)
    _close(got.h, h, 1e-9, "whole algorithm: h")
    _close(got.responsibilities, rho, 1e-9, "whole algorithm: rho")
    _close(got.log_evidence, evidence, 1e-9, "whole algorithm: evidence")
    assert got.iterations.tolist() == used.tolist()


def test_golden_channels():
    """The golden file's six channels: the recommended mode picks the experts that the exact posterior picks."""
    g = vb.golden()
    laws = gauss.golden_experts()
    mmse, weights = gauss.mixture_mmse(laws, g["y"], g["pilots"], float(g["noise_var"]))
    _close(mmse, g["mixture_mmse"], 1e-10, "mixture MMSE")
    _close(weights, g["mixture_weights"], 1e-10, "mixture weights")
    experts = [gauss.TorchExpert(law, BAR, torch.complex128) for law in laws]
    y, p = torch.from_numpy(g["y"]), torch.from_numpy(g["pilots"])
    got = sf.VBMoE(experts, sf.VBMoEConfig()).run(y, p, float(g["noise_var"]))
    assert got.responsibilities.argmax(1).tolist() == g["expert_of"].tolist() == weights.argmax(1).tolist()
    gap = gauss.decibel(gauss.nmse(got.h.numpy(), g["channel"])) - gauss.decibel(gauss.nmse(mmse, g["channel"]))
    assert gap < 1.5, gap


def test_rls_of_the_golden_file():
    """Y P^H (P P^H + noise_var I)^-1: the same channel, pilots and noise convention as everyone's."""
    g = vb.golden()
    p, n = g["pilots"], float(g["noise_var"])
    want = g["y"] @ p.conj().T @ np.linalg.inv(p @ p.conj().T + n * np.eye(16))
    _close(g["rls"], want, 1e-12, "RLS")


def test_single_precision_follows_double():
    """complex64 runs stay within single precision's reach of complex128: the same experts, -50 dB apart."""
    for snr_db in (0.0, 20.0):
        wide = scene(1, count=12, snr_db=snr_db)
        narrow = scene(1, count=12, snr_db=snr_db, dtype=torch.complex64)
        a, b = run(wide), run(narrow)
        assert b.h.dtype is torch.complex64 and b.responsibilities.dtype is torch.float32
        assert torch.equal(a.responsibilities.argmax(1), b.responsibilities.argmax(1))
        assert gauss.decibel(gauss.nmse(b.h.numpy(), a.h.numpy())) < -50
