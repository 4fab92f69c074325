"""Compile every CUDA kernel and read registers, stack, spills and shared memory from ptxas. No GPU is needed.

    python tools/check_cuda.py [--quick] [--csv benchmarks/results/ptxas.csv]

Exit status 1: a file does not compile, a kernel uses local memory (a stack frame or spills; no kernel is exempt), or a
small complex64 kernel needs more registers than MOST_REGISTERS. Exit status 0 with a message: there is no nvcc.
"""

import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "csrc" / "cuda"
# As CMakeLists.txt builds them, but one architecture at a time and device code only.
FLAGS = ["-std=c++17", "-O3", "-DNDEBUG", "-lineinfo", "-Xcompiler=-fvisibility=hidden", "-cubin", "-Xptxas", "-v"]

# Kernels of the sizes that matter most, complex64: products of at most 4 rows by 4 streams a thread, and matrices of at
# most 2 or 4 rows factored by a thread (with their double arithmetic for ill-conditioned ones).
MOST_REGISTERS = (
    (re.compile(r"(apply_tiles<float, [124],|adjoint_tiles<float, [124],|score_columns<float, 4, [124],)"), 64),
    (re.compile(r"(precode|equalise)_lanes<float, [12],"), 80),
    (re.compile(r"(precode|equalise)_lanes<float, [34],|vjp_lanes<float,"), 128),
)

Row = dict[str, str | int | float]


def find_nvcc() -> str | None:
    """CUDACXX, then PATH, CUDA_HOME, CUDA_PATH and /usr/local/cuda, like CMakeLists.txt."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    tries = [os.environ.get("CUDACXX"), "nvcc", *(f"{home}/bin/nvcc" for home in homes if home)]
    return next((found for t in tries if t and (found := shutil.which(t))), None)


def short_names(mangled: list[str]) -> dict[str, str]:
    """`_ZN2sf4cuda8run_body...` -> `apply_tiles<float, 4, 2>`; c++filt comes with every g++."""
    if not shutil.which("c++filt"):
        return {name: name for name in mangled}
    out = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True).stdout
    pattern = re.compile(r"run_body<(.*?)\s*>\(")
    plain = [pattern.search(line) for line in out.splitlines()]
    return {m: p[1].replace("sf::cuda::", "") if p else m for m, p in zip(mangled, plain, strict=True)}


def parse_ptxas(text: str) -> dict[str, dict[str, int]]:
    """ptxas -v output -> {mangled entry: registers, stack, spill_stores, spill_loads, shared}."""
    kernels: dict[str, dict[str, int]] = {}
    entry = None
    for line in text.splitlines():
        if m := re.search(r"Compiling entry function '(\S+)'", line):
            entry = kernels.setdefault(m[1], {})
        elif entry is None:
            continue
        elif m := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            entry.update(stack=int(m[1]), spill_stores=int(m[2]), spill_loads=int(m[3]))
        elif m := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            entry.update(registers=int(m[1]), shared=int(shared[1]) if shared else 0)
    return kernels


def compile_one(nvcc: str, source: Path, arch: int, folder: str) -> tuple[list[Row], str]:
    """Rows of one file for one architecture, and nvcc's message if it failed."""
    target = f"{folder}/{source.stem}.{arch}.cubin"
    start = time.perf_counter()
    command = [nvcc, *FLAGS, f"-gencode=arch=compute_{arch},code=sm_{arch}", "-o", target, str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        return [], f"{source.name} sm_{arch}: nvcc failed\n{done.stderr}"
    kernels = parse_ptxas(done.stderr + done.stdout)
    names = short_names(list(kernels))
    fixed: Row = {"file": source.name, "arch": f"sm_{arch}", "file_seconds": round(seconds, 1)}
    return [{**fixed, "kernel": names[m], **numbers} for m, numbers in kernels.items()], ""


def faults(row: Row) -> list[str]:
    """What is wrong with one kernel, in words."""
    name, found = str(row["kernel"]), []
    if row["stack"] or row["spill_stores"] or row["spill_loads"]:
        found.append(f"stack {row['stack']}, spill stores {row['spill_stores']}, loads {row['spill_loads']} bytes")
    for pattern, most in MOST_REGISTERS:
        if pattern.match(name) and int(row["registers"]) > most:
            found.append(f"{row['registers']} registers, more than {most}")
    return [f"{row['file']} {row['arch']} {name}: {what}" for what in found]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="sm_90 only")
    parser.add_argument("--csv", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    nvcc = find_nvcc()
    if nvcc is None:
        print("check_cuda: no nvcc on PATH, in CUDA_HOME, CUDA_PATH or /usr/local/cuda; nothing checked")
        return 0
    jobs = [(source, arch) for source in sorted(SOURCES.glob("*.cu")) for arch in ([90] if args.quick else [80, 90])]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda job: compile_one(nvcc, job[0], job[1], folder), jobs))
    rows = sorted((r for found, _ in results for r in found), key=lambda r: (r["file"], r["arch"], r["kernel"]))
    columns = ["file", "arch", "kernel", "registers", "stack", "spill_stores", "spill_loads", "shared", "file_seconds"]
    for row in rows:
        print(
            "{file:20} {arch} {kernel:32} {registers:>4} registers, stack {stack}, spills {spill_stores}/{spill_loads}"
            ", static shared {shared}".format(**row)
        )
    for source, arch in jobs:
        seconds = {r["file_seconds"] for r in rows if r["file"] == source.name and r["arch"] == f"sm_{arch}"}
        print(f"{source.name} sm_{arch}: {seconds.pop() if seconds else '< 3'} s")
    if args.csv:
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    problems = [message for _, message in results if message] + [fault for row in rows for fault in faults(row)]
    print("\n".join(problems) if problems else f"{len(rows)} kernels: no local memory")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
