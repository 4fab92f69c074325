"""What is sent in the comparison with the oracle: known Gaussian codewords, groups of digits, photographs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...data import load_digits
from ...errors import require_extra
from ...ops import power_normalise
from ..evaluation import fingerprint
from .codec import RandomLinearEncoder
from .evaluate_photos import load_networks
from .experiment import Link
from .marginal_bound import marginal_bound
from .mixture import GaussianMixturePrior
from .networks import load_photo_codec
from .photo_codec import PhotoCodec
from .photo_images import as_source, grey_crops, photo_source

Encoder = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class KnownSource:
    """An encoder that gives known codewords whatever its source, and a source that is not looked for."""

    encoder: Encoder
    denoiser: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def known_source(x: Tensor) -> KnownSource:
    """The receiver knows the codewords x [B,U,K,Nt,T] and estimates the channel alone; several samples repeat them."""

    def no_source(d: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(d), d.new_zeros(d.shape[:2])

    return KnownSource(lambda d: x.repeat(len(d) // len(x), 1, 1, 1, 1), no_source)


@dataclass(frozen=True)
class BlindSource:
    """Sources d [N,U,...], their encoder and prior; `exact` is the encoder in float64, for the bounds.

    precisions: by name of the bound, item -> one precision [n,n] per user. mark: by which the priors are recognised.
    """

    d: Tensor
    encoder: Encoder
    denoiser: Any
    exact: Encoder
    precisions: dict[str, Callable[[int], list[Tensor]]] = field(repr=False)
    mark: str

    def bounds(self, h: Tensor, noise_var: float) -> dict[str, Tensor]:
        """Channel NMSE [n] of every bound for the first n items with channels h [n,U,K,Nr,Nt]: mean over users."""
        found: dict[str, list[Tensor]] = {name: [] for name in self.precisions}
        for item, channel in enumerate(h.to(torch.complex128)[: len(self.d)]):
            d = self.d[item].double()
            for name, precision in self.precisions.items():
                found[name].append(marginal_bound(self.exact, channel, d, noise_var, precision(item))[0].mean())
        return {name: torch.stack(values) for name, values in found.items()}


class GroupEncoder:
    """A random linear code of `group` digits a user together: d [B,U,group,64] -> x [B,U,K,Nt,T], see RandomLinearEncoder.

    More digits a codeword make the code tighter, up to and past what the channel's unknown streams leave room for.
    """

    def __init__(self, link: Link, group: int, dtype: torch.dtype = torch.complex64) -> None:
        code = RandomLinearEncoder(link.blocks, link.nt, link.slots, users=link.users, dim=64 * group, dtype=dtype)
        self.shape, self.matrix = code.shape, code.matrix

    def __call__(self, d: Tensor) -> Tensor:
        z = (d.flatten(2).transpose(0, 1) @ self.matrix).transpose(0, 1)  # one product a user for the whole batch
        return power_normalise(torch.view_as_complex(z.unflatten(-1, (*self.shape, 2))))[0]


def mixture_precisions(prior: GaussianMixturePrior) -> tuple[Tensor, Tensor]:
    """Inverse covariances of the whole mixture [n,n] and of its components [k,n,n]."""
    weights = prior.log_weights.exp()
    mean = weights @ prior.means
    spread = torch.einsum("k,kam,km,kbm->ab", weights, prior.vectors, prior.values, prior.vectors)
    away = prior.means - mean
    whole = torch.linalg.inv(spread + torch.einsum("k,ka,kb->ab", weights, away, away))
    return whole, prior.vectors / prior.values.unsqueeze(1) @ prior.vectors.mT


def mixture_labels(prior: GaussianMixturePrior, d: Tensor) -> Tensor:
    """The likeliest component of every noiseless d [...,n]."""
    centred = torch.einsum("...kn,knm->...km", d.double().unsqueeze(-2) - prior.means, prior.vectors)
    far = (centred.square() / prior.values + prior.values.log()).sum(-1)
    return (prior.log_weights - 0.5 * far).argmax(-1)


def _digits(link: Link, group: int, count: int) -> BlindSource:
    digits = load_digits()
    prior = GaussianMixturePrior.fit(digits.train)
    index = torch.arange(count * link.users * group) % len(digits.test)
    d = digits.test[index].reshape(count, link.users, group, 64)

    def denoiser(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = prior(x, sigma)
        return mean, var.mean(-1)

    whole, parts = mixture_precisions(prior)

    def labelled(item: int) -> list[Tensor]:
        return [torch.block_diag(*parts[of_user]) for of_user in mixture_labels(prior, d[item])]

    precisions = {"bound": lambda _: [torch.block_diag(*[whole] * group)] * link.users, "label_bound": labelled}
    mark = f"scikit-learn {require_extra('sklearn', 'demo').__version__}"
    exact = GroupEncoder(link, group, torch.complex128)
    return BlindSource(d, GroupEncoder(link, group), denoiser, exact, precisions, mark)


def _photos(link: Link, count: int) -> BlindSource:
    networks = load_networks()
    layout = (link.blocks, link.nt, link.slots)
    codec = load_photo_codec(symbols=link.blocks * link.nt * link.slots, layout=layout, users=link.users)
    exact = PhotoCodec(codec.config, link.users).double().requires_grad_(False).eval()
    exact.load_state_dict(codec.state_dict())
    crops = grey_crops(photo_source(), "test", count * link.users).images
    d = as_source(crops).unflatten(0, (count, link.users))
    precisions = {"bound": lambda _: [networks.prior] * link.users}
    mark = fingerprint(codec) + fingerprint(networks.denoiser)
    return BlindSource(d, codec.encoder, networks.denoiser, exact.encoder, precisions, mark)


def blind_source(name: str, link: Link, group: int, count: int) -> BlindSource:
    """The sources of `count` items over a link, "digits" (`group` of them per user) or "photos"."""
    return _digits(link, group, count) if name == "digits" else _photos(link, count)
