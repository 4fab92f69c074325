"""The reference twins against the plainest possible arithmetic: Python loops, Python integers, math."""

import cmath
import math

import pytest
import torch
from sf_testing import draw, within

from semcom_fast import reference


def test_blockdiag_and_score_by_loops():
    """Sums over users, antennas and slots written out entry by entry."""
    u, k, nr, nt, t, noise_var = 2, 2, 3, 2, 4, 0.7
    y, h, x, dx = (
        draw(k, nr, t, seed=1),
        draw(u, k, nr, nt, seed=2),
        draw(u, k, nt, t, seed=3),
        draw(u, k, nt, t, seed=4),
    )
    hl, xl, yl, dl = h.tolist(), x.tolist(), y.tolist(), dx.tolist()

    def product(v):
        return [[[sum(hl[a][b][i][m] * v[a][b][m][s] for a in range(u) for m in range(nt)) for s in range(t)]
                 for i in range(nr)] for b in range(k)]  # fmt: skip

    sent, moved = product(xl), product(dl)
    r = [[[yl[b][i][s] - sent[b][i][s] for s in range(t)] for i in range(nr)] for b in range(k)]
    score_h = [[[[sum(r[b][i][s] * xl[a][b][m][s].conjugate() for s in range(t)) / noise_var for m in range(nt)]
                 for i in range(nr)] for b in range(k)] for a in range(u)]  # fmt: skip
    score_x = [[[[sum(hl[a][b][i][m].conjugate() * r[b][i][s] for i in range(nr)) / noise_var for s in range(t)]
                 for m in range(nt)] for b in range(k)] for a in range(u)]  # fmt: skip
    adjoint = [[[[sum(hl[a][b][i][m].conjugate() * yl[b][i][s] for i in range(nr)) for s in range(t)]
                 for m in range(nt)] for b in range(k)] for a in range(u)]  # fmt: skip

    def energy(v):
        return sum(abs(e) ** 2 for block in v for row in block for e in row)

    out = reference.likelihood_score(y, h, x, noise_var, probe=dx)
    for name, got, want in (
        ("apply", reference.blockdiag_apply(h, x), sent), ("adjoint", reference.blockdiag_adjoint(h, y), adjoint),
        ("score_h", out.score_h, score_h), ("score_x", out.score_x, score_x), ("energy", out.energy, energy(r)),
        ("probe_y", out.probe_y, energy(moved)), ("probe_x", out.probe_x, [energy(dl[a]) for a in range(u)]),
    ):  # fmt: skip
        want = torch.tensor(want, dtype=got.dtype)
        within(got, want, 1e-13 * (1 + want.abs().max()), f"definition {name}")


def _philox(counter, key):
    """Philox4x32-10 in Python integers."""
    c, k, mask = list(counter), list(key), 0xFFFFFFFF
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & mask, (a >> 32) ^ c[3] ^ k[1], a & mask]
        k = [(k[0] + 0x9E3779B9) & mask, (k[1] + 0xBB67AE85) & mask]
    return c


@pytest.mark.parametrize("seed", [0, 7, 2**32 + 5, 2**64 - 1])
def test_philox_words_in_python_integers(seed):
    """The int64 tensor arithmetic of the reference equals Python's unbounded integers."""
    key = (seed & 0xFFFFFFFF, seed >> 32)
    for i in range(50):
        counter = ((i * 2654435761) & 0xFFFFFFFF, i, (i * 40503) & 0xFFFFFFFF, 0xFFFFFFFF - i)
        assert [int(w) for w in reference.philox_words(counter, key)] == _philox(counter, key)


def test_philox_normals_by_math():
    """Box-Muller of the words, for a complex draw, with cmath."""
    seed, step, stream, item = 12345678901, 3, 2, 6
    got = reference.philox_normal((2, 5), seed=seed, step=step, stream=stream, first_item=item, dtype=torch.complex128)
    for row in range(2):
        reals = []
        for quad in range(3):
            w = _philox((quad, step, item + row, stream), (seed & 0xFFFFFFFF, seed >> 32))
            u = [((v >> 8) + 0.5) / 2**24 for v in w]
            for a, b in ((u[0], u[1]), (u[2], u[3])):
                z = cmath.rect(math.sqrt(-2 * math.log(a)), 2 * math.pi * b)
                reals += [z.real, z.imag]
        want = torch.tensor(
            [complex(reals[2 * e], reals[2 * e + 1]) * math.sqrt(0.5) for e in range(5)], dtype=torch.complex128
        )
        within(got[row], want, 1e-14 * 6, "definition normals")


@pytest.mark.parametrize("samples", [None, 3])
def test_update_entry_by_entry(samples):
    """The update of one entry written as a scalar formula, averaged over the samples."""
    many = (2, 3) if samples is None else (samples, 2, 3)
    mean, anchor = draw(2, 3, seed=1), draw(2, 3, seed=2)
    sample, denoised, score, noise = (draw(*many, seed=s) for s in (3, 4, 5, 6))
    s, above, zeta, var = 0.5, 0.8, 0.3, 0.9
    delta = above**2 - s**2
    new_mean, new_sample = reference.pvd_update(mean, anchor, sample, denoised, score, sigma=s, sigma_above=above, zeta=zeta,
                                                score_var=var, noise=noise)  # fmt: skip
    count = samples or 1
    for b in range(2):
        for e in range(3):
            at = [(b, e)] if samples is None else [(i, b, e) for i in range(samples)]
            step = sum(
                complex(anchor[b, e] - sample[i])
                + delta / s**2 * complex(denoised[i] - sample[i])
                + delta * complex(score[i]) / var
                for i in at
            )
            want = complex(mean[b, e]) + zeta * step / count
            assert abs(complex(new_mean[b, e]) - want) < 1e-13
            spread = math.sqrt(s**2 * delta / above**2)
            for i in at:
                assert abs(complex(new_sample[i]) - (want + spread * complex(noise[i]))) < 1e-13


def test_calibrate_and_normalise_by_hand():
    """Two users with plain numbers; a codeword whose norm is known."""
    var_h, probe_x, probe_y = (torch.tensor(v, dtype=torch.float64) for v in ([[0.1, 0.2]], [[3.0, 4.0]], [6.0]))
    s = reference.pvd_calibrate(0.5, var_h, probe_x, probe_y, x_energy=10.0, nr=2, count=20)
    assert abs(float(s) - (0.5 + (2 * 0.1 * 13 + 2 * 0.2 * 14 + 6) / 20)) < 1e-15
    x, norm = reference.power_normalise(torch.tensor([[[3.0, 4j]]], dtype=torch.complex128), power=2.0)
    assert float(norm) == 5.0
    within(x, torch.tensor([[[1.2, 1.6j]]], dtype=torch.complex128), 1e-15, "definition normalise")


def test_twins_refuse_a_draw_without_a_source():
    """The reference draws from noise or seed too, or not at all for the number 0."""
    mean = draw(2, 3)
    with pytest.raises(ValueError, match="pass noise= or seed="):
        reference.pvd_update(*[mean] * 5, sigma=0.5, sigma_above=0.7, zeta=0.1)
    new_mean, sample = reference.pvd_update(*[mean] * 5, sigma=0.5, sigma_above=0.7, zeta=0.1, next_var=0)
    assert torch.equal(new_mean, sample)
