"""VBMoE: what is refused and how it is named; callbacks, progress, interruption; options of the configuration."""

import sys

import numpy as np
import pytest
import torch
import vb_math as vb
from sf_testing import draw, same_bits, within
from vb_runs import SHORT, Bank, alpha_bar, row_experts, run, scene

import semcom_fast as sf

NAN, INF = float("nan"), float("inf")
FAST = {"steps": 4, "beta_max": 0.7}


def _scene(dtype=torch.complex64, **kwargs):
    s = scene(1, count=4, dtype=dtype, schedule=FAST, **kwargs)
    s.experts = row_experts(3, alpha_bar(FAST), dtype=dtype.to_real())
    return s


def _nan(t, index):
    t = t.clone()
    t[index] = NAN
    return t


ZERO_ROW = torch.ones(4, 16, 9, dtype=torch.complex64)
ZERO_ROW[2] = 0
ARGUMENTS = [
    ({"pilots": lambda s: _nan(s.pt, (3, 2))}, ValueError, "NaN"),
    ({"pilots": lambda s: _nan(s.pt.repeat(4, 1, 1), (2, 3, 2))}, ValueError, r"\b2\b.*NaN"),
    ({"pilots": lambda s: s.pt * 0}, ValueError, "zero"),
    ({"pilots": lambda s: ZERO_ROW}, ValueError, r"\b2\b.*zero"),
    ({"noise_var": lambda s: 0.0}, ValueError, "noise_var"),
    ({"noise_var": lambda s: -1}, ValueError, "noise_var"),
    ({"noise_var": lambda s: NAN}, ValueError, "noise_var"),
    ({"noise_var": lambda s: INF}, ValueError, "noise_var"),
    ({"noise_var": lambda s: torch.tensor([1.0, 1.0, 1.0, 0.0])}, ValueError, r"noise_var.*\b3\b"),
    ({"noise_var": lambda s: torch.ones(3)}, ValueError, "noise_var"),
    ({"noise_var": lambda s: torch.ones(4, 1)}, ValueError, "noise_var"),
    ({"noise_var": lambda s: torch.ones(4) + 0j}, TypeError, "noise_var"),
    ({"y": lambda s: s.yt[0]}, ValueError, r"\by\b"),
    ({"y": lambda s: s.yt.real}, TypeError, r"\by\b"),
    ({"y": lambda s: s.y}, TypeError, r"\by\b"),
    ({"y": lambda s: None}, TypeError, r"\by\b"),
    ({"y": lambda s: _nan(s.yt, (1, 0, 0))}, ValueError, r"\by\b.*\b1\b"),
    ({"y": lambda s: s.yt[..., :7]}, ValueError, "pilots"),
    ({"y": lambda s: s.yt.to(torch.complex128)}, TypeError, "complex128"),
    ({"pilots": lambda s: s.pt[0]}, ValueError, "pilots"),
    ({"pilots": lambda s: s.pt.repeat(3, 1, 1)}, ValueError, "pilots"),
    ({"pilots": lambda s: s.pt.real}, TypeError, "pilots"),
    ({"pilots": lambda s: None}, TypeError, "pilots"),
    ({"start": lambda s: torch.zeros(3, 4, 16, dtype=torch.complex64)}, ValueError, "start"),
    ({"start": lambda s: torch.zeros(4, 4, 15, dtype=torch.complex64)}, ValueError, "start"),
    ({"start": lambda s: torch.zeros(4, 4, 16)}, TypeError, "start"),
    ({"start": lambda s: torch.full((4, 4, 16), NAN, dtype=torch.complex64)}, ValueError, "start"),
    ({"seed": lambda s: None}, (TypeError, ValueError), "seed"),
    ({"first_item": lambda s: -1}, ValueError, "first_item"),
]


@pytest.mark.parametrize("change, kind, message", ARGUMENTS)
def test_arguments(change, kind, message):
    """Received pilots, pilots, noise levels and starts that do not fit are refused by name, the item included."""
    s = _scene()
    run(s)
    with pytest.raises(kind, match=message):
        run(s, **{k: v(s) for k, v in change.items()})


class Odd:
    """An expert that answers as asked at one step."""

    def __init__(self, expert, answer, at=3):
        self.expert, self.answer, self.at = expert, answer, at

    def __call__(self, h, t):
        eps = self.expert(h, t)
        return self.answer(eps) if t == self.at else eps


ODD = [
    (lambda e: e[..., :-1], ValueError, "shape|return"),
    (lambda e: e[:-1], ValueError, "shape|return"),
    (lambda e: e.to(torch.complex128), TypeError, "complex128"),
    (lambda e: e.real, TypeError, "float32"),
    (lambda e: e.numpy(), TypeError, "tensor"),
    (lambda e: None, TypeError, "tensor"),
]


