"""The table of launch choices, its lookup, and the sweep that writes it, with a timer that says what it is told."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from sf_testing import same_bits

ROOT = Path(__file__).resolve().parents[2]
CPU, SM90 = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def tuned():
    from semcom_fast.triton import _tuned

    yield _tuned
    _tuned.reload()


@pytest.fixture
def tune(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.tune")


def _table(**choices):
    return json.dumps({"format": 1, "architectures": {"sm_90": {"status": "swept", "choices": choices}}})


def test_the_committed_table(tuned):
    """An architecture without a sweep has no choices and says so; one with a sweep names the file that shows it."""
    tuned.parse(tuned.PATH.read_text())
    for arch, entry in json.loads(tuned.PATH.read_text())["architectures"].items():
        if entry["status"] == "swept":
            assert (ROOT / entry["sweep"]).exists() and entry["device"] and entry["driver"], arch
        else:
            assert entry == {"status": "not swept", "choices": {}}, arch


def test_choices_of_an_architecture(tuned, monkeypatch, tmp_path):
    """Stored for one op, size class and dtype of one architecture; the default of every other launch stands."""
    path = tmp_path / "table.json"
    path.write_text(_table(**{"pvd_update 512 float32": {"block": 64, "num_warps": 2, "num_stages": None}}))
    monkeypatch.setattr(tuned, "architecture", lambda device: "sm_90" if device.type == "cuda" else None)
    monkeypatch.setenv("SEMCOM_FAST_TUNED", str(path))
    tuned.reload()
    default, stored = tuned.Choice(128, 4), tuned.Choice(64, 2)
    assert tuned.choose("pvd_update", 512, torch.float32, SM90, default) == stored
    own = ("pvd_update", 512, torch.float32, SM90)
    for i, other in enumerate(("renoise", 256, torch.float64, CPU)):
        assert tuned.choose(*own[:i], other, *own[i + 1 :], default) is default
    monkeypatch.setenv("SEMCOM_FAST_TUNED", "off")
    tuned.reload()
    assert tuned.choose("pvd_update", 512, torch.float32, SM90, default) is default
    assert stored.options() == {"num_warps": 2} and tuned.Choice(0, 4, 1).options() == {"num_warps": 4, "num_stages": 1}


@pytest.mark.parametrize(
    "choice", [{"block": 100, "num_warps": 4}, {"block": 64, "num_warps": 3}, {"block": 64, "num_warps": 64},
               {"block": -2, "num_warps": 4}, {"block": 64, "num_warps": 4, "num_stages": 0}], ids=str
)  # fmt: skip
def test_entries_that_mean_nothing(tuned, choice):
    with pytest.raises(ValueError, match=r"here: sm_90, 'a 1 float32': .* is no launch choice"):
        tuned.parse(_table(**{"a 1 float32": choice}), "here")
    with pytest.raises(ValueError, match="not a table of launch choices"):
        tuned.parse('{"format": 2}')


@pytest.mark.parametrize("reals", [10, 64, 260])
def test_the_batch_takes_no_part(tuned, reals, device):
    """A launch of any batch asks for the same choice, and every choice gives the same bits."""
    from semcom_fast.triton import philox_normal, renoise

    def asked(items):
        h = torch.ones(items, 1, reals // 2, dtype=torch.complex64, device=device)
        steps, bar = torch.tensor([3], device=device), torch.tensor([0.5], dtype=torch.float64, device=device)
        with tuned.watching() as found:
            philox_normal.run(items, reals, 5, device=device)
            renoise.run(h, steps, bar, 5)
        return found

    few, many = asked(1), asked(3)
    assert set(few) == {"philox_normal", "renoise"} and few == many
    want = philox_normal.run(2, reals, 5, device=device)
    for choice in (tuned.Choice(64, 1), tuned.Choice(512, 8)):
        with tuned.forced("philox_normal", choice):
            same_bits(philox_normal.run(2, reals, 5, device=device), want, str(choice))


def test_sums_move_within_their_bound(tuned, device):
    from semcom_fast.triton import power_normalise

    z = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0)).to(device)
    want = power_normalise.run(z, 1.0)[0]
    for choice in (tuned.Choice(128, 1), tuned.Choice(512, 4)):
        with tuned.forced("power_normalise", choice):
            got = power_normalise.run(z, 1.0)[0]
        assert float((got - want).abs().max()) <= 4 * 2.0**-24 * float(want.abs().max())


# ---- the sweep ----
def _kernel(tune, tuned, growth=0.0):
    """A stand-in whose result moves by 1e-6 at 256 quads and which cannot be launched with 16 warps."""

    def make(length, items, dtype, device):
        def launch():
            choice = tuned.choose("fake", length, dtype, device, tuned.Choice(128, 4))
            if choice.num_warps == 8:
                raise RuntimeError("out of resources")
            return torch.ones(4) * (1 + 1e-6 * (choice.block == 256))

        return launch

    kernels = importlib.import_module("benchmarks.tune_kernels")
    return kernels.Kernel("fake", "fake", make, (64,), 1, growth=growth)


class Clock:
    """Seconds by name for each call in turn, with a scatter of one per cent."""

    def __init__(self, *calls):
        self.calls, self.asked = list(calls), []

    def __call__(self, sides):
        now = self.calls.pop(0)
        self.asked.append(list(sides))
        return [
            [{n: now.get(n, 1.0) * (1 + 0.005 * ((r + len(n)) % 3)) for n in sides} for r in range(9)] for _ in range(2)
        ]


FAST = "(64, 2, None)"


@pytest.mark.parametrize(
    "calls, winner",
    [
        ([{FAST: 0.8}, {FAST: 0.8}], (64, 2, None)),  # faster twice
        ([{FAST: 0.8}, {FAST: 1.0}], (128, 4, None)),  # by chance, the first time
        ([{FAST: 0.98}], (128, 4, None)),  # too little
        ([{FAST: 0.8, "default again": 0.75}], (128, 4, None)),  # no more than the default beside itself
        ([{}], (128, 4, None)),
    ],
)
def test_a_choice_must_win_beyond_its_band_twice(tune, tuned, calls, winner):
    clock = Clock(*calls)
    swept = tune.sweep(_kernel(tune, tuned), 64, torch.float32, CPU, True, clock)
    assert tuple(swept.winner) == winner and tuple(swept.default) == (128, 4, None) and swept.size == 64
    assert not clock.calls and (len(calls) < 2 or clock.asked[1] == ["default", "default again", FAST])
    verdicts = {(r["block"], r["num_warps"]): r["verdict"] for r in swept.rows}
    assert "other bits" in verdicts[256, 4] and verdicts[256, 8] == "does not run: RuntimeError"
    assert verdicts[winner[:2]] == ("chosen" if winner[0] == 64 else "default, kept")
    assert all("(256" not in name for name in clock.asked[0])  # what is wrong is not timed


def test_sums_are_compared_with_a_bound(tune, tuned):
    for growth, fine in ((32, True), (8, False)):  # 1e-6 is 16 unit roundoffs
        swept = tune.sweep(_kernel(tune, tuned, growth), 64, torch.float32, CPU, True, Clock({}))
        row = next(r for r in swept.rows if (r["block"], r["num_warps"]) == (256, 4))
        assert (row["us"] != "") == fine and ("off by 16 unit roundoffs" in row["verdict"]) != fine


def test_winners_are_stored_beside_the_others(tune, tuned, tmp_path):
    path, plain, fast = tmp_path / "table.json", tuned.Choice(128, 4), tuned.Choice(64, 2)
    path.write_text(_table(**{"a 16 float32": fast._asdict(), "kept 16 float32": fast._asdict()}))
    found = [tune.Swept("a", 16, torch.float32, plain, plain), tune.Swept("b", 64, torch.float64, plain, fast)]
    tune.store(path, "sm_90", found, {"device": "D", "driver": "1"})
    table = json.loads(path.read_text())["architectures"]["sm_90"]
    assert table["status"] == "swept" and table["device"] == "D"
    assert tuned.parse(path.read_text())["sm_90"] == {"b 64 float64": fast, "kept 16 float32": fast}


def test_sweeps_launch_what_they_name(tune, tuned, device):
    """The names in the sweep are those the launches ask for, and the default is among the candidates."""
    kernels = importlib.import_module("benchmarks.tune_kernels").KERNELS
    for op in ("philox_normal", "waterfill_equalise", "power_normalise", "pilot_posterior_step"):
        kernel = next(k for k in kernels if k.op == op)
        launch = kernel.make(16, 2, torch.float32, device)
        with tuned.watching() as asked:
            launch()
        assert asked[op][2] in kernel.candidates(asked[op][2], False)


def test_tuning_needs_a_device(tune, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main([]) == 2 and tune.main(["pvd_update", "--quick"]) == 2
    assert capsys.readouterr().err.splitlines() == ["bench tune: tuning needs a CUDA device, and torch sees none"] * 2


def test_unknown_op(tune, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert tune.main(["rzf_precode"]) == 2
    assert "rzf_precode has no launch to choose; one of philox_normal, " in capsys.readouterr().err
    assert "benchmarks.tune" in sys.modules
