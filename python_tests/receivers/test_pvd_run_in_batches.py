"""run_in_batches: a batch in parts gives the bits of one run, whatever cuts it, fails in it or diverges in it."""

import pytest
import torch
from pvd_toys import GaussianSource, RollEncoder, link
from sf_testing import draw

import semcom_fast as sf
from semcom_fast.receivers import pvd_batches, run_in_batches

BATCH = 5
ENCODER = RollEncoder(1, 2, 1, 6, torch.float32)


def _case(denoiser=None, **config):
    c = sf.PVDConfig(source_shape=(ENCODER.n,), **({"J": 3, "Jin": 2, "sigma_max": 5.0, "sigma_min": 0.1} | config))
    _, y = link(BATCH, 1, 2, 3, ENCODER(draw(BATCH, 1, ENCODER.n, seed=5, dtype=torch.float32)), 0.05)
    return sf.PVD(ENCODER, sf.GaussianChannelPrior(), denoiser or GaussianSource(1.2, 0.1), c), y


def _equal(a, b):
    for name in a._fields:
        assert torch.equal(getattr(a, name), getattr(b, name)), name


@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize("limit", [1, 2, 4, 100])  # 2 and 4 starts cut between the restarts of an image
def test_parts_give_the_bits_of_one_run(limit, restarts):
    pvd, y = _case()
    seen = []
    got = run_in_batches(
        pvd, y, 0.05, limit=limit, restarts=restarts, seed=7, first_item=4, on_part=lambda *at: seen.append(at)
    )
    _equal(got, pvd.run(y, 0.05, restarts=restarts, seed=7, first_item=4))
    starts = BATCH * restarts
    assert seen == [(min(at, starts), starts) for at in range(limit, starts + limit, limit)]


def test_noise_variances_follow_their_images():
    pvd, y = _case()
    levels = torch.linspace(0.01, 0.2, BATCH)
    want = pvd.run(y, levels, restarts=2, seed=1)
    _equal(run_in_batches(pvd, y, levels, limit=3, restarts=2, seed=1), want)
    _equal(run_in_batches(pvd, y, levels.tolist(), limit=3, restarts=2, seed=1), want)
    assert not torch.equal(want.h, pvd.run(y, 0.05, restarts=2, seed=1).h)


def test_the_size_follows_the_measured_memory():
    """Memory for two and a half starts makes parts of two; half a start still runs one by one."""
    pvd, y = _case()
    one = pvd_batches.bytes_per_start(pvd, y, 0.05)
    largest = ENCODER.n * 4  # of the real tensors of one start
    assert 5 * largest < one < 200 * largest
    assert pvd.config.J == 3  # the probe leaves the receiver alone
    for memory, size in ((2.5, 2), (0.5, 1), (100, BATCH)):
        seen = []
        run_in_batches(pvd, y, 0.05, memory=int(memory * one), on_part=lambda *at, into=seen: into.append(at[0]))
        assert seen == [*range(size, BATCH, size), BATCH], memory


def test_peak_memory_of_a_chain_is_known():
    """Ten tensors kept and one passing: the peak is eleven, and what is gone does not count."""
    with pvd_batches.peak_bytes(torch.device("cpu")) as found:
        kept = [torch.zeros(1000) for _ in range(10)]
        for _ in range(3):
            torch.ones(1000)
        del kept
        torch.ones(2000)
    assert found.bytes == 11 * 4000
    with pvd_batches.peak_bytes(torch.device("cpu")) as found:  # what autograd holds on to counts
        x = torch.zeros(1000, requires_grad=True)
        y = x.exp().exp().exp()
    assert found.bytes == 4 * 4000 and y.requires_grad


class _Full:
    """A source denoiser on a machine that holds `most` starts at a time."""

    def __init__(self, most, error):
        self.most, self.error, self.inner, self.sizes = most, error, GaussianSource(1.2, 0.1), []

    def __call__(self, x, sigma):
        self.sizes.append(len(x))
        if len(x) > self.most:
            raise self.error
        return self.inner(x, sigma)


