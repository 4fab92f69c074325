"""Runs of sf.PVD: seeds, split batches, restarts, threads, precisions and backends."""

import pytest
import torch
from pvd_toys import GaussianSource, RollEncoder, link
from sf_testing import draw, same_bits, within

import semcom_fast as sf

RUN = 20 * 20  # roundings, of the largest mean, in a run: 20 steps of about 20 operations each
SMALL = {"J": 5, "Jin": 4, "sigma_max": 5.0, "sigma_min": 0.1}


def _case(users=1, nt=1, dtype=torch.complex64, k=2, nr=3, t=6, batch=5, **config):
    encoder = RollEncoder(users, k, nt, t, dtype.to_real())
    c = sf.PVDConfig(users=users, nt=nt, source_shape=(encoder.n,), **(SMALL | config))
    _, y = link(batch, users, k, nr, encoder(draw(batch, users, encoder.n, seed=5, dtype=dtype.to_real())), 0.05)
    return sf.PVD(encoder, sf.GaussianChannelPrior(), GaussianSource(1.2, 0.1), c), y


def _equal(a, b):
    for name in ("h", "d", "energy", "energy_all"):
        same_bits(getattr(a, name), getattr(b, name), name)
    assert torch.equal(a.chosen, b.chosen)


VARIANTS = [{}, {"users": 2, "nt": 2}, {"L": 2}, {"calibration": "moment"}, {"sample_noise": False}]
variants = pytest.mark.parametrize(
    "config", VARIANTS, ids=lambda c: " ".join(f"{k}={v}" for k, v in c.items()) or "default"
)


@variants
@pytest.mark.parametrize("restarts", [1, 3])
def test_split_batch(config, restarts):
    """first_item counts images: a batch cut anywhere gives the same bits, with any number of restarts."""
    pvd, y = _case(**config)
    whole = pvd.run(y, 0.05, seed=7, restarts=restarts)
    for cut in (1, 3):
        parts = [pvd.run(y[:cut], 0.05, seed=7, restarts=restarts),
                 pvd.run(y[cut:], 0.05, seed=7, restarts=restarts, first_item=cut)]  # fmt: skip
        for name in ("h", "d", "energy", "energy_all", "chosen"):
            got = torch.cat([getattr(p, name) for p in parts])
            assert torch.equal(got, getattr(whole, name)), (cut, name)


@variants
def test_split_batch_on_the_reference_backend(config):
    """The plain torch definitions draw the same numbers for a split batch; torch's own products may round differently."""
    pvd, y = _case(**config)
    with sf.use_backend("reference"):
        whole = pvd.run(y, 0.05, seed=7)
        parts = [pvd.run(y[:3], 0.05, seed=7), pvd.run(y[3:], 0.05, seed=7, first_item=3)]
    for name in ("h", "d"):
        got, want = torch.cat([getattr(p, name) for p in parts]), getattr(whole, name)
        within(got, want, RUN * 2.0**-24 * want.abs().max(), f"split reference run {name}")


@variants
def test_restarts_are_items_of_a_longer_batch(config):
    """Restart r of image b is item b*R + r: the same images repeated by hand give all energies and the best means."""
    pvd, y = _case(**config)
    r = 4
    got = pvd.run(y, 0.05, seed=3, restarts=r, first_item=2)
    many = pvd.run(y.repeat_interleave(r, 0), 0.05, seed=3, first_item=2 * r)
    same_bits(got.energy_all, many.energy.reshape(5, r))
    best = many.energy.reshape(5, r).argmin(1)
    assert torch.equal(got.chosen, best) and int((best != 0).sum()) > 0
    rows = torch.arange(5) * r + best
    same_bits(got.h, many.h[rows])
    same_bits(got.d, many.d[rows])
    same_bits(got.energy, got.energy_all.min(1).values)


def test_energy_is_the_residual_at_the_returned_means():
    """energy = |Y - sum_u H f(D)|^2, unnormalised."""
    pvd, y = _case(users=2, dtype=torch.complex128)
    out = pvd.run(y, 0.05, seed=3, restarts=2)
    residual = y - torch.matmul(out.h, pvd.encode(out.d)).sum(1)
    within(out.energy, residual.abs().square().sum((1, 2, 3)), 1e-12 * out.energy, "energy of the result")


