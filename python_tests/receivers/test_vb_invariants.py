"""VBMoE: what holds exactly, whatever the numbers: symmetries, splits, pruning, stops, and what is counted."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import vb_gauss as gauss
import vb_math as vb
from sf_testing import draw, same_bits, unit, within
from vb_runs import SHORT, Bank, RowExpert, alpha_bar, drawn, row_experts, run, scene

import semcom_fast as sf
from semcom_fast import reference

BETA, BAR = vb.schedule(100)
MODES = {
    "recommended": {},
    "uniform": {"init": "uniform", "iterations": 3},
    "shared": {"shared": True, "iterations": 3},
    "mixed": {"iterations": 3},  # with experts that nobody can tell apart for sure
}
modes = pytest.mark.parametrize("mode", MODES)


def _scene(mode, **kwargs):
    laws = gauss.similar(gauss.scenario(0)[2], 0.4) if mode == "mixed" else None
    return scene(0, laws=laws, schedule=SHORT, **kwargs)


def _close(got, want, label, limit=1e-10):
    within(got, want, limit * (1 + float(want.abs().max() if want.numel() else 0)), label)


def _fields(result):
    return {k: v for k, v in result._asdict().items() if k not in ("calls", "iterations")}


@modes
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_simplex_and_gamma(mode, dtype):
    """rho >= 0 sums to 1, gamma = gamma0 + rho (or its sum over the channels); shapes and dtypes of the result."""
    s = _scene(mode, count=6, snr_db=5.0, dtype=dtype)
    got = run(s, config=MODES[mode] | {"gamma0": 0.4})
    assert (float(got.responsibilities.amax()) < 0.999) == (mode == "mixed")
    rho, e = got.responsibilities.double(), unit(dtype)
    assert got.h.shape == (6, 4, 16) and got.h.dtype is dtype and (rho >= 0).all()
    within(rho.sum(1), torch.ones(6).double(), 5 * e, "simplex")
    total = rho.sum(0) if MODES[mode].get("shared") else rho
    within(got.gamma.double(), 0.4 + total, 16 * e, "gamma")
    assert got.iterations.dtype is torch.int64 and got.iterations.shape == (6,)
    assert got.log_evidence.shape == (6, 4) and got.calls.shape == (4,)


@modes
def test_expert_permutation(mode):
    """Another order of the experts is another order of the responsibilities, and nothing else."""
    s = _scene(mode, count=6, snr_db=5.0)
    want = run(s, config=MODES[mode])
    order = [2, 0, 3, 1]
    got = run(s, [s.experts[k] for k in order], MODES[mode])
    for name, a in _fields(got).items():
        b = want._asdict()[name]
        _close(a, b if name == "h" else b[..., order], f"permuted experts {mode}")
    assert got.calls.tolist() == want.calls[order].tolist() and torch.equal(got.iterations, want.iterations)


@pytest.mark.parametrize("snr_db", [-5.0, 15.0])
@pytest.mark.parametrize("init", ["per_expert", "uniform"])
def test_one_expert_is_the_standard_estimator(init, snr_db):
    """K = 1: one chain with the likelihood of that SNR, rho = 1, T calls a channel; a bare callable will do."""
    s = scene(0, count=4, snr_db=snr_db)
    start, _ = drawn((4, 4, 16), [30])
    lam = float(np.clip(2 ** (snr_db / 10), 1, 4))
    lik = "x0" if snr_db >= 0 else "dmps"
    want = gauss.chain(s.laws[1:2], np.ones((4, 1)), s.y, s.p, s.noise_var, start, gauss.Plan(), lik, lam)
    for experts in ([s.experts[1]], s.experts[1], Bank(s.experts[1:2])):
        got = run(s, experts, {"init": init, "gamma0": 0.5})
        _close(got.h, torch.from_numpy(want), "standard diffusion estimator")
        assert torch.equal(got.responsibilities, torch.ones(4, 1).double())
        assert torch.equal(got.gamma, torch.full((4, 1), 1.5).double())
        assert got.calls.tolist() == [400] and got.iterations.tolist() == [1] * 4


@pytest.mark.parametrize("init", ["per_expert", "uniform"])
@pytest.mark.parametrize("count", [2, 4])
def test_identical_experts_are_one(count, init):
    """K equal experts: rho = 1/K and the channel of the standard estimator."""
    s = scene(0, count=4, snr_db=10.0, schedule=SHORT)
    want = run(s, s.experts[2])
    got = run(s, [s.experts[2]] * count, {"init": init})
    _close(got.responsibilities, torch.full((4, count), 1 / count).double(), "equal responsibilities", 1e-14)
    _close(got.h, want.h, "equal experts")


@modes
@pytest.mark.parametrize("np_", [9, 20])
def test_unitary_pilots(mode, np_):
    """(Y W, P W) with a unitary W [Np,Np] is the same observation; more pilots than antennas included."""
    s = _scene(mode, count=5, snr_db=12.0, np_=np_)
    w = torch.linalg.qr(draw(np_, np_, seed=40))[0]
    want, got = run(s, config=MODES[mode]), run(s, config=MODES[mode], y=s.yt @ w, pilots=s.pt @ w)
    for name, a in _fields(got).items():
        _close(a, want._asdict()[name], f"unitary pilots {name}", 1e-9)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("mode", ["recommended", "uniform"])
@pytest.mark.parametrize("own", [False, True], ids=["shared pilots", "pilots per channel"])
def test_split_and_permuted_batches(own, mode, dtype):
    """Channels do not see each other: any cut or order with first_item gives the same bits, noise levels per channel.

    The experts are element-wise, for a matrix product of torch may round by the size of the batch.
    """
    s = scene(2, count=7, dtype=dtype, schedule=SHORT)
    experts = row_experts(3, alpha_bar(SHORT), dtype=dtype.to_real())
    noise_var = torch.tensor([0.02, 5.0, 0.3, 40.0, 1.0, 0.1, 16.0], dtype=torch.float64)
    p = s.pt * torch.exp(1j * torch.arange(7.0).double())[:, None, None].to(dtype) if own else s.pt

    def part(a, b):
        given = {"y": s.yt[a:b], "pilots": p[a:b] if own else p, "noise_var": noise_var[a:b]}
        return run(s, experts, MODES[mode], **given, seed=4, first_item=11 + a)

    whole = part(0, 7)
    for edges in ((0, 3, 7), (0, 1, 2, 3, 4, 5, 6, 7)):
        parts = [part(a, b) for a, b in pairwise(edges)]
        for name, want in whole._asdict().items():
            got = [p._asdict()[name] for p in parts]
            if name == "calls":
                assert sum(got).tolist() == want.tolist()
            elif name == "iterations":
                assert torch.equal(torch.cat(got), want)
            else:
                same_bits(torch.cat(got), want, f"split {name} {mode}")
    if mode == "recommended":
        order = [4, 0, 6, 2, 1, 5, 3]
        rows = [part(b, b + 1) for b in order]
        same_bits(torch.cat([r.h for r in rows]), whole.h[order], "rows in another order")
        assert not torch.equal(run(s, experts, y=s.yt, pilots=p, noise_var=noise_var, seed=4, first_item=12).h, whole.h)


@pytest.mark.parametrize("init", ["per_expert", "uniform"])
def test_pruning_changes_nothing_where_it_may_not(init):
    """At 20 dB rho is one-hot to rounding: dense over all experts == sorted into segments of one expert each."""
    s = scene(0, count=12, snr_db=20.0)
    dense, pruned = (run(s, config={"prune": p, "init": init, "iterations": 3}) for p in (0.0, 1e-3))
    assert float((1 - dense.responsibilities.amax(1)).max()) < 1e-11
    for name, a in _fields(pruned).items():
        _close(a, dense._asdict()[name], f"pruned {name}", 1e-9)
    assert torch.equal(pruned.iterations, dense.iterations) and int(pruned.calls.sum()) < int(dense.calls.sum())


@pytest.mark.parametrize("prune", [0.02, 0.06])
def test_pruning_errs_by_what_it_drops(prune):
    """Mixed responsibilities: the result moves by no more than a small multiple of the dropped weight."""
    s = scene(0, count=12, snr_db=0.0, laws=gauss.similar(gauss.scenario(0)[2], 0.6), schedule=SHORT)
    dense, pruned = (run(s, config={"prune": p, "iterations": 2}) for p in (0.0, prune))
    _close(run(s, config={"prune": 1e-30, "iterations": 2}).h, dense.h, "nothing to prune")
    first = run(s, config={"prune": 0.0, "iterations": 1}).responsibilities
    lost = torch.where(first < prune, first, 0).sum(1)
    assert float(lost.max()) > prune / 4, "this scene must have something to prune"
    move = torch.linalg.vector_norm(pruned.h - dense.h, dim=(1, 2)) / torch.linalg.vector_norm(dense.h, dim=(1, 2))
    assert (move <= 2 * lost + 1e-12).all(), (move, lost)
    assert int(pruned.calls.sum()) < int(dense.calls.sum())


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("mode", ["recommended", "mixed"])
def test_a_bank_is_its_experts(mode, own):
    """Experts called together, or one by one, or each on its own rows: one result; the bank is really used."""
    s = _scene(mode, count=6, snr_db=0.0)
    for options in ({"prune": 0.0}, {}):
        bank = Bank(s.experts, own)
        got, want = run(s, bank, options), run(s, config=options)
        for name, a in _fields(got).items():
            _close(a, want._asdict()[name], f"bank {name}")
        assert bank.together > 0 and got.calls.tolist() == want.calls.tolist()


def test_calls_are_counted():
    """calls = rows that each expert really saw: K one-expert chains, their evidence, then only what is used."""
    s = scene(0, count=8, snr_db=20.0)
    got = run(s)
    assert got.iterations.tolist() == [2] * 8
    assert got.calls.tolist() == [sum(n for n, _ in e.calls) for e in s.experts]
    # first pass 8 * (100 + 8), second 2 rows of its own * 100 and 8 * 8 of evidence
    assert got.calls.tolist() == [8 * 108 + 2 * 100 + 64] * 4
    steps = {t for _, t in s.experts[0].calls}
    assert steps == set(range(1, 101))


def test_stop_rule():
    """One-hot responsibilities stop after the second pass; tolerance 0 runs all; a first pass alone is one iteration."""
    s = scene(0, count=8, snr_db=20.0)
    want = run(s)
    whole = run(s, config={"tolerance": 0.0, "iterations": 4})
    assert whole.iterations.tolist() == [4] * 8 and int(whole.calls.sum()) > int(want.calls.sum())
    _close(whole.h, want.h, "the same weights give the same channel")
    one = run(s, config={"iterations": 1})
    assert one.iterations.tolist() == [1] * 8 and not torch.equal(one.h, want.h)
    mixed = scene(0, count=16, snr_db=-10.0)
    counts = run(mixed, config={"iterations": 6}).iterations
    assert int(counts.min()) < int(counts.max()) <= 6, counts


def test_start_and_draws():
    """H_T is CN(0, 1) of stream 7, step 0, item first_item + b; start= gives it; zero and other seeds differ."""
    s = scene(0, count=3, dtype=torch.complex64)
    want = run(s, seed=9, first_item=5)
    h_t = reference.philox_normal((3, 4, 16), seed=9, step=0, stream=7, first_item=5, dtype=torch.complex64)
    seen = []

    def spy(h, t):
        seen.append((t, h.clone()))
        return s.experts[0](h, t)

    run(s, spy, seed=9, first_item=5)
    assert seen[0][0] == 100 and seen[-1][0] == 1
    within(seen[0][1], h_t, 2e-6, "H_T")
    same_bits(run(s, seed=9, first_item=5, start=seen[0][1]).h, want.h, "start=")
    zero = run(s, config={"start": "zero"}, seed=9)
    same_bits(zero.h, run(s, start=torch.zeros(3, 4, 16, dtype=torch.complex64), seed=9).h, "zero start")
    assert not torch.equal(run(s, seed=10, first_item=5).h, want.h)


def test_shared_weights_help_each_other():
    """One q(pi) for the batch: gamma sums over the channels and enters every row, so that the common expert gains."""
    s = _scene("mixed", count=6, snr_db=-10.0)
    options = {"gamma0": 0.05, "iterations": 4}
    shared, alone = run(s, config=options | {"shared": True}), run(s, config=options)
    within(shared.gamma, 0.05 + shared.responsibilities.sum(0), 1e-12, "shared gamma")
    best = int(shared.gamma.argmax())
    assert (shared.responsibilities[:, best] > alone.responsibilities[:, best]).all()


def test_backends_agree():
    """Native and reference kernels over whole runs: rounding only."""
    s = _scene("mixed", count=5, snr_db=8.0)
    outs = []
    for name in ("cpu", "reference"):
        with sf.use_backend(name):
            outs.append(run(s, config={"iterations": 3}))
    for name, a in _fields(outs[0]).items():
        _close(a, outs[1]._asdict()[name], f"backends {name}")


def test_inputs_are_left_alone_and_views_accepted():
    """Strided and conjugated y and pilots; nothing is written to; no gradient is kept; threads change no bit."""
    s = scene(1, count=5, dtype=torch.complex64, schedule=SHORT)
    experts = row_experts(3, alpha_bar(SHORT))
    before = s.yt.clone(), s.pt.clone()
    want = run(s, experts)
    same_bits(s.yt, before[0], "y")
    same_bits(s.pt, before[1], "pilots")
    y = s.yt.mT.contiguous().mT.conj().resolve_conj().conj()
    got = run(s, experts, y=y.requires_grad_(), pilots=s.pt.mT.contiguous().mT)
    assert not got.h.requires_grad
    _close(got.h, want.h, "views", 1e-5)
    torch.set_num_threads(2)
    same_bits(run(s, experts).h, want.h, "threads")


@pytest.mark.parametrize("snr_db", [0.0, 20.0])
def test_silent_antennas(snr_db):
    """Zero pilot rows, and more pilots than antennas: the algorithm in NumPy again, silent antennas by the prior alone."""
    for np_ in (5, 11):
        s = scene(6, count=2, snr_db=snr_db, np_=np_, nr=3, nt=8, schedule=SHORT)
        s.p[[2, 5]] = 0
        s.y = s.h @ s.p + np.sqrt(s.noise_var) * gauss.complex_normal(np.random.default_rng(1), 2, 3, np_)
        plan = gauss.Plan(steps=20, last=0.45, elbo_steps=tuple(range(6, 21, 2)), iterations=2)
        start, noise = drawn((2, 3, 8), plan.elbo_steps)
        h, rho, *_ = gauss.estimate(s.laws, s.y, s.p, s.noise_var, start, noise, plan)
        got = run(s, config={"prune": 0.0, "iterations": 2}, y=torch.from_numpy(s.y), pilots=torch.from_numpy(s.p))
        _close(got.h, torch.from_numpy(h), "silent antennas", 1e-9)
        _close(got.responsibilities, torch.from_numpy(rho), "silent antennas", 1e-9)


def test_row_experts_are_independent_of_company():
    """The element-wise experts used above are what they claim to be."""
    e = RowExpert(torch.ones(4, 16), BAR)
    h = draw(5, 4, 16, dtype=torch.complex64)
    same_bits(torch.cat([e(h[b : b + 1], 7) for b in range(5)]), e(h, 7), "rows")
    within(e(h, 7), h * (1 - BAR[7]) ** 0.5, 1e-6, "unit power")
