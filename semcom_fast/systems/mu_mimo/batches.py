"""What a training step and an evaluation are fed with: images, channels and noise levels, drawn from one seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...data import ImpulseResponses, load_channels, subcarrier_frequencies, tapped_channels
from ...data.images import ImageSet
from ...links import noise_var_from_snr_db

SCENARIOS = ("umi", "uma", "rma")
SPACING_HZ = 15e3
UNLABELLED = -100  # what cross_entropy ignores
DIGIT_SHARE = 0.125  # of the images of a step, when photos have no labels of their own


class Batch(NamedTuple):
    """One step's input: B grids of K users."""

    images: Tensor  # [B,K,3,32,32] on [0,1]
    labels: Tensor  # [B,K]
    h: Tensor  # [B,Nf,1,K,M]
    noise_var: Tensor  # [B]
    seed: int  # of the noise


@dataclass
class ChannelSource:
    """Channels drawn at random from stored sets, one scenario per batch; without any set, the built-in generator."""

    sets: Sequence[ImpulseResponses]
    subcarriers: int

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        """Frequency responses [B,Nf,1,K,M] of `batch` topologies."""
        frequencies = subcarrier_frequencies(self.subcarriers, SPACING_HZ)
        chosen = int(torch.randint(max(len(self.sets), 1), (1,), generator=generator))
        if not self.sets:
            seed = int(torch.randint(2**62, (1,), generator=generator))
            return tapped_channels(batch, seed=seed).to_ofdm(frequencies)
        source = self.sets[chosen]
        return source[torch.randint(len(source), (batch,), generator=generator)].to_ofdm(frequencies)


def channel_source(scenario: str, subcarriers: int, split: str = "train") -> ChannelSource:
    """Stored channels of one scenario, or of all ("all"); "tapped" needs no stored set."""
    if scenario == "tapped":
        return ChannelSource((), subcarriers)
    if scenario not in (*SCENARIOS, "all"):
        raise ValueError(f"unknown scenario {scenario!r}: choose one of {', '.join(SCENARIOS)}, all, tapped")
    names = SCENARIOS if scenario == "all" else (scenario,)
    return ChannelSource([load_channels(name, split) for name in names], subcarriers)


def _chosen(source: ImageSet, index: Tensor) -> tuple[Tensor, Tensor]:
    """Images and labels at `index`."""
    labels = torch.full_like(index, UNLABELLED) if source.labels is None else source.labels[index]
    return source.images[index], labels


@dataclass
class BatchSource:
    """Training batches; a step's draw depends on (seed, step) alone, so every variant meets the same data.

    Attributes:
        main: the images of most draws; those without a label are flipped left to right at random.
        digits: labelled images that take DIGIT_SHARE of the draws, or None.
        channels: where h comes from.
        snr_db: each grid's SNR is uniform between these.
    """

    main: ImageSet
    digits: ImageSet | None
    channels: ChannelSource
    snr_db: tuple[float, float] = (-7.0, 7.0)
    users: int = 4

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        count = batch * self.users
        index = torch.randint(len(self.main.images), (count,), generator=generator)
        images, labels = _chosen(self.main, index)
        flip = (torch.rand(count, generator=generator) < 0.5) & (labels == UNLABELLED)
        images = torch.where(flip[:, None, None, None], images.flip(-1), images)
        if self.digits is not None:
            index = torch.randint(len(self.digits.images), (count,), generator=generator)
            digit = torch.rand(count, generator=generator) < DIGIT_SHARE
            extra_images, extra_labels = _chosen(self.digits, index)
            images = torch.where(digit[:, None, None, None], extra_images, images)
            labels = torch.where(digit, extra_labels, labels)
        low, high = self.snr_db
        snr = low + (high - low) * torch.rand(batch, generator=generator)
        seed = int(torch.randint(2**62, (1,), generator=generator))
        return Batch(
            (images.float() / 255).unflatten(0, (batch, self.users)),
            labels.unflatten(0, (batch, self.users)),
            self.channels.draw(batch, generator),
            noise_var_from_snr_db(snr, "mu_mimo"),
            seed,
        )