ERRORS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory"),
    "cpu": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_out_of_memory_halves_and_keeps_what_is_done(error):
    full = _Full(10, error)
    pvd, y = _case(full)
    want = pvd.run(y, 0.05, restarts=2, seed=7)
    done = []

    def fill(at, of):
        done.append(at)
        full.most = 2  # another program takes memory after the first part

    full.sizes.clear()
    _equal(run_in_batches(pvd, y, 0.05, limit=4, restarts=2, seed=7, on_part=fill), want)
    assert done == [4, 6, 8, 10]
    steps = pvd.config.J * pvd.config.Jin
    assert full.sizes == [4] * steps + [4] + [2] * 3 * steps  # the first part is not computed again
    full.most = 0
    with pytest.raises(RuntimeError, match="one start alone is out of memory on cpu"):
        run_in_batches(pvd, y, 0.05, limit=4)


def test_other_errors_pass():
    pvd, y = _case(_Full(0, RuntimeError("no kernel image")))
    with pytest.raises(RuntimeError, match="no kernel image"):
        run_in_batches(pvd, y, 0.05, limit=2)


class _Breaks:
    """NaN for the image whose received energy is the largest: the same one whatever the parts."""

    def __init__(self):
        self.inner, self.calls, self.rows = GaussianSource(1.2, 0.1), 0, []

    def __call__(self, x, sigma):
        mean, var = self.inner(x, sigma)
        rows, self.calls = self.rows[self.calls], self.calls + 1
        return torch.where(torch.tensor([[row in rows] for row in range(len(x))]).unsqueeze(-1), torch.nan, mean), var


def test_divergence_names_the_image_of_the_whole_batch():
    broken = _Breaks()
    pvd, y = _case(broken)
    steps = pvd.config.J * pvd.config.Jin
    broken.rows = [[]] * steps + [[1]] * steps + [[]] * steps  # parts of 2: image 3 of 5
    good, _ = _case()
    want = good.run(y, 0.05, seed=2)
    with pytest.raises(sf.DivergedError, match="image 3 diverged in all 1 restarts") as caught:
        run_in_batches(pvd, y, 0.05, limit=2, seed=2)
    out = caught.value.result
    assert torch.isinf(out.energy).tolist() == [False, False, False, True, False]
    keep = [0, 1, 2, 4]
    assert torch.equal(out.h[keep], want.h[keep]) and torch.equal(out.energy[keep], want.energy[keep])


def test_a_diverged_restart_is_passed_over_across_parts():
    """The winning restart of image 1 of 5 breaks; with 3 restarts in parts of 4 the other parts' starts take over."""
    plain, y = _case()
    whole = plain.run(y, 0.05, seed=2, restarts=3)
    broken = _Breaks()
    pvd, _ = _case(broken)
    steps = pvd.config.J * pvd.config.Jin
    start = 3 + int(whole.chosen[1])
    broken.rows = [[start % 4] if start // 4 == part else [] for part in range(4) for _ in range(steps)]
    out = run_in_batches(pvd, y, 0.05, limit=4, restarts=3, seed=2)
    assert torch.isinf(out.energy_all).nonzero().tolist() == [[1, int(whole.chosen[1])]]
    assert int(out.chosen[1]) == int(whole.energy_all[1].argsort()[1])
    for b in (0, 2, 3, 4):
        assert torch.equal(out.h[b], whole.h[b])


def test_arguments_and_empty_batches():
    pvd, y = _case()
    assert run_in_batches(pvd, y[:0], 0.05, restarts=2).energy_all.shape == (0, 2)
    for wrong, message in (({"limit": 0}, "limit must be at least 1"), ({"memory": 0}, "memory must be"),
                           ({"restarts": 0}, "restarts must be")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            run_in_batches(pvd, y, 0.05, **wrong)
    y[3, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="image 3 holds NaN"):
        run_in_batches(pvd, y, 0.05, limit=2)


def test_free_memory_is_what_the_system_says():
    free = pvd_batches.free_memory(torch.device("cpu"))
    assert free is None or 0 <= free < 2**50
