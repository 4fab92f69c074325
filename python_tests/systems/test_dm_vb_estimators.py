"""Link, estimators and figures of merit of DM-VB, with closed-form experts on small training sets."""

import math

import numpy as np
import pytest
import torch
from dm_vb_toys import CONFIG, small_sets, toy_estimators, toy_protocol
from sf_testing import draw

from semcom_fast import weights
from semcom_fast.baselines.gaussian_mixture import sample_moments
from semcom_fast.receivers.vb_moe import VBMoE
from semcom_fast.receivers.vb_moe_config import VBMoEConfig
from semcom_fast.systems.dm_vb.channels import PROFILES, load_set
from semcom_fast.systems.dm_vb.estimators import Estimators, Setting
from semcom_fast.systems.dm_vb.evaluate import Evaluation, Job, Protocol, gain_db, mean_db, selection
from semcom_fast.systems.dm_vb.gaussian_experts import GaussianExpert
from semcom_fast.systems.dm_vb.link import pilot_count, qpsk_pilots, transmit
from semcom_fast.systems.dm_vb.network import CNNConfig, DenoiserCNN, to_complex, to_planes
from semcom_fast.systems.dm_vb.networks import load_single
from semcom_fast.systems.dm_vb.tables import merged, read_table, write_table

pytest.importorskip("tqdm")
pytest.importorskip("safetensors")
__all__ = ["small_sets"]


# ------------------------------------------------------------------------------------------------------ link


def test_pilots_are_qpsk_and_nested() -> None:
    pilots = qpsk_pilots(64, 38, seed=3)
    assert pilots.shape == (64, 38) and pilots.dtype is torch.complex64
    assert torch.allclose(pilots.abs(), torch.ones(64, 38)) and torch.allclose(pilots.real.abs(), pilots.imag.abs())
    assert torch.equal(qpsk_pilots(64, 64, seed=3)[:, :38], pilots)
    assert not torch.equal(qpsk_pilots(64, 38, seed=4), pilots)
    gram = qpsk_pilots(64, 64, seed=0)
    # four symbols equally often: means over 4096 entries have deviation 1/64
    assert float(gram.mean().abs()) < 4 / 64 and float((gram**2).mean().abs()) < 4 / 64


def test_snr_of_the_link_is_what_was_asked() -> None:
    """E|H P|^2/E|N|^2 = Nt/noise_var per entry of Y."""
    h, pilots, noise_var = draw(400, 4, 64, dtype=torch.complex64), qpsk_pilots(64, 38, seed=0), 0.64
    y = transmit(h, pilots, noise_var, seed=1)
    noise = y - h @ pilots
    assert float(noise.abs().square().mean()) == pytest.approx(noise_var, rel=0.02)
    assert float((h @ pilots).abs().square().mean() / noise.abs().square().mean()) == pytest.approx(100, rel=0.03)
    part = transmit(h[2:], pilots, noise_var, seed=1, first_item=2)
    assert torch.equal(part, y[2:]) or torch.allclose(part, y[2:], atol=1e-5)


def test_pilot_count() -> None:
    assert [pilot_count(density, 64) for density in (0.2, 0.4, 0.6, 0.8, 1.0)] == [12, 25, 38, 51, 64]
    assert pilot_count(0.3, 10) == 3
    for bad in (0.0, -0.1, 1.1, 0.01):
        with pytest.raises(ValueError, match="pilot density must lie on"):
            pilot_count(bad, 64)


# ---------------------------------------------------------------------------------------------------- experts


def test_gaussian_expert_is_the_definition() -> None:
    a = draw(12, 12, seed=1)
    mean, cov, h_t = draw(12, seed=2), a @ a.mH / 12, draw(5, 3, 4, seed=3)
    alpha_bar = VBMoEConfig().tables().alpha_bar
    expert = GaussianExpert(mean, cov, alpha_bar)
    for t in (1, 30, 100):
        level = float(alpha_bar[t])
        seen = level * cov + (1 - level) * torch.eye(12, dtype=torch.float64)
        want = (1 - level) ** 0.5 * torch.linalg.solve(seen, (h_t.flatten(1) - level**0.5 * mean).mT).mT
        torch.testing.assert_close(expert(h_t, t), want.reshape(5, 3, 4), rtol=1e-9, atol=1e-10)
        single = expert(h_t.to(torch.complex64), t)
        assert single.dtype is torch.complex64 and float((single - expert(h_t, t)).abs().max()) < 1e-4


