"""Mean-square errors of the variants on AR(1) rows under Rayleigh fading, beside the figures of an independent program.

AR(1) with correlation 0.9, N = 256 reals = 128 symbols, one Rayleigh gain per symbol, T = 50, exact posterior means.
The columns are printed with their standard errors (pytest -s, or the summary of worst errors).
"""

import math

import pytest
import torch
import waterfill_cases as cases
from sf_testing import within

import semcom_fast as sf

N, T, CHUNK, CHUNKS = 256, 50, 500, 4  # 2,000 rows per SNR
COLUMNS = ("raw", "Wiener", "paper", "own base", "+amplitude", "+RMS")
TABLE = {
    -5: (1.135, 0.392, 0.535, 0.526, 0.526, 0.548),
    0: (0.778, 0.237, 0.317, 0.311, 0.311, 0.331),
    5: (0.455, 0.141, 0.181, 0.177, 0.177, 0.195),
    10: (0.229, 0.079, 0.103, 0.095, 0.095, 0.116),
}
OWN = {"update_base": "own"}
VARIANTS = ({}, OWN, OWN | {"topup": "amplitude"}, OWN | {"topup": "amplitude", "topup_renorm": True})
# The table does not say how many rows it averages. Its raw column lies 0.12 to 0.18 standard deviations of one row
# below the closed form 2 - 2 E sqrt(1-d), at all four SNRs (one set of draws): about 1/sqrt(32).
TABLE_ROWS = 32
ROUNDING = 5e-4


class SplitRows:
    """x0 of AR(1) rows in float32: the covariance is symmetric about its centre, so even and odd parts are half as long."""

    def __init__(self, n: int) -> None:
        cov = torch.from_numpy(cases.ar1(n))
        half, flipped = cov[: n // 2, : n // 2], cov[: n // 2, n // 2 :].flip(1)
        self.parts = [tuple(v.float() for v in torch.linalg.eigh(half + s * flipped)) for s in (1, -1)]

    def __call__(self, g, level):
        first, second = g[:, : N // 2], g[:, N // 2 :].flip(1)
        b = level[:, None]
        out = []
        for (values, vectors), part in zip(self.parts, (first + second, first - second), strict=True):
            weights = (1 - b).sqrt() * values / ((1 - b) * values + b) / 2
            out.append(((part @ vectors) * weights) @ vectors.T)
        return torch.cat([out[0] + out[1], (out[0] - out[1]).flip(1)], 1)


def _wiener(cov, f, own):
    """E[f0 | f~] under unequal d: the optimum."""
    s = (1 - own).sqrt()
    system = s[:, :, None] * cov * s[:, None, :]
    system.diagonal(dim1=1, dim2=2).add_(own)
    return (s * torch.linalg.solve(system, f)) @ cov


def _rows(snr, chunk):
    generator = torch.Generator().manual_seed(1000 * (snr + 10) + chunk)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    cov = torch.from_numpy(cases.ar1(N)).float()
    f0 = normal(CHUNK, N) @ torch.linalg.cholesky(cov).T
    sigma2 = 10 ** (-snr / 10)
    d = sigma2 / ((normal(CHUNK, N // 2) ** 2 + normal(CHUNK, N // 2) ** 2) / 2 + sigma2)
    own = d.repeat(1, 2)
    f = (1 - own).sqrt() * f0 + own.sqrt() * normal(CHUNK, N)
    return f0, f, d, normal(T, CHUNK, N), cov


def _errors(snr):
    """[rows, 6] squared errors per row; the optimum is solved for the first 250 rows only (NaN below them)."""
    predict, parts = SplitRows(N), []
    for chunk in range(CHUNKS):
        f0, f, d, noise, cov = _rows(snr, chunk)
        best = torch.full_like(f, math.nan)
        if chunk == 0:
            best[:250] = _wiener(cov, f[:250], d[:250].repeat(1, 2))
        runs = [sf.WaterfillDDIM(predict, sf.WaterfillConfig(steps=T, **v)).run(f, d, noise=noise) for v in VARIANTS]
        parts.append(torch.stack([((v - f0) ** 2).mean(1) for v in (f, best, *runs)], 1))
    return torch.cat(parts).double()


def _mean(column):
    column = column[~column.isnan()]
    return float(column.mean()), float(column.std()) / math.sqrt(len(column))


def test_split_rows_are_the_posterior_mean():
    """The halved eigenbasis against the full one in double precision, with a level per row."""
    g = torch.randn(5, N, generator=torch.Generator().manual_seed(1))
    level = torch.tensor([0.9, 0.5, 0.1, 1e-3, 1.0])
    want = cases.GaussianRows(cases.ar1(N))(g.double().numpy(), level.double().numpy())
    within(SplitRows(N)(g, level), torch.from_numpy(want), 2e-5, "AR(1) predictor in float32")


@pytest.mark.parametrize("snr", TABLE)
def test_table(snr):
    """Every column agrees with the table, and the variants order as it says, on paired rows.

    The ratio of a column to the raw error is compared: both figures of the table come from the same rows, whose
    channels make most of their spread.
    """
    errors = _errors(snr)
    raw = errors[:, 0]
    line = [_mean(errors[:, i]) for i in range(6)]
    print(
        f"\n{snr:4d} dB  " + "  ".join(f"{name} {m:.4f}+-{se:.4f}" for name, (m, se) in zip(COLUMNS, line, strict=True))
    )
    gain = -torch.linspace(0.5 / 2e5, 1 - 0.5 / 2e5, 200_000, dtype=torch.float64).log()
    exact = (2 - 2 * (gain / (gain + 10 ** (-snr / 10))).sqrt()).mean()
    within(raw.mean(), exact, 4 * line[0][1] + 1e-4, "table: raw against its closed form")
    for i, (name, want) in enumerate(zip(COLUMNS, TABLE[snr], strict=True)):
        column = errors[:, i]
        seen = ~column.isnan()
        column, base = column[seen], raw[seen]
        ratio = column.mean() / base.mean()
        spread = (column - ratio * base).std() / base.mean()  # of the ratio of one row, to first order
        limit = 4 * spread * math.sqrt(1 / len(column) + 1 / TABLE_ROWS) + ROUNDING * (1 + want) / TABLE[snr][0]
        if i:
            within(ratio, torch.tensor(want / TABLE[snr][0], dtype=torch.float64), float(limit), f"table: {name}/raw")
        limit = 4 * column.std() * math.sqrt(1 / len(column) + 1 / TABLE_ROWS) + ROUNDING
        within(column.mean(), torch.tensor(want, dtype=torch.float64), float(limit), f"table: {name}")
    _ordered(errors)


def _ordered(errors):
    """Paired differences: the optimum is best, the own base beats the paper's, unit RMS costs most on a Gaussian prior."""
    wiener = errors[~errors[:, 1].isnan()]
    for worse, better in ((2, 1), (3, 1), (0, 2)):
        rows = wiener if better == 1 else errors
        mean, se = _mean(rows[:, worse] - rows[:, better])
        assert mean > 5 * se, f"{COLUMNS[worse]} - {COLUMNS[better]} = {mean} +- {se}"
    for worse, better in ((2, 3), (5, 4), (5, 2)):
        mean, se = _mean(errors[:, worse] - errors[:, better])
        assert mean > 5 * se, f"{COLUMNS[worse]} - {COLUMNS[better]} = {mean} +- {se}"
    mean, _ = _mean(errors[:, 3] - errors[:, 4])
    assert abs(mean) < 2e-3, "the amplitude top-up alone hardly matters when noise does not enter the state"
