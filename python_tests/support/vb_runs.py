"""Scenes of received pilots with Gaussian experts for whole runs of the estimator, and helpers to compare runs."""

from types import SimpleNamespace

import numpy as np
import torch
import vb_gauss as gauss
import vb_math as vb
from torch import Tensor

import semcom_fast as sf
from semcom_fast import reference

SHORT = {"steps": 20, "beta_max": 0.45}  # a schedule for what holds at any T


def scene(
    seed=0, count=8, snr_db=20.0, np_=9, nr=4, nt=16, dtype=torch.complex128, laws=None, schedule=None
) -> SimpleNamespace:
    """`count` channels of four laws in turn, QPSK pilots, and the laws as torch experts of T = 100 (or SHORT)."""
    rng = np.random.default_rng(1000 + seed)
    laws = gauss.scenario(seed, nr, nt) if laws is None else laws
    true = np.arange(count) % len(laws)
    drawn = [law.draw(count, nr, rng) for law in laws]
    h = np.stack([drawn[k][b] for b, k in enumerate(true)]) if count else np.zeros((0, nr, nt), dtype=np.complex128)
    noise_var = nt * 10 ** (-snr_db / 10)
    p = gauss.qpsk(rng, nt, np_)
    y = h @ p + np.sqrt(noise_var) * gauss.complex_normal(rng, count, nr, np_)
    return SimpleNamespace(
        laws=laws, true=true, h=h, p=p, y=y, noise_var=noise_var, schedule=schedule or {},
        experts=[gauss.TorchExpert(law, alpha_bar(schedule), dtype) for law in laws],
        yt=torch.from_numpy(y).to(dtype), pt=torch.from_numpy(p).to(dtype),
    )  # fmt: skip


def alpha_bar(schedule: dict | None = None) -> np.ndarray:
    return vb.schedule(schedule["steps"], last=schedule["beta_max"])[1] if schedule else vb.schedule()[1]


def run(s: SimpleNamespace, experts=None, config=None, preset="recommended", **kwargs) -> "sf.VBMoEResult":
    """The package's run of a scene."""
    model = sf.VBMoE(
        s.experts if experts is None else experts, sf.VBMoEConfig.preset(preset, **s.schedule | (config or {}))
    )
    given = {"noise_var": s.noise_var} | kwargs
    return model.run(given.pop("y", s.yt), given.pop("pilots", s.pt), given.pop("noise_var"), **given)


def drawn(shape: tuple[int, ...], steps, seed: int = 0, first_item: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """H_T [B,Nr,Nt] and the noise [B,S,Nr,Nt] of the evidence, as the conventions number their draws."""
    key = {"seed": seed, "first_item": first_item, "dtype": torch.complex128}
    start = reference.philox_normal(shape, stream=7, step=0, **key)
    noise = [reference.philox_normal(shape, stream=8, step=int(t), **key) for t in steps]
    return start.numpy(), torch.stack(noise, 1).numpy()


class RowExpert:
    """An expert that works real by real, so that its bits do not depend on the company a row is in."""

    def __init__(self, power: Tensor, bar: np.ndarray) -> None:
        ab = torch.as_tensor(bar, dtype=torch.float64)[:, None, None, None]
        self.gain = ((1 - ab).sqrt() / (ab * power[..., None] + 1 - ab)).to(power.dtype)

    def __call__(self, h_t: Tensor, t: int) -> Tensor:
        return torch.view_as_complex(torch.view_as_real(h_t) * self.gain[t])


def row_experts(count: int, bar, nr: int = 4, nt: int = 16, dtype=torch.float32, seed: int = 0) -> list[RowExpert]:
    """Independent entries with powers that each expert distributes in its own way."""
    gen = torch.Generator().manual_seed(seed)
    powers = [torch.exp(2 * torch.randn(nr, nt, generator=gen, dtype=torch.float64)) for _ in range(count)]
    return [RowExpert((q / q.mean()).to(dtype), bar) for q in powers]


class Bank:
    """Experts that are called together, counting how."""

    def __init__(self, experts, own: bool = False) -> None:
        self.experts, self.together = experts, 0
        if own:
            self.each = self._each

    def __len__(self) -> int:
        return len(self.experts)

    def __getitem__(self, k: int):
        return self.experts[k]

    def __call__(self, h_t: Tensor, t: int) -> Tensor:
        self.together += 1
        return torch.stack([e(h_t, t) for e in self.experts], 1)

    def _each(self, h_t: Tensor, t: int) -> Tensor:
        self.together += 1
        return torch.stack([e(h_t[:, k], t) for k, e in enumerate(self.experts)], 1)
