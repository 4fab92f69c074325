"""MKL's compact batched routines, the library's own answer to many small matrices, called by ctypes on torch tensors.

The compact format interleaves as many matrices as a vector register has lanes: float planes [groups, rows, columns,
(re, im), lanes]. `compact` packs its inputs and unpacks its result, which is what a caller with torch tensors pays, piece
by piece so that the packed workspaces (kept between calls) stay in the second-level cache; `compact_packed` works on
inputs that are packed already and leaves the result packed. `batch` is `cblas_?gemm_batch_strided` on the tensors as they
are. MKL runs on torch's own OpenMP threads (its GNU layer), as many as torch uses.

Routines and format: https://www.intel.com/content/www/us/en/docs/onemkl/developer-reference-c/2025-0/blas-and-lapack-compact-routines.html
"""

import ctypes
import ctypes.util
import importlib.metadata
import math
from collections.abc import Callable
from ctypes import c_void_p
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROW, PLAIN, ADJOINT, LOWER, NONUNIT, LEFT, RIGHT = 101, 111, 113, 122, 131, 141, 142  # mkl_types.h
GNU_THREADS = 3  # MKL_THREADING_GNU
LANE_BYTES = {181: 16, 182: 32, 183: 64}  # MKL_COMPACT_SSE, _AVX, _AVX512
PIECE_BYTES = 1 << 21  # packed workspaces of one piece, per thread
MISSING = "mkl is not installed: pip install -c constraints.txt 'semcom-fast[bench]' (x86-64 Linux)"


@cache
def library() -> ctypes.CDLL | None:
    """libmkl_rt of the `mkl` wheel (or one the loader finds), or None."""
    try:
        files = importlib.metadata.files("mkl") or []
        names = [str(f.locate()) for f in files if f.name.startswith("libmkl_rt.so")]
    except importlib.metadata.PackageNotFoundError:
        names = []
    for name in [*names, ctypes.util.find_library("mkl_rt")]:
        try:
            mkl = ctypes.CDLL(name) if name else None
        except OSError:
            continue
        if mkl is not None and hasattr(mkl, "mkl_cgepack_compact"):
            mkl.MKL_Set_Threading_Layer(GNU_THREADS)
            return mkl
    return None


def available() -> bool:
    """Whether the routines can be called here."""
    return library() is not None


def _mkl() -> ctypes.CDLL:
    mkl = library()
    if mkl is None:
        raise ImportError(MISSING)
    mkl.MKL_Set_Num_Threads(torch.get_num_threads())
    return mkl


class _Kind(NamedTuple):
    """Prefix of the routines, real type, and constants 1, 0, -1 as MKL reads them."""

    prefix: str
    real: torch.dtype
    lanes: int
    format: int
    one: Any
    zero: Any
    minus: Any

    def call(self, routine: str, *args) -> None:
        given = [c_void_p(a.data_ptr()) if isinstance(a, Tensor) else a for a in args]
        getattr(library(), f"mkl_{self.prefix}{routine}_compact")(*given)


