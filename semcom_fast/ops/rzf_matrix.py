"""The RZF precoding matrix itself."""

from typing import TYPE_CHECKING

from torch import Tensor

from ..reference.levels import Level
from . import _regularised
from ._arrays import array_function
from .rzf_precode import finish

if TYPE_CHECKING:
    from jaxtyping import Complex, Int


@array_function
def rzf_matrix(
    h: "Complex[Tensor, '*batch users antennas']",
    alpha: Level,
    *,
    on_singular: str | None = None,
    return_info: bool = False,
    form: str | None = None,
) -> "Tensor | tuple[Tensor, Int[Tensor, '*batch']]":
    r"""The regularised zero-forcing matrix :math:`V = h^H (h h^H + \alpha I)^{-1}`, one column per user.

    :func:`rzf_precode` with unit symbols; `rzf_precode(h, s, alpha)` equals V s without forming V. Columns are not
    normalised.

    Args:
        h: channels [...,K,M], complex64 or complex128.
        alpha, on_singular, return_info, form: as in :func:`rzf_precode`.

    Returns:
        V [...,M,K], and `info` int32 [...] with `return_info`. Differentiable in h and alpha.

    Raises:
        SingularChannelError, ValueError, TypeError: as :func:`rzf_precode`.

    Source: the precoder of equation (3) of "Scenario-Adaptive MU-MIMO OFDM Semantic Communication With Asymmetric
    Neural Network".
    """
    call = _regularised.prepare("rzf_matrix", "h [...,K,M]", h, None, alpha, on_singular, form)
    return finish(call, return_info)
