"""Trained noise predictors as the estimator's loop calls them: complex channels in and out, affines folded beforehand.

In a chain all channels are at the same diffusion step, so the affine of the step goes into the convolution before it:
W(t) = (1 + s_t) W, b(t) = (1 + s_t) b + b_t, formed once for all T steps. The planes of a complex channel are its own
memory read channels last, and the predicted noise is read back the same way: nothing is rearranged on the way.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .network import CNNConfig, DenoiserCNN, to_angular, to_planes, to_spatial

# Largest batch for which the experts run as one grouped convolution. CPU with AMX, one thread, four experts: twice as
# fast at 1 channel (bfloat16), 10 to 20 % at 4 and 8, within 5 % from 16 on. CUDA: launches, not arithmetic, take the
# time of a small batch; chosen by count, not measured.
GROUPED_CPU, GROUPED_CUDA = 8, 32
_DTYPES = (torch.float32, torch.bfloat16)
_CPU_ROWS = 16  # on the CPU so many rows go through all layers together: their activations stay in the cache


def prefer_grouped(batch: int, device: torch.device) -> bool:
    """Whether the experts of a bank run faster as one grouped convolution than one after another."""
    return 0 < batch <= (GROUPED_CPU if device.type == "cpu" else GROUPED_CUDA)


class _Folded(nn.Module):
    """A chain of convolutions for `groups` predictors, with the affine of every step folded into one of them."""

    def __init__(self, networks: Sequence[DenoiserCNN], dtype: torch.dtype) -> None:
        super().__init__()
        if dtype not in _DTYPES:
            raise TypeError(f"experts compute in float32 or bfloat16, not {dtype}")
        config: CNNConfig = networks[0].config
        self.config, self.groups, self.dtype = config, len(networks), dtype
        steps = torch.arange(1, config.steps + 1)
        self._before, after = config.split - 1, len(config.widths) - 1
        for number in range(after):
            weights, biases = [], []
            for network in networks:
                layer = network.layers[number]
                weight, bias = layer.weight.detach().float(), layer.bias.detach().float()  # type: ignore[operator]
                if number == self._before:
                    with torch.no_grad():
                        scale, shift = network.affine(steps)
                    weight, bias = scale[..., None, None, None] * weight, scale * bias + shift  # [T,...]
                weights.append(weight)
                biases.append(bias)
            channel = 1 if number == self._before else 0
            self._keep(f"weight{number}", torch.cat(weights, channel), channel)
            self._keep(f"bias{number}", torch.cat(biases, channel), channel)
        self.requires_grad_(False).eval()

    def _keep(self, name: str, value: Tensor, tables: int) -> None:
        value = value.to(self.dtype)
        if value.ndim - tables == 4:  # a filter, or one for each step: channels last
            value = value.movedim(-3, -1).contiguous().movedim(-1, -3)
        self.register_buffer(name, value, persistent=False)

    def step(self, t: int) -> int:
        """t, checked."""
        if not 1 <= t <= self.config.steps:
            raise ValueError(f"the expert knows the diffusion steps 1..{self.config.steps}, got t = {t}")
        return int(t)

    def forward(self, h: Tensor, t: int, shared: bool) -> Tensor:
        """Noise [B,G,Nr,Nt] of h [B,Nr,Nt], the same for all groups (shared), or of h [B,G,Nr,Nt]."""
        row = self.step(t) - 1
        if h.shape[0] == 0:
            return h.new_empty(0, self.groups, *h.shape[-2:])
        rows = _CPU_ROWS if h.device.type == "cpu" else len(h)
        real = torch.float64 if h.dtype == torch.complex128 else torch.float32
        out = torch.empty(len(h), *h.shape[-2:], self.groups, 2, dtype=real, device=h.device)
        for first in range(0, len(h), rows):
            out[first : first + rows] = self._block(h[first : first + rows], row, shared)
        eps = torch.view_as_complex(out).movedim(-1, 1)
        return to_spatial(eps) if self.config.domain == "angular" else eps

    def _block(self, h: Tensor, row: int, shared: bool) -> Tensor:
        """Planes of the noise [B,Nr,Nt,G,2] of some rows, in the compute dtype."""
        state = to_angular(h) if self.config.domain == "angular" else h
        if shared:
            x = to_planes(state.contiguous())
        else:  # [B,G,Nr,Nt] -> planes of group 0, planes of group 1, ... at every entry
            x = torch.view_as_real(state.movedim(1, -1).contiguous()).flatten(-2).movedim(-1, 1)
        x = x.to(self.dtype)
        last = self.config.layers - 1
        for number, spacing in enumerate(self.config.spacing):
            weight, bias = getattr(self, f"weight{number}"), getattr(self, f"bias{number}")
            if number == self._before:
                weight, bias = weight[row], bias[row]
            groups = 1 if number == 0 and shared else self.groups
            x = _convolve(x, weight, bias, spacing, groups, relu=number not in (self._before, last))
        return x.movedim(1, -1).unflatten(-1, (self.groups, 2))


def _convolve(x: Tensor, weight: Tensor, bias: Tensor, spacing: tuple[int, int], groups: int, relu: bool) -> Tensor:
    """A same-size convolution, on the CPU with the ReLU inside oneDNN's kernel where torch can reach it."""
    if x.device.type == "cpu" and _fuses(x.dtype):
        convolve, after = torch.ops.mkldnn._convolution_pointwise, "relu" if relu else "none"
        return convolve(x, weight, bias, spacing, (1, 1), spacing, groups, after, [], "")
    x = functional.conv2d(x, weight, bias, padding=spacing, dilation=spacing, groups=groups)
    return x.relu_() if relu else x


