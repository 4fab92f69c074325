"""`semcom-fast run pvd --preset`: a setting of the paper's tables, its figures printed."""

import math
from argparse import ArgumentParser, Namespace

import torch
from torch import Tensor

from ...links import to_db
from ...receivers.pvd_batches import part_size
from ..evaluation import where
from .paper_nets import RANDOM, SIZES
from .paper_timing import StepTiming, peak_memory, time_steps
from .presets import (
    CROPS,
    ORIENTATIONS,
    PRESETS,
    STEPS,
    PresetOutcome,
    PresetSettings,
    Transmission,
    prepare,
    receive,
    success_level,
)

RANDOM_REMARK = (
    "RANDOM WEIGHTS: for timing only. What such networks recover means nothing, so no NMSE or PSNR is printed."
)


def add_arguments(parser: ArgumentParser) -> None:
    """Options of `--preset`; those it shares with other runs are added by them."""
    only = parser.add_argument_group("settings of the paper's tables (--snr, --crops, --photos, --starts apply)")
    only.add_argument("--preset", metavar="|".join(PRESETS), help="antennas, T and SNR; K from the codec's symbols")
    only.add_argument(
        "--nets", metavar="DIR|random",
        help="full-size networks: a folder with encoder, denoiser (and decoder) as .safetensors or .pth, with settings "
        "in .json beside them; or random weights, for timing only (default: the small networks shipped)",
    )  # fmt: skip
    only.add_argument("--size", choices=sorted(SIZES), default="full", help="of random networks (default: %(default)s)")
    only.add_argument(
        "--steps", type=int, default=STEPS, help="inner steps timed with random networks (default: %(default)s)"
    )
    only.add_argument(
        "--orientation", choices=sorted(ORIENTATIONS), default="random",
        help="of the arrays of CDL channels: yaws drawn anew, or always the tables' (default: %(default)s)",
    )  # fmt: skip
    only.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    only.add_argument("--limit", type=int, metavar="N", help="most starts at once (default: what memory holds)")
    only.add_argument(
        "--memory", type=float, metavar="GB", help="that a batch may take (default: half of what is free)"
    )


def execute(args: Namespace) -> None:
    """Run a preset and print it."""
    if args.snr and len(args.snr) != 1:
        raise ValueError(f"--snr takes one value with --preset, got {len(args.snr)}")
    run_preset(
        PresetSettings(
            preset=args.preset,
            snr_db=args.snr[0] if args.snr else None,
            crops=CROPS if args.crops is None else args.crops,
            starts=args.starts,
            encoder=args.encoder,
            photos=args.photos,
            weights=args.weights,
            nets=args.nets,
            size=args.size,
            steps=args.steps,
            limit=args.limit,
            memory=args.memory,
            orientation=args.orientation,
            seed=args.seed,
            device=args.device,
            progress=not args.quiet,
        )
    )


def _line(name: str, text: str) -> None:
    print(f"{name:20} {text}")


def _db(ratios: Tensor) -> str:
    return f"{float(to_db(ratios.double().mean())):.2f} dB"


def _head(s: PresetSettings, sent: Transmission) -> None:
    link, n = sent.link, math.prod(sent.d.shape[2:])
    m = link.blocks * link.nt * link.slots
    paper = f"the paper's {4608 / (3 * 256**2):.4f}, K = {4608 // (link.nt * link.slots)}"
    snr = "" if s.snr_db is None else f", SNR set to {s.snr_db:g} dB"
    _line("preset", f"{s.preset}: {s.link.what}{snr}")
    _line(
        "codeword", f"m = {m} symbols, K = {link.blocks} blocks; n = {n} values; CBR {link.cbr(source=n):.4f} ({paper})"
    )
    _line("channel prior", sent.prior)
    for note in sent.notes:
        name, _, text = note.partition(": ")
        _line(name, text)


def _foot(device: torch.device) -> None:
    of = "allocated on the GPU" if device.type == "cuda" else "of the whole process"
    _line("peak memory", f"{peak_memory(device) / 2**20:.0f} MiB {of}")
    for name, text in where().items():
        _line(name, text)


def _figures(s: PresetSettings, sent: Transmission, out: PresetOutcome) -> None:
    best = out.oracle if out.oracle_prior is None else out.oracle_prior
    level = success_level(best)
    good = out.nmse < level
    config, count = sent.receiver.config, len(out.nmse)
    _line("NMSE", f"{_db(out.nmse)} over all {count} transmissions, median {float(to_db(out.nmse.median())):.2f} dB")
    _line("NMSE of successes", f"{_db(out.nmse[good])}" if bool(good.any()) else "none")
    _line("oracle LMMSE", f"{_db(out.oracle)} (codeword known, Rayleigh prior)")
    if out.oracle_prior is not None:
        _line("oracle LMMSE", f"{_db(out.oracle_prior)} (codeword known, the receiver's prior)")
    if bool(good.any()):
        gap = float(to_db(out.nmse[good].double().mean()) - to_db(best[good].double().mean()))
        _line("gap to the oracle", f"{gap:.2f} dB, successes, same transmissions")
    _line("success", f"{int(good.sum())} of {count} (NMSE below {float(to_db(level)):.1f} dB), {s.starts} start(s)")
    if out.diverged:
        _line("diverged", f"{out.diverged} of {count}: counted as NMSE 0 dB and mid-grey")
    sources = len(out.psnr_db)
    _line("PSNR", f"{float(out.psnr_db.mean()):.2f} dB, mean of {sources} crops")
    _line("SSIM", f"{float(out.ssim.mean()):.4f}")
    if out.psnr_decoder_db is not None:
        _line("PSNR of the decoder", f"{float(out.psnr_decoder_db.mean()):.2f} dB (DJSCC, channel known)")
    _line("seconds per image", f"{out.seconds / sources:.3f} ({out.seconds / count:.3f} per transmission)")
    steps = config.J * config.Jin * out.parts
    _line("seconds per step", f"{out.seconds / steps:.5f} ({out.parts} part(s) of up to {-(-count * s.starts // out.parts)} "
          "starts)")  # fmt: skip


def _timing(s: PresetSettings, sent: Transmission) -> StepTiming:
    size = part_size(sent.receiver, sent.y, sent.noise_var, len(sent.y), s.bytes)
    size = min(size, s.limit or size)
    if sent.y.is_cuda:
        torch.cuda.reset_peak_memory_stats(sent.y.device)
    found = time_steps(sent.receiver, sent.encoder, sent.denoiser, sent.y[:size], sent.noise_var, s.steps)
    config, users = sent.receiver.config, sent.link.users
    iterations = config.J * config.Jin
    _line(
        "seconds per step", f"{found.step:.5f} of {found.batch} transmission(s) at once, median of {found.steps} timed"
    )
    _line("seconds per image", f"{found.run_seconds(iterations) / users:.2f}, extrapolated to {iterations} inner steps")
    _line("network share", f"{100 * found.network_share:.1f} % of a step ({found.network:.5f} s)")
    return found


def run_preset(settings: PresetSettings) -> PresetOutcome | StepTiming:
    """Run a preset and print its figures; with random networks only time and memory."""
    if settings.nets == RANDOM:
        print(RANDOM_REMARK)
    sent = prepare(settings)
    _head(settings, sent)
    if settings.nets == RANDOM:
        found: PresetOutcome | StepTiming = _timing(settings, sent)
    else:
        found = receive(settings, sent)
        _figures(settings, sent, found)
    _foot(sent.y.device)
    return found
