"""Reference twin of :func:`semcom_fast.rzf_matrix`."""

import torch
from torch import Tensor

from .levels import Level
from .rzf_precode import rzf_precode


def rzf_matrix(h: Tensor, alpha: Level, *, on_singular: str = "flag", form: str | None = None) -> tuple[Tensor, Tensor]:
    """V = h^H (h h^H + alpha I)^-1 [...,M,K], the precoder of unit symbols; returns (V, info)."""
    k = h.shape[-2]
    eye = torch.eye(k, dtype=h.dtype, device=h.device).expand(*h.shape[:-2], k, k)
    return rzf_precode(h, eye, alpha, on_singular=on_singular, form=form)
