"""The pages of figures: the tool that writes their tables, and what their prose says of the committed CSV files."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOL = ROOT / "tools" / "results_table.py"
RESULTS = ROOT / "benchmarks" / "results"
pytestmark = pytest.mark.skipif(not RESULTS.is_dir(), reason="the figures do not come with a source distribution")
PAGES = [ROOT / name for name in ("README.md", "docs/performance.md", "docs/results.md", "docs/api.md")]


def _rows(name):
    with (RESULTS / name).open(newline="") as file:
        return list(csv.DictReader(file))


def _said(page, *parts):
    """Whether a page says all this, whatever its line breaks."""
    text = " ".join((ROOT / page).read_text().split())
    missing = [part for part in parts if " ".join(part.split()) not in text]
    assert not missing, missing


@pytest.mark.parametrize(("options", "code"), [(["--help"], 0), (["--chekc"], 2), (["docs"], 2)])
def test_the_tool_writes_nothing_unless_asked(options, code):
    before = [page.read_bytes() for page in PAGES]
    done = subprocess.run([sys.executable, TOOL, *options], capture_output=True, text=True, timeout=60)
    assert done.returncode == code and "--check" in done.stdout + done.stderr
    assert [page.read_bytes() for page in PAGES] == before


def test_the_tool_tells_a_page_that_is_out_of_date(tmp_path):
    """On a copy: one figure changed by hand is found, then put right, and nothing else is touched."""
    (tmp_path / "docs").mkdir()
    for page in PAGES:
        (tmp_path / page.relative_to(ROOT)).write_bytes(page.read_bytes())
    code = f"""
import sys
sys.path[:0] = [{str(ROOT / "tools")!r}]
import results_table
from pathlib import Path
results_table.ROOT = Path({str(tmp_path)!r})
sys.exit(results_table.main(sys.argv[1:]))
"""

    def run(*options):
        return subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True, timeout=60)

    page = tmp_path / "docs" / "results.md"
    assert run().returncode == 0  # whatever the checkout's own pages say
    right = page.read_text()
    assert run("--check").returncode == 0
    page.write_text(right.replace("-27.6 dB", "-37.6 dB", 1))
    assert "-37.6 dB" in page.read_text()
    done = run("--check")
    assert done.returncode == 1 and "docs/results.md" in done.stdout and "-37.6 dB" in page.read_text()
    assert run().returncode == 0 and page.read_text() == right


# ---- what the prose says


@pytest.fixture(scope="module")
def nmse():
    """DM-VB's table: (set, data, profile, SNR, density, estimator) -> dB."""
    return {
        (r["set"], r["data"], r["profile"], float(r["snr_db"]), float(r["density"]), r["estimator"]): float(
            r["nmse_db"]
        )
        for r in _rows("dm_vb.csv")
        if r["profile"]
    }


def _leads(nmse, over, kind, chosen=lambda data, profile, snr, density: True):
    """By how many dB DM-VB is ahead of an estimator: (data, profile, SNR, density) -> dB."""
    return {
        key[1:5]: nmse[(*key[:5], over)] - value
        for key, value in nmse.items()
        if key[0] == kind and key[5] == "dm-vb" and (*key[:5], over) in nmse and chosen(*key[1:5])
    }


def test_dm_vb_with_fixed_orientations(nmse):
    assert max(_leads(nmse, "gm-mmse", "fixed").values()) < 0
    times = {
        (*(r[k] for k in ("set", "data", "profile", "snr_db", "density")), r["estimator"]): r
        for r in _rows("dm_vb.csv")
    }
    for key, row in times.items():
        if key[0] == "fixed" and key[-1] == "dm-vb":
            other = times[(*key[:-1], "gm-mmse")]
            assert float(row["cpu_ms_per_channel"]) > 100 * float(other["cpu_ms_per_channel"]), key
    usual = {over: _leads(nmse, over, "fixed", lambda *at: at[3] == 0.6) for over in ("lasso", "rls", "lmmse")}
    assert min(usual["lasso"].values()) > 0 and min(usual["rls"].values()) > 0
    behind = {at: lead for at, lead in usual["lmmse"].items() if lead <= 0}
    assert list(behind) == [("balanced", "CDL-C", -5.0, 0.6)] and round(min(behind.values()), 1) == -0.1
    for over, lead in (("lasso", -1.9), ("lmmse", -1.9), ("lasso-2x", -4.6)):
        assert round(_leads(nmse, over, "fixed")["balanced", "CDL-B", 20.0, 1.0], 1) == lead
    finer = {at[1:3]: lead for at, lead in _leads(nmse, "lasso-2x", "fixed", lambda *at: at[3] == 0.6).items()}
    assert {at for at, lead in finer.items() if lead < 0} == {("CDL-B", snr) for snr in (20.0, 25.0, 30.0)}
    assert round(min(finer.values()), 1) == -0.3
    single = _leads(nmse, "single-dm", "fixed")
    assert min(single.values()) > 0
    whole = {at: lead for at, lead in single.items() if at[0] == "balanced"}
    assert round(max(lead for at, lead in whole.items() if at[2] < 5), 1) == 2.2
    assert round(max(lead for at, lead in whole.items() if at[2] >= 5), 1) == 1.3
    assert round(max(lead for at, lead in single.items() if at[0] != "balanced"), 1) == 2.1
    _said(
        "docs/results.md",
        "on CDL-C at -5 dB, where it is 0.1 dB behind",
        "on CDL-B 1.9 dB behind both `lasso` and `lmmse` and 4.6 dB behind `lasso-2x`",
        "`lasso-2x` is ahead by up to 0.3 dB",
        "by up to 2.2 dB below 5 dB and by at most 1.3 dB from there on; by up to 2.1 dB where CDL-D",
    )