def test_seed_decides():
    """The same seed repeats every bit; another seed, or another first_item, gives another run."""
    pvd, y = _case()
    first = pvd.run(y, 0.05, seed=2**63 + 1)
    torch.manual_seed(123)  # torch's own generator plays no part
    state = torch.get_rng_state()
    _equal(first, pvd.run(y, 0.05, seed=2**63 + 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first.h, pvd.run(y, 0.05, seed=1).h)
    assert not torch.equal(first.h, pvd.run(y, 0.05, seed=2**63 + 1, first_item=1).h)
    _equal(first, pvd.run(y, 0.05, seed=torch.tensor(1 - 2**63)))


def test_without_sample_noise_only_the_start_is_random():
    """sample_noise=False: from the same start no further draw is made in the moment calibration, and L has no effect."""
    pvd, y = _case(sample_noise=False, calibration="moment", dtype=torch.complex128)
    one = pvd.run(y, 0.05, seed=3)
    _equal(one, pvd.run(y, 0.05, seed=3))
    two = _case(sample_noise=False, calibration="moment", dtype=torch.complex128, L=2)[0].run(y, 0.05, seed=3)
    within(two.h, one.h, 1e-10 * one.h.abs().max(), "L=2 without noise")
    noisy, _ = _case(calibration="moment", dtype=torch.complex128)
    assert not torch.equal(noisy.run(y, 0.05, seed=3).h, one.h)


@variants
def test_threads_do_not_change_a_bit(config):
    """A batch big enough that the kernels split their work: one thread against two."""
    pvd, y = _case(batch=300, J=2, Jin=2, **config)
    runs = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        runs.append(pvd.run(y, 0.05, seed=5))
    _equal(*runs)


@variants
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_backends_agree_over_a_whole_run(config, dtype):
    """cpu against reference: rounding differs by at most a few units a step, and the loop contracts it.

    The normals of single precision may be 2e-6 off, which is 34 roundings of its unit; the bound covers one per step.
    """
    pvd, y = _case(dtype=dtype, **config)
    with sf.use_backend("reference"):
        want = pvd.run(y, 0.05, seed=5)
    got = pvd.run(y, 0.05, seed=5)
    unit = 2.0**-24 if dtype is torch.complex64 else 2.0**-53
    bound = RUN * unit * (2 if dtype is torch.complex64 else 1)
    for name in ("h", "d"):
        w = getattr(want, name)
        within(getattr(got, name), w, bound * w.abs().max(), f"whole run cpu/reference {name} {str(dtype)[6:]}")


def test_single_precision_follows_double():
    """The same draws in complex64 and complex128: the runs stay within the single-precision bound of each other."""
    narrow, y = _case()
    wide_pvd, y_wide = _case(dtype=torch.complex128)
    got, want = narrow.run(y, 0.05, seed=5), wide_pvd.run(y_wide, 0.05, seed=5)
    assert got.h.dtype is torch.complex64 and got.d.dtype is torch.float32 and got.energy.dtype is torch.float32
    assert want.h.dtype is torch.complex128 and want.d.dtype is torch.float64 and want.energy.dtype is torch.float64
    for name in ("h", "d"):
        w = getattr(want, name)
        within(getattr(got, name), w, 2 * RUN * 2.0**-24 * w.abs().max(), f"whole run single/double {name}")


@pytest.mark.parametrize("batch", [0, 1])
def test_smallest_batches(batch):
    """An empty batch gives an empty result; K = U = Nr = 1 works."""
    pvd, y = _case(k=1, nr=1, batch=batch)
    out = pvd.run(y, 0.05, seed=5, restarts=2)
    assert out.h.shape == (batch, 1, 1, 1, 1) and out.d.shape == (batch, 1, 12)
    assert out.energy_all.shape == (batch, 2) and out.chosen.shape == out.energy.shape == (batch,)


def test_source_of_several_dimensions():
    """source_shape may be an image: the run is that of the flattened source."""
    flat, y = _case(dtype=torch.complex128)
    encoder, c = flat.encode, flat.config
    shape = (3, 4, 2)
    folded = sf.PVD(lambda d: encoder(d.flatten(2)), sf.GaussianChannelPrior(), GaussianSource(1.2, 0.1),
                    sf.PVDConfig(**(vars(c) | {"source_shape": shape})))  # fmt: skip
    got, want = folded.run(y, 0.05, seed=5), flat.run(y, 0.05, seed=5)
    assert got.d.shape == (5, 1, *shape)
    assert torch.equal(got.d.flatten(2), want.d) and torch.equal(got.h, want.h)


@pytest.mark.parametrize("view", ["conj", "transposed", "expanded"])
def test_views_of_the_received_signal(view):
    """y may be a lazily conjugated, transposed or expanded view."""
    pvd, y = _case()
    seen = {"conj": lambda t: t.conj().resolve_conj().conj(), "transposed": lambda t: t.mT.contiguous().mT,
            "expanded": lambda t: t[:1].expand(5, -1, -1, -1)}[view](y)  # fmt: skip
    for restarts in (1, 2):
        _equal(
            pvd.run(seen, 0.05, seed=5, restarts=restarts),
            pvd.run(seen.clone().resolve_conj(), 0.05, seed=5, restarts=restarts),
        )


def test_run_leaves_its_input_alone():
    """y and noise_var are not written to."""
    pvd, y = _case()
    level = torch.full((5,), 0.05)
    before = y.clone(), level.clone()
    pvd.run(y, level, seed=5, restarts=2)
    assert torch.equal(y, before[0]) and torch.equal(level, before[1])