@pytest.mark.parametrize("init", ["per_expert", "uniform"])
@pytest.mark.parametrize("answer, kind, message", ODD)
def test_experts_with_odd_answers(answer, kind, message, init):
    """Another shape, dtype or kind than the state's: the expert and the step are named."""
    s = _scene()
    experts = [s.experts[0], Odd(s.experts[1], answer), s.experts[2]]
    with pytest.raises(kind, match=rf"expert 1.*({message})") as caught:
        run(s, experts, {"init": init})
    assert "step 3" in str(caught.value)


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("at", [4, 3, 1])
@pytest.mark.parametrize("init", ["per_expert", "uniform"])
def test_an_expert_that_returns_nan_is_named(init, at, bad):
    """NaN in one row of one expert: expert, step and item are in the message."""
    s = _scene()

    def spoil(eps):
        eps = eps.clone()
        eps[2, 1, 1] = bad
        return eps

    experts = [s.experts[0], s.experts[1], Odd(s.experts[2], spoil, at)]
    with pytest.raises(ValueError, match=rf"expert 2.*step {at}.*item 2\b"):
        run(s, experts, {"init": init})
    with pytest.raises(ValueError, match=rf"expert 0.*step {at}.*item 2\b"):
        run(s, experts[2], {"init": init})


def test_an_expert_that_fails_in_the_evidence_is_named():
    """NaN only at a step and a call of the evidence pass."""
    s = _scene()
    calls = []

    def expert(h, t):
        calls.append(t)
        eps = s.experts[0](h, t)
        return eps * NAN if len(calls) > 4 else eps  # the chain's four steps go well

    with pytest.raises(ValueError, match=r"expert 0.*step \d.*item 0.*evidence"):
        run(s, [expert, *s.experts[1:]])


def test_banks_with_odd_answers():
    """A bank that returns another shape is named as such."""
    s = _scene()

    class Short(Bank):
        def __call__(self, h_t, t):
            return super().__call__(h_t, t)[:, :2]

    with pytest.raises(ValueError, match="bank"):
        run(s, Short(s.experts), {"prune": 0.0, "init": "uniform"})


def test_kinds_of_experts():
    """No experts, things that are no callables, and a prior for another number of experts are refused at once."""
    for wrong in ([], ()):
        with pytest.raises(ValueError, match="at least one expert"):
            sf.VBMoE(wrong)
    for wrong in ([1], [lambda h, t: h, None], 3, None):
        with pytest.raises(TypeError, match="expert"):
            sf.VBMoE(wrong)
    with pytest.raises(ValueError, match="gamma0"):
        sf.VBMoE([lambda h, t: h] * 3, sf.VBMoEConfig(gamma0=(1.0, 2.0)))


@pytest.mark.parametrize("count", [1, 3])
def test_empty_batch(count):
    """No channels: an empty result, no call."""
    s = _scene()
    got = run(s, s.experts[:count], y=s.yt[:0])
    assert got.h.shape == (0, 4, 16) and got.responsibilities.shape == (0, count) and int(got.calls.sum()) == 0
    assert got.iterations.shape == (0,) and got.log_evidence.shape == (0, count)


def test_callback_progress_and_partial(monkeypatch):
    """on_iteration sees every iteration's rho and h; a run that is cut short leaves what it had; tqdm is optional."""
    s = _scene()
    seen = []
    got = run(s, config={"tolerance": 0.0, "iterations": 3}, on_iteration=lambda *a: seen.append(a), progress=True)
    assert [a[0] for a in seen] == [1, 2, 3]
    assert all(a[1].shape == (4, 3) and a[2].shape == (4, 4, 16) for a in seen)
    same_bits(seen[-1][1], got.responsibilities, "rho")
    same_bits(seen[-1][2], got.h, "h")
    model = sf.VBMoE(s.experts, sf.VBMoEConfig(**FAST, tolerance=0.0, iterations=5))

    def stop(iteration, rho, h):
        if iteration == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.run(s.yt, s.pt, s.noise_var, on_iteration=stop)
    same_bits(model.partial.h, seen[1][2], "partial")
    assert model.partial.iterations.tolist() == [2] * 4
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(sf.MissingExtra, match=r"tqdm.*semcom-fast\[demo\]"):
        run(s, progress=True)


def test_graph_without_a_gpu_warns():
    """graph=True on the CPU: one warning, the same result."""
    s = _scene()
    with pytest.warns(UserWarning, match="VBMoE: no CUDA graph"):
        got = run(s, config={"graph": True})
    same_bits(got.h, run(s).h, "graph")


def test_decomposition_in_place_of_pilots():
    """pilot_svd(pilots) may be passed again and again: the same bits."""
    s = _scene()
    same_bits(run(s, pilots=sf.pilot_svd(s.pt)).h, run(s).h, "PilotSVD")
    many = s.pt.repeat(4, 1, 1)
    within(run(s, pilots=many).h, run(s).h, 1e-5, "pilots per channel")