def test_dm_vb_with_random_orientations(nmse):
    mixture = _leads(nmse, "gm-mmse", "rotated")
    high = {at: lead for at, lead in mixture.items() if at[2] >= 0}
    ends = [min(high, key=high.get), max(high, key=high.get)]
    assert [at[1:3] for at in ends] == [("CDL-B", 0.0), ("CDL-D", 30.0)]
    assert [round(high[at], 1) for at in ends] == [0.2, 12.3]
    low = {at: lead for at, lead in mixture.items() if at[2] < 0}
    assert {at[1] for at, lead in low.items() if lead < 0} == {"CDL-A", "CDL-B", "CDL-C"}
    assert all((lead < 0) == (at[1] != "CDL-D") for at, lead in low.items()) and round(min(low.values()), 1) == -0.4
    for over in ("lmmse", "rls"):
        behind = {at[1:3] for at, lead in _leads(nmse, over, "rotated").items() if lead < 0}
        assert behind == {("CDL-A", -10.0), ("CDL-A", -5.0), ("CDL-B", -10.0), ("CDL-B", -5.0), ("CDL-C", -10.0)}
    own = {key[2:4]: value for key, value in nmse.items() if key[0] == "rotated" and key[5] == "dm-vb"}
    assert {at for at, value in own.items() if value > 0} == {("CDL-A", -10.0), ("CDL-B", -10.0)}
    ahead = {
        "lasso": {"CDL-A": (-10, 10), "CDL-B": (-10, -10), "CDL-C": (-10, 30), "CDL-D": (-10, 5)},
        "lasso-2x": {"CDL-A": (-10, 30), "CDL-B": (10, 30), "CDL-C": (-10, 30), "CDL-D": (-10, 30)},
    }
    for over, ranges in ahead.items():
        leads = {at[1:3]: lead for at, lead in _leads(nmse, over, "rotated").items()}
        for (profile, snr), lead in leads.items():
            assert (lead < 0) == (ranges[profile][0] <= snr <= ranges[profile][1]), (over, profile, snr)
    most = [round(-min(v for at, v in leads.items() if at[0] == p), 1) for p in ("CDL-A", "CDL-C", "CDL-D", "CDL-B")]
    assert most == [3.3, 5.5, 4.9, 1.3]
    _said("docs/results.md", "by up to 3.3, 5.5 and 4.9 dB, and on CDL-B from 10 dB on, by up to 1.3 dB")


def _share(name, op, size, column):
    (row,) = [
        r for r in _rows(name)
        if (r["op"], r["size"], r["cache"], r["dtype"]) == (op, size, "rotated", r["dtype"]) and r["dtype"] != "complex128"
    ]  # fmt: skip
    return float(row[column])


