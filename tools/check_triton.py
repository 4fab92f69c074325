#!/usr/bin/env python
"""Compile every Triton kernel without a GPU and fail on register spills.

Each variant is the one a real launch would compile: the launches of semcom_fast/triton/_variants.py are recorded, not
run, and their arguments give the signature. Prints registers, stack bytes, spill instructions (STL/LDL), shared memory
and the widest global access; --csv writes the table. Exits non-zero when a variant spills or keeps a stack frame.

    python tools/check_triton.py --csv benchmarks/results/triton_sm90.csv
"""

import argparse
import contextlib
import csv
import inspect
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

if os.environ.pop("TRITON_INTERPRET", None):  # both must be settled before triton is imported
    print("check_triton: ignoring TRITON_INTERPRET, the interpreter compiles nothing", file=sys.stderr)
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

try:
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
except ImportError as err:
    sys.exit(f"check_triton: {err}; pip install 'semcom-fast[triton]'")

from semcom_fast.triton import _variants

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
OPTIONS = ("num_warps", "num_stages", "maxnreg")  # of the compiler, among the keywords of a launch
COLUMNS = ["kernel", "dtype", "arch", "warps", "regs", "stack", "spills", "shared", "load", "store", "fp64", "instr"]


FOUND: list = []  # the variants of this run


class Recorder:
    """Stands in for a jitted kernel: keeps what a launch would pass."""

    def __init__(self, fn, log: list) -> None:
        self.fn, self.log = fn, log

    def __getitem__(self, grid):
        return lambda *args, **kwargs: self.log.append((self.fn, args, kwargs))


def record() -> list[tuple[str, str, object, tuple, dict]]:
    """(name, dtype, kernel, arguments, keywords) of every variant."""
    log: list = []
    for module in filter(inspect.ismodule, list(vars(_variants).values())):
        if not module.__name__.startswith(_variants.__package__ + "."):
            continue
        for name in [n for n in vars(module) if n == "kernel" or n.endswith("_kernel")]:
            setattr(module, name, Recorder(getattr(module, name), log))
        module.on = lambda device: contextlib.nullcontext()
    rows = []
    for dtype in (torch.float32, torch.float64):
        for name, launch in _variants.calls(torch.device("cpu"), (dtype,)):
            launch()
            for i, entry in enumerate(log):  # a call of two launches gives two rows
                rows.append((name + f", launch {i + 1}" * (len(log) > 1), str(dtype).removeprefix("torch."), *entry))
            log.clear()
    return rows


def compile_variant(fn, args: tuple, kwargs: dict, arch: int):
    options = {k: kwargs[k] for k in OPTIONS if k in kwargs}
    values = dict(zip(fn.arg_names, args, strict=False)) | {k: v for k, v in kwargs.items() if k not in OPTIONS}
    signature, constants, attributes = {}, {}, {}
    for i, param in enumerate(fn.params):
        value = values[param.name]
        if param.is_constexpr:
            signature[param.name] = "constexpr"
            constants[param.name] = value
        elif isinstance(value, torch.Tensor):
            signature[param.name] = POINTERS[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[param.name] = param.annotation_type or "i32"
    source = ASTSource(fn=fn, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def resources(compiled) -> dict[str, int]:
    """Registers, stack and instruction counts of the machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as f:
        f.write(compiled.asm["cubin"])
        f.flush()

        def dump(flag: str) -> str:
            command = [TOOLS / "cuobjdump", flag, f.name]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        usage = re.search(r"REG:(\d+) STACK:(\d+)", dump("-res-usage"))
        code = dump("-sass")
    assert usage is not None, "cuobjdump printed no resource usage"
    ops = re.findall(r"/\*[0-9a-f]{4}\*/\s+(?:@!?U?P\d+\s+)?([A-Z][\w.]*)", code)
    return {
        "regs": int(usage[1]),
        "stack": int(usage[2]),
        "spills": sum(op.startswith(("STL", "LDL")) for op in ops),
        "shared": compiled.metadata.shared,
        "load": max((_width(op) for op in ops if op.startswith("LDG")), default=0),
        "store": max((_width(op) for op in ops if op.startswith("STG")), default=0),
        "fp64": sum(op.startswith(("DADD", "DMUL", "DFMA", "DSETP", "MUFU.RCP64H", "MUFU.RSQ64H")) for op in ops),
        "instr": sum(op != "NOP" for op in ops),
    }


def compiled_row(task: tuple[int, int, Path | None]) -> dict:
    """Compile one variant for one architecture; its row of the table."""
    variant, arch, folder = task
    name, dtype, fn, args, kwargs = FOUND[variant]
    compiled = compile_variant(fn, args, kwargs, arch)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        stem = re.sub(r"\W+", "_", f"{name}_{dtype}_sm{arch}")
        (folder / f"{stem}.ptx").write_text(compiled.asm["ptx"])
        (folder / f"{stem}.cubin").write_bytes(compiled.asm["cubin"])
    row = {"kernel": name, "dtype": dtype, "arch": f"sm_{arch}", "warps": kwargs["num_warps"]}
    return {**row, **resources(compiled)}


def _width(op: str) -> int:
    bits = re.search(r"\.(\d+)(?:\.|$)", op)
    return int(bits[1]) // 8 if bits and bits[1] in ("64", "128") else 4


def _line(cells: list) -> str:
    widths = [max(7, len(name)) for name in COLUMNS[1:]]
    return f"{cells[0]:<40}" + "".join(f" {cell!s:>{w}}" for cell, w in zip(cells[1:], widths, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, help="write the table to this file")
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90], help="compute capabilities (default: 80 90)")
    parser.add_argument("--only", default="", help="compile only variants whose name contains this text")
    parser.add_argument("--dump", type=Path, help="write the PTX of each variant into this folder")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="compilers at work at once (default: all cores)"
    )
    options = parser.parse_args()
    found = [v for v in record() if options.only in v[0]]
    tasks = [(variant, arch, options.dump) for variant in range(len(found)) for arch in options.arch]
    FOUND[:] = found  # what the forked workers read: kernels do not travel
    rows, bad = [], []
    with multiprocessing.get_context("fork").Pool(options.jobs) as pool:
        for row in pool.imap(compiled_row, tasks):
            rows.append(row)
            if len(rows) == 1:
                print(_line(COLUMNS))
            print(_line([row[c] for c in COLUMNS]), flush=True)
            if row["stack"] or row["spills"]:
                where = f"{row['kernel']} {row['dtype']} {row['arch']}"
                bad.append(f"{where}: stack {row['stack']}, {row['spills']} spill instructions")
    if options.csv:
        with options.csv.open("w", newline="") as f:
            writer = csv.DictWriter(f, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
    print(f"{len(rows)} variants compiled, {len(bad)} with spills or a stack frame")
    for line in bad:
        print("  " + line)
    return 1 if bad or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