# ----------------------------------------------------------------------------------------------------- figures


def test_means_and_paired_gains_by_hand() -> None:
    a = np.array([0.1, 0.2, 0.3])
    value = mean_db(a)
    assert value.db == pytest.approx(10 * math.log10(0.2))
    assert value.se == pytest.approx(10 / math.log(10) * 0.1 / 0.2 / math.sqrt(3))  # d(dB) = 10/ln 10 dm/m
    twice = gain_db(a, 2 * a)
    assert twice.db == pytest.approx(10 * math.log10(2)) and twice.se == pytest.approx(0, abs=1e-12)
    other = gain_db(a, a[::-1].copy())
    assert other.db == pytest.approx(0) and other.se == pytest.approx(10 / math.log(10) * 1.0 / math.sqrt(3))


def test_selection_counts_the_profiles_own_expert() -> None:
    job = Job("dm-vb", "CDL-C", 0.0, 0.6)
    assert selection(job, {"chosen": np.array([2, 2, 0, 2])}) == 0.75
    assert selection(job, {"chosen": np.array([-1, -1])}) is None


def test_tables_grow_by_settings(tmp_path) -> None:
    key = {"set": "fixed", "array": "horizontal", "data": "balanced", "estimator": "rls"}
    point = key | {"profile": "CDL-A", "snr_db": "0", "density": "0.6"}
    other = point | {"set": "rotated", "nmse_db": "-3"}
    path = tmp_path / "deep" / "t.csv"
    write_table(path, [point | {"nmse_db": "-1"}, other])
    again = merged(read_table(path), [point | {"nmse_db": "-2"}, point | {"snr_db": "5", "nmse_db": "-4"}])
    assert [row["nmse_db"] for row in again] == ["-2", "-3", "-4"]
    missing = key | {"note": "missing: no weights"}
    assert merged([], [missing]) == [missing]
    assert merged([missing], [point]) == [point] == merged([point], [missing])
    write_table(tmp_path / "none.csv", [])
    assert not (tmp_path / "none.csv").exists() and read_table(tmp_path / "none.csv") == []


# -------------------------------------------------------------------------------------------------- estimators


def test_points_of_both_sweeps_are_made_once() -> None:
    protocol = Protocol(snrs_db=(0.0, 20.0), densities=(0.4, 0.6))
    assert protocol.points() == [(0.0, 0.6), (20.0, 0.6), (20.0, 0.4)]


def test_moments_come_from_the_training_sets() -> None:
    setting = Setting(scarce="CDL-B")
    assert setting.data == "scarce CDL-B"
    assert [setting.channels(p).train_count for p in PROFILES] == [60, 30, 60, 60]
    made = toy_estimators(setting)
    for profile, count in (("CDL-A", 60), ("CDL-B", 30)):
        channels = load_set(setting.channels(profile))
        assert len(channels) == count
        torch.testing.assert_close(made.moments(profile).cov, sample_moments(channels).cov)
        assert 0 < made.moments(profile).shrinkage < 1
    pooled = made._linear("lmmse")
    want = sum(n * made.moments(p).mean for p, n in zip(PROFILES, (60, 30, 60, 60), strict=True)) / 210
    torch.testing.assert_close(pooled.mean, want)  # type: ignore[union-attr]


def test_linear_references_know_the_channels() -> None:
    """At 20 dB each knows more than the next, by more than twice the standard error of the difference."""
    protocol = toy_protocol(
        estimators=("gm-exact", "gm-mmse", "lmmse", "lasso", "rls"),
        snrs_db=(20.0,),
        densities=(),
        channels=6,
        profiles=("CDL-A",),
    )
    run = Evaluation(toy_estimators(), protocol)
    found = {job: figures for job, figures in run.run(progress=False)}
    for profile in protocol.profiles:
        nmse = {name: found[Job(name, profile, 20.0, 0.6)]["nmse"] for name in protocol.estimators}
        for better, base in (("gm-exact", "gm-mmse"), ("gm-mmse", "rls"), ("lmmse", "rls"), ("lasso", "rls")):
            gain = gain_db(nmse[better], nmse[base])
            assert gain.db > 2 * gain.se, (profile, better, base, gain)
        assert selection(Job("gm-exact", profile, 0, 0), found[Job("gm-exact", profile, 20.0, 0.6)]) == 1
    rls = found[Job("rls", "CDL-A", 20.0, 0.6)]
    assert rls["gflop"][0] == pytest.approx(8e-9 * 16 * 38 * 64)
    gm = found[Job("gm-mmse", "CDL-A", 20.0, 0.6)]
    assert gm["gflop"][0] == pytest.approx(4 * 8e-9 * 608 * (608 + 1024)) and gm["seconds"][0] > 0


