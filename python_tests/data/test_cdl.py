"""Clustered delay line channels: the tables, the rays a seed gives, exact moments, unit power, splitting a batch."""

import json
import math
from importlib import resources

import pytest
import torch
from sf_testing import same_bits, within

import semcom_fast as sf
from semcom_fast.data.cdl import cdl_moments, cdl_rays, uniform_yaw
from semcom_fast.ops._cdl_profiles import OFFSETS, PROFILES
from semcom_fast.reference import philox_words

ARRAYS = ("horizontal", "vertical")
every_profile = pytest.mark.parametrize("profile", PROFILES)


@every_profile
@pytest.mark.parametrize("release", ["v16_1", "v19_2"])
def test_tables_equal_sionna(profile, release):
    """Every number of Tables 7.7.1-1..5 as Sionna has it."""
    models = pytest.importorskip("sionna.phy.channel.tr38901.models")
    file = resources.files(models) / release / f"CDL-{profile}.json"
    want = json.loads(file.read_text())
    table = PROFILES[profile]
    assert table.los == bool(want["los"]) and len(table.rows) - table.los == want["num_clusters"]
    assert table.spreads == tuple(want[k] for k in ("cASD", "cASA", "cZSD", "cZSA"))
    columns = ("delays", "powers", "aod", "aoa", "zod", "zoa")
    names = ("delays", "powers", "aod", "aoa", "zod", "zoa")
    for k, name in enumerate(names):
        assert [row[k] for row in table.rows] == [float(v) for v in want[columns[k]]], name


def test_offsets():
    """Table 7.5-3: 20 offsets in pairs, of unit RMS to the table's digits."""
    assert len(OFFSETS) == 20 and sum(OFFSETS) == 0
    assert abs(math.sqrt(sum(v * v for v in OFFSETS) / 20) - 1) < 1e-3


def specular_power():
    """Of CDL-D, from the powers in dB alone: 88.8 %."""
    power = [10 ** (row[1] / 10) for row in PROFILES["D"].rows]
    return power[0] / sum(power)


def test_table_columns():
    """A row is delay, power, AoD, AoA, ZoD, ZoA: the specular path of D leaves at azimuth 0, arrives from behind."""
    rays = cdl_rays("D", 1, seed=1)
    last = [float(torch.rad2deg(t[0, -1])) for t in (rays.aod, rays.aoa, rays.zod, rays.zoa)]
    assert last == pytest.approx([0.0, -180.0, 98.5, 81.5])
    assert float(rays.amplitude[0, -1] ** 2) == pytest.approx(specular_power(), rel=1e-12)


@every_profile
def test_rays_of_a_seed(profile):
    """Written out from the words: 80 a cluster, phases first, then three orders by sorted keys; the specular phase last."""
    seed, item = 2**40 + 3, 11
    table = PROFILES[profile]
    count = len(table.rows) - table.los
    words = torch.stack(philox_words((torch.arange(20 * count + 1), 0, item, 9), (3, 2**8)), -1).flatten()
    rays = cdl_rays(profile, 3, seed=seed, first_item=item - 2, los_phase="random", delay_spread=1e-7)
    own = [t.expand(3, -1)[2] for t in rays]
    for c, row in enumerate(table.rows[table.los :]):
        w = words[80 * c : 80 * c + 80].tolist()
        at = slice(20 * c, 20 * c + 20)
        phases = torch.tensor([((v >> 8) + 0.5) * 2.0**-24 for v in w[:20]], dtype=torch.float64) * 2 * math.pi
        within(own[2][at], phases, 1e-14, "phases")
        orders = [range(20), *(sorted(range(20), key=w[s : s + 20].__getitem__) for s in (20, 40, 60))]
        angles = zip((2, 4, 3, 5), (0, 2, 1, 3), orders, strict=True)  # AoD, ZoD, AoA, ZoA: column, spread
        for field, (column, spread, order) in zip(own[3:], angles, strict=True):
            want = torch.tensor([row[column] + table.spreads[spread] * OFFSETS[k] for k in order], dtype=torch.float64)
            within(torch.rad2deg(field[at]), want, 1e-12, "angles")
        assert own[1][at].tolist() == pytest.approx([row[0] * 1e-7] * 20)
    if table.los:
        u = ((int(words[80 * count]) >> 8) + 0.5) * 2.0**-24
        assert float(own[2][-1]) == pytest.approx(2 * math.pi * u)
    assert len(own[0]) == 20 * count + table.los
    assert float(own[0].square().sum()) == pytest.approx(1.0)


