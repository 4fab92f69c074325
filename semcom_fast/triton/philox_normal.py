"""Counter-based normals on the GPU: the Triton kernel of :func:`semcom_fast.philox_normal`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import fits_32_bits, on, seed_arguments, step_argument, tiling, word
from .philox import counter_word, key, normals, tile


@triton.jit(
    do_not_specialize=["seed", "seed_high", "step", "stream", "first_item", "chunks", "rows", "length"],
)
def kernel(
    out,
    seed,
    seed_high,
    step,
    stream,
    first_item,
    chunks,
    rows,
    length,
    scale: tl.float64,
    SEED_TENSOR: tl.constexpr,
    STEP_TENSOR: tl.constexpr,
    QUADS: tl.constexpr,
    ROWS: tl.constexpr,
    VEC: tl.constexpr,
):
    dtype = out.dtype.element_ty
    b, _, quad, offset, mask = tile(chunks, rows, 1, length, QUADS, ROWS, VEC)
    k0, k1 = key(seed, seed_high, SEED_TENSOR)
    item = b.to(tl.uint32) + first_item.to(tl.uint32)
    z = normals(quad, counter_word(step, STEP_TENSOR), item, stream.to(tl.uint32), k0, k1, dtype == tl.float64)
    factor = (scale + tl.zeros((1, 1), tl.float64)).to(dtype)
    tl.store(out + offset, z * factor, mask=mask)


def run(
    items: int,
    reals: int,
    seed: int | Tensor,
    step: int | Tensor = 0,
    stream: int = 0,
    first_item: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cuda",
    scale: float = 1.0,
) -> Tensor:
    """[items, reals] normals times `scale`; real r of row b has the counter (r//4, step, first_item + b, stream).

    dtype float32 or float64. seed and step may be integer tensors with one element on `device`, read by the kernel.
    A complex caller passes twice as many reals and scale = sqrt(1/2), and views the result as complex.
    """
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"philox_normal draws float32 or float64 reals, got {dtype}")
    device = torch.device(device)
    fits_32_bits("the number of reals of one item", reals)
    fits_32_bits("the number of items", items)
    out = torch.empty((items, reals), dtype=dtype, device=device)
    if out.numel() == 0:
        return out
    shape = tiling(reals, 1, "philox_normal", out)
    seed_low, seed_high, seed_tensor = seed_arguments(seed, device)
    step_value, step_tensor = step_argument(step, device)
    with on(device):
        kernel[(-(-items // shape.rows) * shape.chunks,)](
            out, seed_low, seed_high, step_value, word(stream), word(first_item), shape.chunks, items,
            reals // shape.vec, float(scale), SEED_TENSOR=seed_tensor, STEP_TENSOR=step_tensor, QUADS=shape.quads,
            ROWS=shape.rows, VEC=shape.vec, num_warps=shape.warps,
        )  # fmt: skip
    return out