def test_diffusion_rows_count_their_calls() -> None:
    run = Evaluation(toy_estimators(), toy_protocol(profiles=("CDL-A",), densities=()))
    single = run.figures(Job("single-dm", "CDL-A", 20.0, 0.6))
    assert single["gflop"][0] == pytest.approx(10 * 8e6 / 1e9) and (single["chosen"] == -1).all()
    mixture = run.figures(Job("dm-vb", "CDL-A", 20.0, 0.6))
    # one chain per expert and their evidence, then at least none and at most four more of at least one expert
    first = 4 * (10 + len(CONFIG.elbo_steps or ())) * 2e6 / 1e9
    assert first <= mixture["gflop"][0] <= 5 * first
    assert set(mixture["chosen"]) == {2}, "the expert of unit variance"
    assert 1 <= mixture["iterations"][0] <= 5
    # the mixture then is the single estimator's chain with the same expert
    assert mean_db(mixture["nmse"]).db == pytest.approx(mean_db(single["nmse"]).db, abs=0.05)


def _store(folder, steps: int = 10, seed: int = 0) -> None:
    """Five tiny untrained networks in place of the shipped ones."""
    torch.manual_seed(seed)
    config = {"widths": (2, 4, 3, 2), "split": 1, "embedding": 4, "steps": steps}
    for part in ("cdl_a", "cdl_b", "cdl_c", "cdl_d", "single"):
        name = f"dm_vb_fixed_{part}"
        card = {"name": name, "config": config, "scarce": None}
        weights.save(name, folder, dict(DenoiserCNN(CNNConfig(**config)).state_dict()), card)


def test_stored_networks_are_used(tmp_path) -> None:
    _store(tmp_path)
    h = load_set(Setting().channels("CDL-A"), "test", 3)
    pilots = qpsk_pilots(64, 38, seed=0)
    y = transmit(h, pilots, 6.4, seed=0)
    made = Estimators(weights=tmp_path, config=CONFIG)
    got = made.estimate("single-dm", y, pilots, 6.4, seed=5)
    network = load_single(folder=tmp_path)

    def expert(h_t: torch.Tensor, t: int) -> torch.Tensor:
        return to_complex(network(to_planes(h_t).contiguous(), torch.full((len(h_t),), t)))

    want = VBMoE(expert, CONFIG).run(y, pilots, 6.4, seed=5).h
    torch.testing.assert_close(got.h, want, rtol=1e-4, atol=1e-4)
    assert got.flops == 10 * network.config.flops(16, 64) and got.weights is None
    mixture = made.estimate("dm-vb", y, pilots, 6.4)
    assert mixture.weights is not None and mixture.weights.shape == (3, 4)
    low = Estimators(weights=tmp_path, config=CONFIG, bf16=True)
    rough = low.estimate("single-dm", y, pilots, 6.4, seed=5).h
    assert 1e-5 < float((rough - want).norm() / want.norm()) < 0.1
    _store(tmp_path / "other", seed=1)
    marks = [
        Estimators(weights=folder, config=CONFIG).mark("dm-vb") for folder in (tmp_path, tmp_path, tmp_path / "other")
    ]
    assert (
        marks[0] == marks[1] != marks[2] and made.mark("single-dm") != low.mark("single-dm") and made.mark("rls") == ""
    )
    _store(tmp_path / "long", steps=20)
    with pytest.raises(ValueError, match="know 20 diffusion steps, not 10"):
        Estimators(weights=tmp_path / "long", config=CONFIG).check("dm-vb")


def test_exact_moments_are_not_for_the_rotated_set() -> None:
    made = toy_estimators(Setting("rotated"))
    for name in ("gm-exact", "dm-vb-exact"):
        with pytest.raises(ValueError, match="rotated set does not have"):
            made.check(name)
    for name in ("dm-vb", "gm-mmse"):
        made.check(name)
    with pytest.raises(ValueError, match="unknown estimator 'oracle'"):
        made.check("oracle")
