"""Captions as vectors: what the denoiser is told in words.

The caption is sent free of errors. The authors use the pooled vector of CLIP's text tower (768 numbers); the shipped
networks use the hashed bag of words below, which needs no weights. A denoiser works only with the encoder that it was
trained with.
"""

import hashlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ...errors import require_extra

_WORDS = re.compile(r"[^\W_]+")


class TextEncoder(Protocol):
    """Anything that turns captions into vectors.

    Attributes:
        dim: D, the size of a vector.
    """

    dim: int

    def encode(self, captions: Sequence[str]) -> Tensor:
        """float32 [B,D], one row for each of B captions."""


def _rows(captions: Sequence[str]) -> list[str]:
    if isinstance(captions, str):
        raise TypeError("captions must be a list of strings, got one string")
    return list(captions)


class HashedBagOfWords:
    """Each word adds +1 or -1 to one of `dim` places, both picked by its SHA-256; the sum is scaled to unit length.

    The same in every process and on every machine, and without weights. Words are runs of letters and digits, in lower
    case; their order is lost, and words meet in the same place with probability 1/dim. The empty caption is the zero
    vector, which serves as the unconditional one.

    Args:
        dim: size of a vector, at least 1.
    """

    def __init__(self, dim: int = 64) -> None:
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        self.dim = dim

    def encode(self, captions: Sequence[str]) -> Tensor:
        """float32 [B,dim]; rows of unit length, or zero where a caption has no words (or they cancel)."""
        table = torch.zeros(len(_rows(captions)), self.dim)
        for row, caption in zip(table, _rows(captions), strict=True):
            for word in _WORDS.findall(caption.lower()):
                digest = hashlib.sha256(word.encode()).digest()
                row[int.from_bytes(digest[:8], "little") % self.dim] += 1.0 if digest[8] & 1 else -1.0
        length = table.norm(dim=1, keepdim=True)
        return table / torch.where(length > 0, length, 1.0)


class LocalClip:
    """The text tower of a CLIP model that lies on this machine, through `transformers`; nothing is downloaded.

    Vectors are the projected pooled outputs (768 for ViT-L/14, the authors' choice).

    Args:
        path: folder with config, tokenizer and weights as `transformers` saves them.

    Raises:
        FileNotFoundError: there is no such folder.
        MissingExtra: transformers is not installed.
        OSError, ValueError: the folder holds no CLIP text model (transformers' own message).
    """

    def __init__(self, path: Path | str) -> None:
        folder = Path(path)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"no CLIP model in {folder}: give the folder of a model saved by transformers (config.json, tokenizer and "
                "weights), for instance a copy of openai/clip-vit-large-patch14; nothing is downloaded"
            )
        transformers = require_extra("transformers", "text")
        self.tokenizer: Any = transformers.CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)
        self.model: Any = transformers.CLIPTextModelWithProjection.from_pretrained(folder, local_files_only=True).eval()
        self.dim = int(self.model.config.projection_dim)

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> Tensor:
        """float32 [B,dim]; captions longer than the model's 77 tokens are cut."""
        texts = _rows(captions)
        if not texts:
            return torch.zeros(0, self.dim)
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        return self.model(**tokens).text_embeds.float()


class WordLlama:
    """Averaged word vectors of the `wordllama` package, whose weights come inside its wheel (MIT licence, 16 MB).

    Args:
        dim: size of a vector: 64, 128 or 256 (what the wheel holds is 256; fewer are its first ones).

    Raises:
        MissingExtra: wordllama is not installed.
        ValueError: another dim.
    """

    def __init__(self, dim: int = 256) -> None:
        if dim not in (64, 128, 256):
            raise ValueError(f"WordLlama vectors have 64, 128 or 256 numbers, got {dim}")
        self.dim = dim
        self.model: Any = require_extra("wordllama", "text").WordLlama.load(trunc_dim=dim)

    def encode(self, captions: Sequence[str]) -> Tensor:
        """float32 [B,dim] of unit length."""
        texts = _rows(captions)
        if not texts:
            return torch.zeros(0, self.dim)
        table = torch.as_tensor(self.model.embed(texts, norm=True), dtype=torch.float32)
        if table.shape != (len(texts), self.dim) or not math.isfinite(float(table.sum())):
            raise ValueError(f"wordllama returned {tuple(table.shape)} for {len(texts)} captions of {self.dim} numbers")
        return table
