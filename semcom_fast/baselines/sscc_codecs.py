"""Source codecs of the separate source and channel coding baseline: an image to at most so many bytes, and back."""

import io
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import BackendUnavailable, require_extra


class Codec(Protocol):
    """What the baseline asks of a source codec. `pixels` are uint8 arrays [H,W,3]."""

    name: str
    qualities: Sequence[int]  # from the worst to the best

    def encode(self, pixels: np.ndarray, quality: int) -> bytes: ...

    def decode(self, payload: bytes, size: tuple[int, int]) -> np.ndarray:
        """Pixels [H,W,3] of a payload that may be followed by zero bytes; size = (H,W)."""
        ...


def best_fit(codec: Codec, pixels: np.ndarray, budget: int) -> bytes | None:
    """The payload of the highest quality that takes at most `budget` bytes; None when not even the lowest fits."""
    for quality in reversed(codec.qualities):
        payload = codec.encode(pixels, quality)
        if len(payload) <= budget:
            return payload
    return None


def to_pixels(image: Tensor) -> np.ndarray:
    """An image [3,H,W] on [0,1] as uint8 [H,W,3]."""
    return (image.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def from_pixels(pixels: np.ndarray) -> Tensor:
    """uint8 [H,W,3] as an image [3,H,W] float32 on [0,1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).float() / 255


def _pillow() -> Any:
    return require_extra("PIL.Image", "sionna")


def _file(pixels: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    _pillow().fromarray(pixels).save(buffer, **options)
    return buffer.getvalue()


def _pixels(data: bytes) -> np.ndarray:
    return np.array(_pillow().open(io.BytesIO(data)).convert("RGB"))


class PayloadJpeg:
    """Baseline JPEG without what both ends know: only the quality, one byte, and the entropy-coded data are sent.

    A JPEG file carries about 600 bytes of tables and headers, more than the whole budget of a 32x32 image. They depend
    on the quality and the size alone (standard Huffman tables, 4:2:0), so the receiver rebuilds them.
    """

    name = "jpeg"
    qualities = range(1, 101)
    _END = b"\xff\xd9"

    def __init__(self) -> None:
        self._headers: dict[tuple[int, int, int], bytes] = {}

    def _save(self, pixels: np.ndarray, quality: int) -> bytes:
        return _file(pixels, format="JPEG", quality=quality, subsampling="4:2:0", optimize=False, progressive=False)

    def header(self, size: tuple[int, int], quality: int) -> bytes:
        """Everything before the entropy-coded data."""
        key = (*size, quality)
        if key not in self._headers:
            data = self._save(np.zeros((*size, 3), np.uint8), quality)
            at = 2  # segments follow the start marker: marker, length, content; the last is the start of scan
            while data[at : at + 2] != b"\xff\xda":
                at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
            self._headers[key] = data[: at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")]
        return self._headers[key]

    def encode(self, pixels: np.ndarray, quality: int) -> bytes:
        data = self._save(pixels, quality)
        header = self.header(pixels.shape[:2], quality)
        if not (data.startswith(header) and data.endswith(self._END)):
            raise RuntimeError("this Pillow's JPEG headers depend on the image; the payload form needs fixed ones")
        return bytes([quality]) + data[len(header) : -len(self._END)]

    def decode(self, payload: bytes, size: tuple[int, int]) -> np.ndarray:
        return _pixels(self.header(size, payload[0]) + payload[1:] + self._END)


class WebP:
    """Lossy WebP files as Pillow writes them, headers included."""

    name = "webp"
    qualities = range(0, 101)

    def encode(self, pixels: np.ndarray, quality: int) -> bytes:
        return _file(pixels, format="WEBP", quality=quality, method=6)

    def decode(self, payload: bytes, size: tuple[int, int]) -> np.ndarray:
        length = 8 + int.from_bytes(payload[4:8], "little")  # the file says where it ends
        return _pixels(payload[:length])


class Bpg:
    """BPG files through the external programs bpgenc and bpgdec.

    Raises:
        BackendUnavailable: the programs are not on PATH.
    """

    name = "bpg"
    qualities = range(-51, 1)  # minus bpgenc's quantiser parameter

    def __init__(self) -> None:
        programs = [shutil.which(name) for name in ("bpgenc", "bpgdec")]
        if None in programs:
            raise BackendUnavailable("BPG needs the programs bpgenc and bpgdec on PATH (https://bellard.org/bpg)")
        self._encoder, self._decoder = programs

    def encode(self, pixels: np.ndarray, quality: int) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            image, coded = Path(folder, "image.png"), Path(folder, "image.bpg")
            image.write_bytes(_file(pixels, format="PNG"))
            self._run(self._encoder, "-q", str(-quality), "-o", str(coded), str(image))
            return coded.read_bytes()

    def decode(self, payload: bytes, size: tuple[int, int]) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            coded, image = Path(folder, "image.bpg"), Path(folder, "image.png")
            coded.write_bytes(payload.rstrip(b"\0"))  # the coded picture ends in a stop bit
            self._run(self._decoder, "-o", str(image), str(coded))
            return _pixels(image.read_bytes())

    @staticmethod
    def _run(program: str | None, *arguments: str) -> None:
        done = subprocess.run([str(program), *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr.strip()}")


CODECS: dict[str, type[Any]] = {"jpeg": PayloadJpeg, "webp": WebP, "bpg": Bpg}
