"""A multi-user MIMO OFDM downlink in Sionna, run as it is and with semcom_fast's functions swapped in by one line.

    python examples/sionna_link.py [--batch 64] [--batches 4] [--ebno 4]

Four single-antenna users of an urban micro cell, 64 subcarriers, LDPC-coded 4QAM, regularised zero-forcing, least-squares
channel estimates, LMMSE equalisation. Prints the largest difference between the two runs' results and both times: of the
whole simulation, of the three blocks that call swapped functions, and of the LDPC decoder, which is untouched.
"""

import argparse
import time

import numpy as np
import torch
from sionna.phy import config
from sionna.phy.channel import ApplyOFDMChannel, GenerateOFDMChannel, gen_single_sector_topology
from sionna.phy.channel.tr38901 import PanelArray, UMi
from sionna.phy.fec.ldpc import LDPC5GDecoder, LDPC5GEncoder
from sionna.phy.mapping import BinarySource, Demapper, Mapper
from sionna.phy.mimo import StreamManagement
from sionna.phy.ofdm import LMMSEEqualizer, LSChannelEstimator, ResourceGrid, ResourceGridMapper, RZFPrecoder
from sionna.phy.utils import ebnodb2no

import semcom_fast.integrations.sionna as fast

CARRIER, SPACING, SUBCARRIERS, USERS = 2.6e9, 15e3, 64, 4
BITS_PER_SYMBOL, RATE = 2, 0.5


class Link:
    """The simulation; nothing in it knows of semcom_fast."""

    def __init__(self) -> None:
        panel = {"num_rows_per_panel": 1, "carrier_frequency": CARRIER}
        base_station = PanelArray(
            num_cols_per_panel=2, polarization="dual", polarization_type="cross", antenna_pattern="38.901", **panel
        )
        user = PanelArray(
            num_cols_per_panel=1, polarization="single", polarization_type="V", antenna_pattern="omni", **panel
        )
        self.model = UMi(
            carrier_frequency=CARRIER,
            o2i_model="low",
            ut_array=user,
            bs_array=base_station,
            direction="downlink",
            enable_pathloss=False,
            enable_shadow_fading=False,
        )
        self.grid = ResourceGrid(
            num_ofdm_symbols=14,
            fft_size=SUBCARRIERS,
            subcarrier_spacing=SPACING,
            num_tx=1,
            num_streams_per_tx=USERS,
            cyclic_prefix_length=20,
            pilot_pattern="kronecker",
            pilot_ofdm_symbol_indices=[2, 11],
        )
        streams = StreamManagement(np.ones([USERS, 1]), USERS)
        n = int(self.grid.num_data_symbols * BITS_PER_SYMBOL)
        self.source = BinarySource()
        self.encoder = LDPC5GEncoder(int(n * RATE), n)
        self.mapper = Mapper("qam", BITS_PER_SYMBOL)
        self.rg_mapper = ResourceGridMapper(self.grid)
        self.precoder = RZFPrecoder(self.grid, streams, return_effective_channel=False)
        self.channel = ApplyOFDMChannel()
        self.estimator = LSChannelEstimator(self.grid, interpolation_type="lin")
        self.equalizer = LMMSEEqualizer(self.grid, streams)
        self.demapper = Demapper("app", "qam", BITS_PER_SYMBOL)
        self.decoder = LDPC5GDecoder(self.encoder)
        self.frequency_response = GenerateOFDMChannel(self.model, self.grid, normalize_channel=True)

    @torch.no_grad()
    def run(self, batch: int, ebno_db: float) -> dict[str, torch.Tensor]:
        """One batch of slots, with everything random drawn from Sionna's generators."""
        no = ebnodb2no(ebno_db, BITS_PER_SYMBOL, RATE, self.grid)
        self.model.reset_topology()
        self.model.set_topology(*gen_single_sector_topology(batch, USERS, "umi"))
        h = self.frequency_response(batch)
        bits = self.source([batch, 1, USERS, self.encoder.k])
        x = self.precoder(self.rg_mapper(self.mapper(self.encoder(bits))), h, no)
        y = self.channel(x, h, no)
        h_hat, error_variance = self.estimator(y, no)
        symbols, no_eff = self.equalizer(y, h_hat, error_variance, no)
        decoded = self.decoder(self.demapper(symbols, no_eff))
        errors = (decoded != bits).float()
        return {"h": h, "x": x, "symbols": symbols, "no_eff": no_eff, "bit errors": errors}


class Stopwatch:
    """Seconds spent in some of a link's blocks."""

    def __init__(self, link: Link) -> None:
        self.seconds: dict[str, float] = {}
        for name in ("frequency_response", "precoder", "equalizer", "decoder"):
            setattr(link, name, self._timed(name, getattr(link, name)))

    def _timed(self, name, block):
        def run(*args):
            start = time.perf_counter()
            result = block(*args)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            return result

        return run


def run_all(link: Link, watch: Stopwatch, args: argparse.Namespace) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Seconds, and results of all batches together, from the same seed every time."""
    config.seed = 1
    watch.seconds = {}
    start = time.perf_counter()
    results = [link.run(args.batch, args.ebno) for _ in range(args.batches)]
    watch.seconds["whole simulation"] = time.perf_counter() - start
    return watch.seconds, {name: torch.cat([batch[name] for batch in results]) for name in results[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64, help="slots at once")
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--ebno", type=float, default=4.0, help="dB")
    args = parser.parse_args()
    config.seed = 1  # the pilots, too, are drawn at random
    link = Link()
    watch = Stopwatch(link)
    link.run(args.batch, args.ebno)  # warm up

    seconds, results = run_all(link, watch, args)
    with fast.patch():  # the one line
        fast_seconds, fast_results = run_all(link, watch, args)

    for name, theirs in results.items():
        largest = float((theirs - fast_results[name]).abs().max())
        print(f"{name:<11} largest difference {largest:.2e}, largest value {float(theirs.abs().max()):.2e}")
    print(f"bit error rate {results['bit errors'].mean():.4f} and {fast_results['bit errors'].mean():.4f}")
    print(f"seconds for {args.batches} x {args.batch} slots at {args.ebno} dB, Sionna's functions -> semcom_fast's")
    for name, before in seconds.items():
        print(f"  {name:<19}{before:7.2f} -> {fast_seconds[name]:.2f}")


if __name__ == "__main__":
    main()