@every_profile
@pytest.mark.parametrize("array", ARRAYS)
def test_drawn_equals_injected(profile, array):
    """The kernel that draws and the rays given back to it make the same channels, turned and at several frequencies."""
    kwargs = {
        "nr": 4,
        "nt": 6,
        "array": array,
        "frequency": torch.tensor([0.0, 1e7]),
        "tx_yaw": torch.tensor([0.1, -1.0, 2.0]),
        "rx_yaw": 0.4,
        "dtype": torch.complex128,
    }
    rays = cdl_rays(profile, 3, seed=5, first_item=2, los_phase="random", delay_spread=1e-7)
    want = sf.cdl_channels(profile, 3, rays=rays, **kwargs)
    drawn = {"seed": 5, "first_item": 2, "los_phase": "random", "delay_spread": 1e-7} | kwargs
    within(sf.cdl_channels(profile, 3, **drawn), want, 1e-12, "kernel's draw")
    with sf.use_backend("reference"):
        within(sf.cdl_channels(profile, 3, **drawn), want, 1e-12, "torch's draw")


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@every_profile
def test_split_batch(profile, backend):
    """Items are addressed by first_item: a split draw has the same rays, on the native kernels the same bits."""
    kwargs = {"nr": 4, "nt": 6, "seed": 9, "los_phase": "random"}
    with sf.use_backend(backend):
        whole = sf.cdl_channels(profile, 7, first_item=3, **kwargs)
        parts = [sf.cdl_channels(profile, n, first_item=3 + k, **kwargs) for k, n in ((0, 2), (2, 1), (3, 4), (7, 0))]
    if backend == "cpu":
        same_bits(torch.cat(parts), whole)
    within(torch.cat(parts), whole, 1e-6, "split")
    assert not torch.equal(whole, sf.cdl_channels(profile, 7, first_item=3, **kwargs | {"seed": 10}))


@pytest.mark.parametrize("array", ARRAYS)
@every_profile
def test_exact_moments(profile, array):
    """Against 20,000 samples: every entry of mean and covariance within 5.5 standard errors; total power nr*nt."""
    nr, nt, n = 2, 4, 20_000
    for los_phase in ("fixed", "random"):
        mean, covariance = cdl_moments(profile, nr=nr, nt=nt, array=array, los_phase=los_phase)
        assert float(covariance.diagonal().real.sum() + mean.abs().square().sum()) == pytest.approx(nr * nt)
        torch.testing.assert_close(covariance, covariance.mH.resolve_conj())
        assert float(torch.linalg.eigvalsh(covariance)[0]) > -1e-12
        h = sf.cdl_channels(
            profile, n, nr=nr, nt=nt, array=array, los_phase=los_phase, seed=4, dtype=torch.complex128
        ).flatten(1)
        d = h - mean
        variance = covariance.diagonal().real
        within(d.mean(0), torch.zeros_like(mean), 5.5 * (variance / n).sqrt(), f"mean {los_phase}")
        # the variance of an entry of the sample covariance from the samples themselves
        products = d.unsqueeze(2) * d.conj().unsqueeze(1)
        spread = (products - covariance).abs().square().mean(0).sqrt()
        within(products.mean(0), covariance, 5.5 * spread / math.sqrt(n), f"covariance {los_phase}")


@every_profile
def test_unit_power(profile):
    """E|h|^2 = 1 whatever the orientation: 4,000 channels, five standard errors."""
    h = sf.cdl_channels(
        profile, 4000, nr=2, nt=2, seed=6, tx_yaw=uniform_yaw(4000, math.pi, seed=6), los_phase="random"
    )
    power = h.abs().square().double().mean((1, 2))
    assert abs(float(power.mean()) - 1) < 5 * float(power.std()) / math.sqrt(4000)