OPTIONS = [
    {"steps": 0}, {"steps": 1.5}, {"beta_min": 0.0}, {"beta_min": 0.2}, {"beta_max": 1.0}, {"elbo_steps": ()},
    {"elbo_steps": (0, 10)}, {"elbo_steps": (101,)}, {"elbo_steps": (10, 10)}, {"elbo_steps": (10.5,)}, {"tau": 35},
    {"eta": -1.0}, {"eta": NAN}, {"lam": "auto"}, {"lam": -1.0}, {"lam": NAN}, {"lik": "x1"}, {"init": "random"},
    {"gamma0": 0.0}, {"gamma0": (1.0, -1.0)}, {"gamma0": NAN}, {"iterations": 0}, {"tolerance": -1e-6}, {"prune": 1.0},
    {"prune": -0.1}, {"start": "ones"},
]  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_options_that_mean_nothing(option):
    """Refused when the configuration is made, by name."""
    name = "beta_min" if "beta" in next(iter(option)) else next(iter(option))
    with pytest.raises(ValueError, match=rf"^VBMoEConfig: .*{name}"):
        sf.VBMoEConfig(**option)


def test_defaults_and_presets():
    """T = 100, 40 dB to 0.1, S = 30..100, tau = 30, the recommended mode; "paper" differs in residual and start."""
    c = sf.VBMoEConfig()
    assert (c.steps, c.beta_max, c.eta, c.iterations, c.prune, c.tolerance) == (100, 0.1, 1.0, 5, 1e-3, 1e-6)
    assert c.beta_min == vb.BETA_1 and tuple(c.elbo_steps) == tuple(range(30, 101, 10)) and c.tau_step == 30
    assert (c.lik, c.init, c.lam, c.gamma0, c.shared, c.graph) == ("auto", "per_expert", "snr", 1.0, False, False)
    assert sf.VBMoEConfig.preset("recommended") == c
    paper = sf.VBMoEConfig.preset("paper", iterations=7)
    assert (paper.lik, paper.init, paper.iterations) == ("dmps", "uniform", 7)
    with pytest.raises(ValueError, match="preset"):
        sf.VBMoEConfig.preset("authors")
    with pytest.raises((AttributeError, TypeError)):
        c.steps = 10


def test_likelihood_rules():
    """lam = clip(2^(SNR/10), 1, 4), a number, or a callable of the SNR in dB; x0 from 0 dB on."""
    c = sf.VBMoEConfig()
    for snr, lam in ((-10, 1), (0, 1), (5, 2**0.5), (10, 2), (20, 4), (30, 4)):
        assert c.likelihood_scale(snr) == pytest.approx(lam, rel=1e-14)
        assert c.residual_at_x0(snr) == (snr >= 0)
    assert sf.VBMoEConfig(lam=1.75).likelihood_scale(30) == 1.75
    assert sf.VBMoEConfig(lam=lambda snr: 1 + snr / 10).likelihood_scale(5) == 1.5
    with pytest.raises(ValueError, match="lam"):
        sf.VBMoEConfig(lam=lambda snr: NAN).likelihood_scale(5)


def test_levels_per_channel():
    """noise_var [B] on both sides of 0 dB: each channel runs under its own rules, as alone."""
    s = scene(2, count=3, dtype=torch.complex128, schedule=SHORT)
    experts = row_experts(2, alpha_bar(SHORT), dtype=torch.float64)
    levels = torch.tensor([16 * 10**-2.0, 16.0001, 15.9999], dtype=torch.float64)
    got = run(s, experts, {"iterations": 2}, noise_var=levels)
    for b, (lik, level) in enumerate(zip(("x0", "dmps", "x0"), levels.tolist(), strict=True)):
        lam = float(np.clip(2 ** np.log10(16 / level), 1, 4))
        given = {"y": s.yt[b : b + 1], "noise_var": level, "first_item": b}
        alone = run(s, experts, {"iterations": 2, "lik": lik, "lam": lam}, **given)
        within(got.h[b : b + 1], alone.h, 1e-12, "levels per channel")
    other = run(s, experts, {"iterations": 2, "lik": "dmps"}, noise_var=levels)
    assert not np.allclose(other.h[2].numpy(), got.h[2].numpy(), atol=1e-3)


def test_the_receiver_survives_many_pilots_and_one_antenna():
    """1 x 1, one pilot, and Np > Nt run and give finite channels."""
    for nr, nt, np_ in ((1, 1, 1), (1, 3, 7), (3, 1, 2)):
        experts = row_experts(2, alpha_bar(FAST), nr, nt)
        y, p = draw(5, nr, np_, dtype=torch.complex64), draw(nt, np_, seed=1, dtype=torch.complex64)
        got = sf.VBMoE(experts, sf.VBMoEConfig(**FAST)).run(y, p, 0.3)
        assert got.h.shape == (5, nr, nt) and bool(torch.isfinite(torch.view_as_real(got.h)).all())