@functools.cache
def _fuses(dtype: torch.dtype) -> bool:
    """Whether torch.compile's convolution with an operation on its output is there and takes this dtype."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")):
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class CNNExpert(nn.Module):
    """One trained predictor as an expert of the loop: expert(h_t complex [B,Nr,Nt], t = 1..T) -> eps like h_t.

    Convolutions run in `dtype` (float32 or bfloat16), channels last, with the affines folded; no gradients. The network
    is copied: training it further changes nothing here. `.to(device)` moves it.

    Raises:
        TypeError: another dtype, or a real h_t.
        ValueError: t outside 1..T.
    """

    def __init__(self, network: DenoiserCNN, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config, self.dtype = network.config, dtype
        self.folded = _Folded([network], dtype)

    @torch.no_grad()
    def forward(self, h_t: Tensor, t: int) -> Tensor:
        return self.folded(_complex(h_t, 3), t, True)[:, 0]


class GroupedExperts(nn.Module):
    """All experts on the same rows: bank(h_t [B,Nr,Nt], t) -> eps [B,K,Nr,Nt]; bank[k] is one of them.

    As one grouped convolution, whose first layer is ungrouped since all see the same channel, or one expert after
    another, whichever is faster for the batch and device.

    Args:
        experts: networks of one configuration.
        dtype: of the convolutions.
        grouped: True or False instead of the rule `prefer_grouped`.

    Raises:
        ValueError: no networks, or of different configurations.
    """

    def __init__(
        self, networks: Sequence[DenoiserCNN], dtype: torch.dtype = torch.float32, grouped: bool | None = None
    ) -> None:
        super().__init__()
        networks = list(networks)
        if not networks:
            raise ValueError("a bank needs at least one expert")
        for k, network in enumerate(networks):
            if network.config != networks[0].config:
                raise ValueError(f"expert {k} is built as {network.config}, expert 0 as {networks[0].config}")
        self.config, self.dtype, self.grouped = networks[0].config, dtype, grouped
        self.experts = nn.ModuleList(CNNExpert(network, dtype) for network in networks)
        self.folded = _Folded(networks, dtype)

    def __len__(self) -> int:
        return len(self.experts)

    def __getitem__(self, k: int) -> CNNExpert:
        return self.experts[k]  # type: ignore[return-value]

    def _as_one(self, h_t: Tensor) -> bool:
        if len(self) == 1:
            return False
        return prefer_grouped(h_t.shape[0], h_t.device) if self.grouped is None else self.grouped

    @torch.no_grad()
    def forward(self, h_t: Tensor, t: int) -> Tensor:
        h_t = _complex(h_t, 3)
        if self._as_one(h_t):
            return self.folded(h_t, t, True)
        return torch.stack([expert(h_t, t) for expert in self.experts], 1)

    @torch.no_grad()
    def each(self, h_t: Tensor, t: int) -> Tensor:
        """Every expert on a state of its own: h_t [B,K,Nr,Nt] -> eps [B,K,Nr,Nt]."""
        h_t = _complex(h_t, 4)
        if h_t.shape[1] != len(self):
            raise ValueError(f"{len(self)} experts need as many states on axis 1, got h_t {tuple(h_t.shape)}")
        if self._as_one(h_t):
            return self.folded(h_t, t, False)
        return torch.stack([expert(h_t[:, k], t) for k, expert in enumerate(self.experts)], 1)


def _complex(h_t: Tensor, ndim: int) -> Tensor:
    if not h_t.is_complex():
        raise TypeError(f"an expert takes complex channels, got {h_t.dtype}")
    if h_t.ndim != ndim:
        raise ValueError(f"h_t must have {ndim} axes, got {tuple(h_t.shape)}")
    return h_t.resolve_conj()