def test_los_phase():
    """The specular path of D: 88.8 % of the power and the same matrix in every channel, or a uniform phase."""
    specular = cdl_moments("D", nr=4, nt=8)[0]
    fixed, random = (
        sf.cdl_channels("D", 4000, nr=4, nt=8, seed=8, los_phase=p, dtype=torch.complex128).flatten(1)
        for p in ("fixed", "random")
    )
    assert float(specular.abs().square().mean()) == pytest.approx(specular_power(), rel=1e-12)
    # only the phase of that path differs
    u = cdl_rays("D", 4000, seed=8, los_phase="random").phase[:, -1:]
    within(random - fixed, (torch.polar(torch.ones_like(u), u) - 1) * specular, 1e-10, "specular path")
    assert abs(complex(torch.polar(torch.ones_like(u), u).mean())) < 4 / math.sqrt(4000)
    for profile in "ABC":  # nothing to turn
        same_bits(*(sf.cdl_channels(profile, 2, nr=2, nt=2, seed=8, los_phase=p) for p in ("fixed", "random")))


def test_yaw():
    """Uniform on the interval, independent ends, addressed by item; a vertical array does not feel it."""
    tx, rx = (uniform_yaw(4000, 0.5, seed=2, end=end) for end in ("tx", "rx"))
    for yaw in (tx, rx):
        assert yaw.abs().max() < 0.5 and abs(float(yaw.mean())) < 5 * 0.5 / math.sqrt(3 * 4000)
        assert float(yaw.square().mean()) == pytest.approx(1 / 12, rel=0.06)
    assert abs(float((tx * rx).mean())) < 5 / 12 / math.sqrt(4000)
    same_bits(uniform_yaw(10, 0.5, seed=2, first_item=5), tx[5:15])
    with pytest.raises(ValueError, match='end must be "tx" or "rx"'):
        uniform_yaw(1, 1.0, seed=1, end="up")
    vertical = {"nr": 3, "nt": 3, "seed": 1, "array": "vertical"}
    same_bits(sf.cdl_channels("B", 2, tx_yaw=1.0, rx_yaw=tx[:2], **vertical), sf.cdl_channels("B", 2, **vertical))
    # turning the base station by pi reverses a horizontal array
    turned = sf.cdl_channels("B", 2, nr=3, nt=5, seed=1, tx_yaw=math.pi)
    within(turned, sf.cdl_channels("B", 2, nr=3, nt=5, seed=1).flip(-1), 1e-5, "turned by pi")


def test_frequencies():
    """A vector of subcarriers is the same channel at each; a flat channel (no delay spread) is the same at all."""
    grid = torch.tensor([-2.25e6, 0.0, 2.25e6], dtype=torch.float64)
    together = sf.cdl_channels("C", 2, nr=3, nt=5, seed=1, frequency=grid)
    assert together.shape == (2, 3, 3, 5)
    for k, f in enumerate(grid):
        same_bits(sf.cdl_channels("C", 2, nr=3, nt=5, seed=1, frequency=float(f)), together[:, k].contiguous())
    same_bits(sf.cdl_channels("C", 2, nr=3, nt=5, seed=1), together[:, 0].contiguous(), "default subcarrier")
    flat = sf.cdl_channels("C", 2, nr=3, nt=5, seed=1, frequency=grid, delay_spread=0.0)
    same_bits(flat[:, 0].contiguous(), flat[:, 2].contiguous())
    assert not torch.allclose(together[:, 0], together[:, 2])
    assert sf.cdl_channels("C", 0, nr=3, nt=5, seed=1, frequency=grid).shape == (0, 3, 3, 5)


def test_refusals():
    for bad in ({"array": "round"}, {"los_phase": "no"}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be one of"):
            cdl_moments("A", nr=1, nt=1, **bad)
    with pytest.raises(ValueError, match="unknown profile"):
        cdl_rays("CDL-X", 1, seed=1)
    with pytest.raises(ValueError, match="los_phase must be one of"):
        cdl_rays("A", 1, seed=1, los_phase="no")