def test_performance_quotes_the_tables():
    likelihood = "likelihood_score", "B=16 K=24 Nr=64 Nt=8 T=24"
    copy, cgemm = (_share("cpu.csv", *likelihood, column) for column in ("copy_share", "cgemm_share"))
    _said("docs/performance.md", f"runs at {copy:.0%} of a copy and {cgemm:.0%} of cgemm".replace("%", " %"),
          f"65 % of cgemm would ask for {100 * 0.65 * copy / cgemm:.0f} % of a copy")  # fmt: skip
    applied = [("blockdiag_apply", f"B=16 K={sizes} T=24") for sizes in ("192 Nr=4 Nt=1", "24 Nr=64 Nt=8")]
    shares = [_share("cpu.csv", *row, "copy_share") for row in applied]
    ratios = [_share("cpu.csv", *row, "ratio") for row in applied]
    _said("docs/performance.md", f"({100 * shares[0]:.0f} % and {100 * shares[1]:.0f} % of its rate in the table above)",
          f"{ratios[0]:.1f}x and {ratios[1]:.1f}x best torch",
          f"a copy would be {ratios[0] / shares[0]:.1f}x and {ratios[1] / shares[1]:.1f}x")  # fmt: skip
    high, low, small = (
        100 * _share("cpu.csv", "waterfill_inject", size, "floor_share")
        for size in ("B=512 N=4096 level 0.9", "B=512 N=4096 level 0.1", "B=16 N=1024 level 0.9")
    )
    _said(
        "docs/performance.md",
        f"{high:.0f} % (level 0.9) and {low:.0f} % (level 0.1) of its floor",
        f"{small:.0f} % where",
    )
    for name, after in (("cpu.csv", " of its floor early"), ("cpu_1_thread.csv", " on one (the tables)")):
        early, middle = (
            100 * _share(name, "waterfill_step", f"B=512 N=4096 {when}", "floor_share") for when in ("early", "middle")
        )
        _said("docs/performance.md", f"{early:.0f} and {middle:.0f} %{after}")


def test_math_quotes_the_networks_table():
    rows = {(r["case"], float(r["snr_db"]), r["networks"]): r for r in _rows("pvd_networks.csv")}
    half = [rows["digits", snr, "bfloat16"] for snr in (20.0, 10.0)]
    assert [f"{float(r['change_d']):.1e}" for r in half] == ["1.0e-03", "9.4e-04"]
    assert [f"{float(r['bound_d']):.1e}" for r in half] == ["1.1e-02", "1.1e-02"]
    losses = [f"{float(r['nmse_change_db']):.3f} ± {float(r['nmse_change_se_db']):.3f} dB" for r in half]
    compiled = [f"{float(rows['digits', snr, 'compiled']['change_d']):.0e}" for snr in (10.0, 20.0)]
    assert compiled == ["7e-08", "6e-08"]
    _said("docs/math.md", f"ε_x = {float(half[0]['eps_encoder']):.4f}",
          "1.0·10⁻³ at 20 dB and 9.4·10⁻⁴ at 10 dB, bound 1.1·10⁻²", "roundings are nearly independent and do 9 to 16 %",
          f"NMSE {losses[0]} worse at 20 dB and {losses[1]} at 10 dB", "7·10⁻⁸ (10 dB) and 6·10⁻⁸ (20 dB)")  # fmt: skip
    shares = [
        float(r["change_d"]) / float(r["bound_d"])
        for r in rows.values()
        if float(r["bound_d"])
        and (r["case"] != "photographs" or r["networks"] == "bfloat16")  # the rest: "does not hold"
    ]
    assert [round(100 * end) for end in (min(shares), max(shares))] == [9, 16]


def test_what_the_classical_downlink_is_said_to_reach():
    full = {
        r["snr_db"]: float(r["psnr_db"])
        for r in _rows("mu_mimo.csv")
        if (r["variant"], r["scenario"]) == ("full", "umi")
    }
    jpeg = [r for r in _rows("mu_mimo_classical.csv") if (r["codec"], r["scenario"]) == ("jpeg", "umi")]

    def best(snr, error="0"):
        return max(
            (r for r in jpeg if (r["snr_db"], r["csi_error_var"]) == (snr, error)), key=lambda r: float(r["psnr_db"])
        )

    def ahead(snr):
        return float(best(snr)["psnr_db"]) - full[snr]

    assert {float(r["bler"]) for r in jpeg if r["snr_db"] == "-7"} == {1.0} and abs(ahead("1")) < 0.5
    cost = float(best("7")["psnr_db"]) - float(best("7", "0.1")["psnr_db"])
    _said(
        "docs/results.md",
        f"at -7 dB `full` gives {full['-7']:.1f} dB where every classical block is lost, at -3 dB {full['-3']:.1f} dB",
        f"the best mode loses {100 * float(best('-3')['bler']):.0f} %",
        f"by {ahead('3'):.1f} dB at 3 dB and {ahead('7'):.1f} dB at 7 dB",
        f"costs JPEG {cost:.1f} dB at 7 dB",
    )
