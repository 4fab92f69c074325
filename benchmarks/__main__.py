"""Run microbenchmarks and write CSV."""

import argparse
import importlib
from pathlib import Path

import torch

from semcom_fast import _native

from . import timing
from .cases import Row, measure

STEMS = [
    "likelihood_score",
    "pvd_update",
    "blockdiag_apply",
    "blockdiag_adjoint",
    "philox_normal",
    "power_normalise",
    "pvd_calibrate",
    "pvd_channel_step",
    "rzf_precode",
    "rzf_matrix",
    "lmmse_equalise",
    "lmmse_channel",
    "cir_to_ofdm",
    "waterfill_equalise",
    "waterfill_inject",
    "waterfill_step",
    "waterfill_step_authors",
    "pilot_posterior_step",
    "renoise",
    "elbo_reduce",
    "dirichlet_responsibilities",
    "cdl_channels",
]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("stems", nargs="*", default=STEMS, help=f"any of {', '.join(STEMS)}")
    parser.add_argument("--quick", action="store_true", help="smallest sizes, few rounds: under a minute")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--csv", type=Path, help="where to write the rows")
    args = parser.parse_args(argv)
    unknown = [s for s in args.stems if s not in STEMS]
    if unknown:
        parser.error(f"unknown stem {unknown[0]!r}; choose from {', '.join(STEMS)}")
    torch.set_num_threads(args.threads)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    timing.device = args.device
    from .philox_normal import ns_per_normal

    gemm, per_normal = timing.cgemm_rate(), ns_per_normal()
    kernel = "cuda or triton" if args.device == "cuda" else "cpu " + _native.info().get("cpu level running", "none")
    print(
        f"{args.threads} threads, {kernel}; cgemm {gemm * 1e-9:.0f} GFLOP/s, {per_normal:.2f} ns per normal (one thread)"
    )
    columns = {"ours us": 9, "torch us": 10, "ratio": 6, "GB/s": 6, "copy": 5, "cgemm": 5, "floor": 5}
    print(f"{'op':22} {'size':34} {'cache':8} " + " ".join(f"{name:>{width}}" for name, width in columns.items()))
    rows: list[Row] = []
    for stem in args.stems:
        for case in importlib.import_module(f".{stem}", __package__).cases(args.quick):
            for hot in (True, False):
                r = measure(case, hot, kernel, gemm, per_normal, rounds=11 if args.quick else 41)
                rows.append(r)
                print(
                    f"{r.op:22} {r.size:34} {r.cache:8} {r.ours_us:9.1f} {r.best_torch_us:10.1f} {r.ratio:6.1f} "
                    f"{r.gb_per_s:6.1f} {r.copy_share:5.2f} {r.cgemm_share:5.2f} {r.floor_share:5.2f}  "
                    f"{r.best_torch}; {r.target}" + (f"; {r.rival_ratio:.1f}x {r.rival}" if r.rival else ""),
                    flush=True,
                )
    if args.csv:
        timing.write_csv(args.csv, rows)
        print(f"wrote {args.csv}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
