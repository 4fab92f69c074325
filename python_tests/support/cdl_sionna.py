"""Sionna's clustered delay line with the rays and phases it drew: the independent implementation to compare with."""

import pytest
import torch
from torch import Tensor

import semcom_fast as sf

CARRIER = 40e9
FIRST_SUBCARRIER = -2.25e6  # of 300, 15 kHz apart


def sionna_channels(
    profile: str,
    batch: int,
    array: str,
    yaw: tuple[Tensor | float, Tensor | float],
    *,
    nr: int = 16,
    nt: int = 64,
    carrier: float = CARRIER,
    delay_spread: float = 30e-9,
    frequencies: Tensor | None = None,
    seed: int = 1,
) -> tuple[Tensor, sf.CDLRays]:
    """H [B,F,nr,nt] in complex128 and the rays behind it. yaw: of base station and user, [B] or
    a number (Sionna's own default is 0 and pi). frequencies [F], default the first of 300 subcarriers."""
    tr38901 = pytest.importorskip("sionna.phy.channel.tr38901")
    channel = pytest.importorskip("sionna.phy.channel")
    pytest.importorskip("sionna.phy").config.seed = seed
    common = {"carrier_frequency": carrier, "precision": "double"}

    def elements(n: int):
        shape = {"num_rows": 1, "num_cols": n} if array == "horizontal" else {"num_rows": n, "num_cols": 1}
        return tr38901.AntennaArray(
            polarization="single", polarization_type="V", antenna_pattern="omni", **shape, **common
        )

    turned = {}
    for name, angle in zip(("bs_orientation", "ut_orientation"), yaw, strict=True):
        turned[name] = torch.zeros(batch, 3, dtype=torch.float64)
        turned[name][:, 0] = angle
    model = tr38901.CDL(
        model=profile,
        delay_spread=delay_spread,
        ut_array=elements(nr),
        bs_array=elements(nt),
        direction="downlink",
        **turned,
        **common,
    )
    kept = {}
    create, step_10 = model._create_rays, model._cir_gen._step_10
    model._create_rays = lambda b: kept.setdefault("rays", create(b))
    model._cir_gen._step_10 = lambda shape: kept.setdefault("phases", step_10(shape))
    grid = torch.tensor([FIRST_SUBCARRIER], dtype=torch.float64) if frequencies is None else frequencies
    with torch.no_grad():
        h = channel.cir_to_ofdm_channel(grid, *model(batch, 1, 15.36e6))
    return h[:, 0, :, 0, :, 0].permute(0, 3, 1, 2), _rays(model, kept["rays"], kept["phases"])


def _rays(model, drawn, phases: Tensor) -> sf.CDLRays:
    """Sionna's [B,1,1,C,20] as ours, the specular path last."""
    batch = drawn.aoa.shape[0]
    k = model._k_factor if model._has_los else torch.zeros((), dtype=torch.float64)
    fields = [
        (drawn.powers[:, 0, 0] / 20 / (1 + k)).sqrt().repeat_interleave(20, 1),
        drawn.delays[:, 0, 0].repeat_interleave(20, 1),
        *(t[:, 0, 0].flatten(1) for t in (phases[..., 0], drawn.aod, drawn.zod, drawn.aoa, drawn.zoa)),
    ]
    if model._has_los:
        last = ((k / (1 + k)).sqrt(), 0.0, 0.0, model._los_aod, model._los_zod, model._los_aoa, model._los_zoa)
        fields = [
            torch.cat([t, torch.as_tensor(v, dtype=t.dtype).expand(batch, 1)], 1)
            for t, v in zip(fields, last, strict=True)
        ]
    return sf.CDLRays(*fields)
