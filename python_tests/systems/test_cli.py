"""The command line: what it prints, and that every error is one clear line with exit code 2."""

import signal
import subprocess
import sys

import pytest

from semcom_fast import cli
from semcom_fast.systems.blind_mimosc import demo, figure


def test_info(capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    for name in ("semcom_fast", "torch", "threads", "extension"):
        assert name in out


def test_demo_prints_its_table_and_draws(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "ROUNDS", 1)
    monkeypatch.setattr(demo, "measure", lambda *args, **kwargs: demo.Overhead(150.0, 100.0, 0.5))
    out = tmp_path / "deep" / "picture.png"
    assert cli.main(["demo", "--images", "4", "--snr", "20", "--out", str(out), "--quiet"]) == 0
    text = capsys.readouterr().out
    for part in ("oracle", "success", "LMMSE 2M", "PSNR", "CBR", "s/image", "overhead beyond the networks 50%",
                 "backend cpu", "ISA", "penalised   20", "plain       20", "implicit superimposed pilot"):  # fmt: skip
        assert part in text, part
    assert out.read_bytes().startswith(b"\x89PNG")


def test_pilot_remark_follows_the_measured_share():
    text = demo.pilot_remark({"penalised": 0.48, "plain": 0.03})
    first, second = text.splitlines()
    assert "48.0%" in first and "implicit superimposed pilot" in first
    assert "3.0%" in second and "implicit" not in second


def test_figure_takes_any_number_of_rows_and_gaps(tmp_path):
    import torch

    rows = [figure.Row("sent", torch.zeros(3, 64)), figure.Row("0 dB", torch.ones(3, 64))]
    curve = figure.Curve("one", [float("nan"), -3.0], "black", "-", "o")
    figure.draw(tmp_path / "f.png", "title", "subtitle", rows, [0, 5], [curve])
    assert (tmp_path / "f.png").stat().st_size > 1000


def test_run_prints_one_setting(capsys):
    assert cli.main(["run", "blind-mimosc", "--images", "4", "--snr", "20", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "nmse_db" in out and "success_rate       1.0000" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["demo", "nonsense"], "no system named 'nonsense'; there: blind-mimosc"),
        (["demo", "--images", "1"], "2 to 297 held-out digits, not 1"),
        (["run", "--blocks", "4"], "64 symbols"),
        (["run", "--images", "0"], "--images must be 1 to 297"),
        (["run", "--weights", "/nowhere"], "no weights"),
        (["train", "--steps", "0"], "steps must be at least 1"),
        (["train", "--steps", "x"], "invalid int value"),
        (["frobnicate"], "invalid choice"),
        ([], "required"),
    ],
)
def test_errors_are_one_line_and_exit_two(argv, message, capsys):
    try:
        code = cli.main(argv)
    except SystemExit as stop:
        code = stop.code
    err = capsys.readouterr().err
    assert code == 2
    assert message in err and err.startswith("semcom-fast") and len(err.strip().splitlines()) == 1


def test_a_file_where_a_folder_belongs_is_named(tmp_path, capsys):
    """Errno 17 and 20 in words, before anything is computed."""
    (tmp_path / "taken").write_text("")
    for where in (tmp_path / "taken" / "p.png", tmp_path / "taken" / "deep" / "p.png"):
        assert cli.main(["run", "mu-mimo", "--out", str(where), "--images", "4", "--digits", "4", "--quiet"]) == 2
        err = capsys.readouterr().err
        assert "taken" in err and "a file is in its place" in err and "Errno" not in err


def test_bench_outside_a_source_tree_says_where(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "SOURCE_TREE", tmp_path)
    assert cli.main(["bench"]) == 2
    assert "clone the source tree" in capsys.readouterr().err


def test_bench_runs_with_its_options_and_passes_its_code_on(tmp_path, monkeypatch):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").touch()
    (tmp_path / "benchmarks" / "__main__.py").write_text(
        "import sys; sys.exit(7 if sys.argv[1:] == ['--quick'] else 1)"
    )
    monkeypatch.setattr(cli, "SOURCE_TREE", tmp_path)
    assert cli.main(["bench", "--quick"]) == 7


@pytest.mark.slow
def test_interrupted_training_exits_130_and_resumes(tmp_path):
    command = [sys.executable, "-m", "semcom_fast.cli", "train", "--out", str(tmp_path), "--steps", "150"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    seen = ""
    while "/150" not in seen:  # the first bar is up: training has begun
        seen += process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "--resume goes on from there" in err and "Traceback" not in err
    assert (tmp_path / "digits_denoiser.checkpoint").exists()
    resumed = subprocess.run([*command, "--resume", "--quiet"], capture_output=True, text=True, timeout=300)
    assert resumed.returncode == 0, resumed.stderr
    assert "digits_encoder_penalised.safetensors" in resumed.stdout


def test_missing_extra_is_named(tmp_path):
    """Without scikit-learn the package imports and the demonstration says what to install."""
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "from semcom_fast import cli; sys.exit(cli.main(['demo', '--quiet', '--out', 'x.png']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 2
    assert "semcom-fast[demo]" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_help_lists_a_systems_own_options(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "--images" in out and "blind-mimosc" in out