@cache
def _kind(dtype: torch.dtype) -> _Kind:
    prefix, real, scalar = {
        torch.complex64: ("c", torch.float32, ctypes.c_float),
        torch.complex128: ("z", torch.float64, ctypes.c_double),
    }[dtype]
    layout = _mkl().mkl_get_format_compact()
    numbers = ((scalar * 2)(v, 0) for v in (1, 0, -1))
    return _Kind(prefix, real, LANE_BYTES[layout] // real.itemsize, layout, *numbers)


class Compact(NamedTuple):
    """`number` matrices in compact format, row-major: planes [groups, rows, columns, 2, lanes]."""

    planes: Tensor
    number: int
    kind: _Kind

    @property
    def rows(self) -> int:
        return self.planes.shape[1]

    @property
    def columns(self) -> int:
        return self.planes.shape[2]


def empty(count: int, rows: int, columns: int, dtype: torch.dtype) -> Compact:
    kind = _kind(dtype)
    groups = -(-count // kind.lanes)
    return Compact(torch.zeros(groups, rows, columns, 2, kind.lanes, dtype=kind.real), count, kind)


def _pointers(a: Tensor) -> Tensor:
    """Addresses of the matrices of a contiguous [n,...]."""
    return torch.arange(a.shape[0]) * (a[0].numel() * a.element_size()) + a.data_ptr()


def pack(a: Tensor, out: Compact) -> None:
    """Contiguous [n,rows,columns] into compact format."""
    args = ROW, out.rows, out.columns, _pointers(a), out.columns, out.planes, out.columns
    out.kind.call("gepack", *args, out.kind.format, out.number)


def unpack(a: Compact, out: Tensor) -> None:
    """Back into a contiguous [n,rows,columns]."""
    args = ROW, a.rows, a.columns, _pointers(out), a.columns, a.planes, a.columns
    a.kind.call("geunpack", *args, a.kind.format, a.number)


def _gemm(a: Compact, b: Compact, c: Compact, ta: int = PLAIN, tb: int = PLAIN, alpha=None, beta=None) -> None:
    k, kind = (a.columns if ta == PLAIN else a.rows), a.kind
    alpha, beta = alpha or kind.one, beta or kind.zero
    left, right = (a.planes, a.columns), (b.planes, b.columns)
    shape = c.rows, c.columns, k
    kind.call("gemm", ROW, ta, tb, *shape, alpha, *left, *right, beta, c.planes, c.columns, kind.format, c.number)


def _solve(factor: Compact, b: Compact, side: int, adjoints: tuple[int, ...]) -> None:
    """b := L^-1 b etc. in place, one triangular solve for each entry of `adjoints`."""
    for transpose in adjoints:
        args = b.rows, b.columns, b.kind.one, factor.planes, factor.columns, b.planes, b.columns
        b.kind.call("trsm", ROW, side, LOWER, transpose, NONUNIT, *args, b.kind.format, b.number)


def _cholesky(a: Compact) -> None:
    """Lower factor in place; a failure would show in the check against the reference."""
    info = torch.zeros(a.planes.shape[0] * a.kind.lanes, dtype=torch.int32)
    a.kind.call("potrf", ROW, LOWER, a.rows, a.planes, a.columns, info, a.kind.format, a.number)


class Layout(NamedTuple):
    """An op's operands as contiguous [n,rows,columns], shapes of everything packed, results' names, real constants."""

    operands: dict[str, Tensor]
    shapes: dict[str, tuple[int, int]]
    results: tuple[str, ...]
    constants: dict[str, Tensor]


Space = dict[str, Compact]


class Formulation(NamedTuple):
    """One op: what it needs, the MKL calls on packed matrices, and how its unpacked results become the op's."""

    layout: Callable[..., Layout]
    run: Callable[[Space], None]
    finish: Callable[..., Any]


def _space(layout: Layout, count: int, dtype: torch.dtype, kept: dict[Any, Space]) -> Space:
    """Packed matrices for `count` problems, made once and kept."""
    key = (count, dtype, *layout.shapes.items())
    if key not in kept:
        kept[key] = {name: empty(count, *shape, dtype) for name, shape in layout.shapes.items()}
        for name, value in layout.constants.items():
            kept[key][name].planes[:, :, :, 0] = value.unsqueeze(-1)
    return kept[key]


def compact(op: Formulation) -> Callable:
    """The op on torch tensors: pack, work, unpack, piece by piece."""
    kept: dict[Any, Space] = {}

    def run(*inputs):
        _mkl()
        layout = op.layout(*inputs)
        first = next(iter(layout.operands.values()))
        n, dtype = first.shape[0], first.dtype
        weight = sum(math.prod(shape) for shape in layout.shapes.values()) * dtype.itemsize
        whole = 16 * torch.get_num_threads()  # pieces of full registers for every thread
        piece = max(whole, PIECE_BYTES * torch.get_num_threads() // weight // whole * whole)
        results = [torch.empty(n, *layout.shapes[name], dtype=dtype) for name in layout.results]
        for start in range(0, n, piece):
            space = _space(layout, min(piece, n - start), dtype, kept)
            for name, operand in layout.operands.items():
                pack(operand[start : start + piece], space[name])
            op.run(space)
            for name, result in zip(layout.results, results, strict=True):
                unpack(space[name], result[start : start + piece])
        return op.finish(*inputs, *results)

    return run


class Packed:
    """The op on operands put into compact format before the clock starts (`prepare`); results stay in that format."""

    def __init__(self, op: Formulation) -> None:
        self.op = op
        self.kept: dict[Any, Space] = {}

    def prepare(self, *inputs) -> tuple:
        _mkl()
        layout = self.op.layout(*inputs)
        packed = {}
        for name, operand in layout.operands.items():
            packed[name] = empty(operand.shape[0], *layout.shapes[name], operand.dtype)
            pack(operand, packed[name])
        return layout, packed

    def __call__(self, layout: Layout, packed: Space) -> Space:
        _mkl()
        first = next(iter(layout.operands.values()))
        space = {**_space(layout, first.shape[0], first.dtype, self.kept), **packed}
        self.op.run(space)
        return {name: space[name] for name in layout.results}


def _plain(v: Tensor) -> Tensor:
    return v.resolve_conj().contiguous()


def _stored(v: Tensor) -> tuple[Tensor, bool]:
    """A matrix as it lies in memory, and whether it is read as its adjoint, which MKL does by a flag."""
    if v.is_conj() and v.mH.is_contiguous():
        return v.mH, True
    return _plain(v), False


def _operand(space: Space, name: str) -> tuple[Compact, int]:
    """The packed operand, stored as itself or (with a star) as its adjoint."""
    return (space[name], PLAIN) if name in space else (space[name + "*"], ADJOINT)


def _product(space: Space) -> None:
    (a, ta), (b, tb) = _operand(space, "a"), _operand(space, "b")
    _gemm(a, b, space["c"], ta, tb)


def mimo_matmul() -> Formulation:
    """[...,M,K] @ [...,K,N]; operands may be lazy adjoints."""

    def layout(a: Tensor, b: Tensor) -> Layout:
        operands = {}
        for name, v in (("a", a), ("b", b)):
            stored, adjoint = _stored(v)
            operands[name + "*" * adjoint] = stored.reshape(-1, *stored.shape[-2:])
        shapes = {name: (v.shape[1], v.shape[2]) for name, v in operands.items()}
        return Layout(operands, {**shapes, "c": (a.shape[-2], b.shape[-1])}, ("c",), {})

    return Formulation(layout, _product, lambda a, b, c: c.view(*a.shape[:-1], b.shape[-1]))


def blockdiag_apply() -> Formulation:
    """h [B,1,K,Nr,Nt] and x [B,1,K,Nt,T] of one user."""
    inner = mimo_matmul()
    return Formulation(inner.layout, _product, lambda h, x, c: c.view(h.shape[0], *h.shape[2:4], x.shape[-1]))


def _gram_factor(space: Space, ta: int, tb: int) -> None:
    """g := Cholesky factor of the regularised Gram matrix of h."""
    space["g"].planes.copy_(space["shift"].planes)
    _gemm(space["h"], space["h"], space["g"], ta, tb, beta=space["h"].kind.one)
    _cholesky(space["g"])


def rzf_precode(alpha: float) -> Formulation:
    """Rows throughout: conj(x) = conj(s) (h h^H + alpha I)^-1 h, since no MKL flag conjugates without transposing."""

    def layout(h: Tensor, s: Tensor) -> Layout:
        n, k, m = h.shape
        rows = s.reshape(n, -1, k)
        t = rows.shape[1]
        shapes = {"h": (k, m), "s": (t, k), "b": (t, k), "x": (t, m), "g": (k, k), "shift": (k, k)}
        return Layout(
            {"h": _plain(h), "s": _plain(rows)}, shapes, ("x",), {"shift": alpha * torch.eye(k, dtype=torch.float64)}
        )

    def run(space: Space) -> None:
        _gram_factor(space, PLAIN, ADJOINT)
        b = space["b"]
        b.planes.copy_(space["s"].planes)
        b.planes[:, :, :, 1].neg_()
        _solve(space["g"], b, RIGHT, (ADJOINT, PLAIN))
        _gemm(b, space["h"], space["x"])

    return Formulation(layout, run, lambda h, s, x: x.view(*s.shape[:-1], h.shape[-1]).conj())


def rzf_matrix(alpha: float) -> Formulation:
    """(G^-1 h)^H, left as a lazily conjugated transpose."""

    def layout(h: Tensor) -> Layout:
        _, k, m = h.shape
        shapes = {"h": (k, m), "v": (k, m), "g": (k, k), "shift": (k, k)}
        return Layout({"h": _plain(h)}, shapes, ("v",), {"shift": alpha * torch.eye(k, dtype=torch.float64)})

    def run(space: Space) -> None:
        _gram_factor(space, PLAIN, ADJOINT)
        space["v"].planes.copy_(space["h"].planes)
        _solve(space["g"], space["v"], LEFT, (PLAIN, ADJOINT))

    return Formulation(layout, run, lambda h, v: v.mH)


def lmmse_equalise(noise_var: float) -> Formulation:
    """With L L^H = h^H h + noise_var I: z = L^-H L^-1 h^H y, and diag(G h) = 1 - noise_var |column of L^-1|^2."""

    def layout(y: Tensor, h: Tensor) -> Layout:
        _, nr, nt = h.shape
        eye = torch.eye(nt, dtype=torch.float64)
        shapes = {"h": (nr, nt), "y": (nr, 1), "z": (nt, 1), "d": (nt, 1)}
        shapes |= {name: (nt, nt) for name in ("g", "shift", "w", "unit")}
        return Layout(
            {"h": _plain(h), "y": _plain(y.unsqueeze(-1))}, shapes, ("z", "d"), {"shift": noise_var * eye, "unit": eye}
        )

    def run(space: Space) -> None:
        _gram_factor(space, ADJOINT, PLAIN)
        w, z, d = space["w"], space["z"], space["d"]
        w.planes.copy_(space["unit"].planes)
        _solve(space["g"], w, LEFT, (PLAIN,))
        d.planes[:, :, 0, 0] = 1 - noise_var * w.planes.square().sum((1, 3))
        _gemm(space["h"], space["y"], z, ADJOINT, PLAIN)
        _solve(space["g"], z, LEFT, (PLAIN, ADJOINT))
        z.planes.div_(d.planes[:, :, :, :1])

    def finish(y: Tensor, h: Tensor, z: Tensor, d: Tensor):
        return z.squeeze(-1), 1 / d.squeeze(-1).real - 1

    return Formulation(layout, run, finish)


def batch(a: Tensor, b: Tensor) -> Tensor:
    """cblas_?gemm_batch_strided on the tensors as they are."""
    mkl, kind = _mkl(), _kind(a.dtype)
    m, k, n = *a.shape[-2:], b.shape[-1]
    out = torch.empty(*a.shape[:-1], n, dtype=a.dtype)
    (a, adjoint_a), (b, adjoint_b) = _stored(a), _stored(b)
    left, right, result = ((c_void_p(v.data_ptr()), v.shape[-1], v.shape[-2] * v.shape[-1]) for v in (a, b, out))
    flags = [ADJOINT if adjoint else PLAIN for adjoint in (adjoint_a, adjoint_b)]
    call = getattr(mkl, f"cblas_{kind.prefix}gemm_batch_strided")
    call(ROW, *flags, m, n, k, kind.one, *left, *right, kind.zero, *result, out.shape[:-2].numel())
    return out
