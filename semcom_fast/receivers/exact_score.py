"""The channel's likelihood score with the exact covariance of what its own uncertainty adds to the residual."""

import torch
from torch import Tensor


def exact_channel_score(score: Tensor, x: Tensor, var_h: Tensor, noise_var: Tensor) -> Tensor:
    r"""Score of H where Y_k - sum_u H0_k X_k has rows of covariance s I + X_k^H V X_k instead of a multiple of I.

    Definition: with the users' codewords stacked, X_k [M,T], M = U Nt, and V = diag of the users' posterior channel
    variances, :math:`R (s I + X^H V X)^{-1} X^H = R X^H (s I + V X X^H)^{-1}`: one M x M solve per block.

    Args:
        score: R X^H [B,U,K,Nr,Nt], unscaled. x: [B,U,K,Nt,T]. var_h: [B,U], v per entry of H.
        noise_var: s [B], everything else in the residual.

    Returns:
        [B,U,K,Nr,Nt]; zero noise and variance give non-finite values, as a division would.

    Source: the exact covariance behind (42) of "Blind MIMO Semantic Communication via Parallel Variational Diffusion".
    """
    b, u, k, nr, nt = score.shape
    stacked = x.transpose(1, 2).reshape(b, k, u * nt, x.shape[-1])
    gram = stacked @ stacked.mH
    spread = var_h.repeat_interleave(nt, 1)[:, None, :, None]
    eye = torch.eye(u * nt, dtype=gram.dtype, device=gram.device)
    system = noise_var[:, None, None, None] * eye + spread * gram
    wide = score.permute(0, 2, 3, 1, 4).reshape(b, k, nr, u * nt)
    solved = torch.linalg.solve_ex(system, wide, left=False).result  # no check: it would stop a GPU
    return solved.reshape(b, k, nr, u, nt).permute(0, 3, 1, 2, 4)
