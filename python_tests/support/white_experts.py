"""Experts of white Gaussian channels for the tests of VBMoE: exact, tiny, and able to fail on request."""

import numpy as np
import torch

import semcom_fast as sf

NR, NT, NP, T = 2, 6, 4, 10
POWERS = (0.3, 1.0, 2.5)  # of the experts' priors CN(0, v I)
SMALL = {"steps": T}


class White:
    """The exact noise predictor of CN(0, v I); counts its rows, and can be made to fail at one call."""

    def __init__(self, power, at=None, what=None):
        ab = sf.VBMoEConfig(**SMALL).tables().alpha_bar
        self.gain = np.sqrt(1 - ab) / (ab * power + 1 - ab)
        self.rows, self.at, self.what = 0, at, what

    def __call__(self, h_t, t):
        self.rows += len(h_t)
        eps = self.gain[t] * h_t
        return self.what(eps) if self.at == t else eps


class Still(White):
    """One that keeps no count: a graph through it is good for the next run."""

    def __call__(self, h_t, t):
        return self.gain[t] * h_t


class Bank:
    """The experts together, noting how they were called."""

    def __init__(self, experts, each):
        self.experts, self.used = experts, []
        if each:
            self.each = self._each

    def __len__(self):
        return len(self.experts)

    def __getitem__(self, k):
        return self.experts[k]

    def __call__(self, h_t, t):
        self.used.append("all")
        return torch.stack([e(h_t, t) for e in self.experts], 1)

    def _each(self, h_t, t):
        self.used.append("each")
        return torch.stack([e(h_t[:, k], t) for k, e in enumerate(self.experts)], 1)


def experts():
    return [White(v) for v in POWERS]


def received(batch=5, dtype=torch.complex64, snr_db=10.0, seed=0):
    """y, P, noise_var and H of channels whose power is one of POWERS in turn."""
    h = sf.philox_normal((batch, NR, NT), seed=seed, dtype=dtype)
    h = h * torch.tensor([POWERS[b % 3] ** 0.5 for b in range(batch)], dtype=h.real.dtype)[:, None, None]
    p = sf.philox_normal((1, NT, NP), seed=seed + 1, dtype=dtype)[0]
    p = torch.complex(p.real.sign(), p.imag.sign()) * 0.5**0.5
    noise_var = NT * 10 ** (-snr_db / 10)
    return h @ p + noise_var**0.5 * sf.philox_normal((batch, NR, NP), seed=seed + 2, dtype=dtype), p, noise_var, h


def same(a, b):
    """Every field of two results equal, bit for bit."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
