"""benchmarks/gpu_check.sh with stand-ins for everything that needs a GPU: what it calls, what it leaves, how it ends."""

import importlib
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_check.sh"
PYTHON = """#!/usr/bin/env bash
if [ "$1" = -c ]; then
  [ -n "$NO_DEVICE" ] || echo stub_device 90
  exit 0
fi
printf '%q ' "$@" >>"$CALLS"; echo >>"$CALLS"
echo "output of $2"
while [ $# -gt 0 ]; do
  case $1 in --csv | --png) echo row >"$2" ;; --junitxml=*) echo xml >"${1#*=}" ;; esac
  case "$1" in $BROKEN) exit 3 ;; $ENDLESS) exec sleep 60 ;; esac
  shift
done
"""
SANITIZER = """#!/usr/bin/env bash
echo "sanitizer $*" >>"$CALLS"
[ "${BROKEN:-}" != memcheck ] || [ "$2" != memcheck ]
"""


@pytest.fixture
def check(tmp_path):
    """(exit status, standard output and error, calls, files left) of the script with these arguments and variables."""
    tools = tmp_path / "tools"
    tools.mkdir()
    stubs = {"python3": PYTHON, "compute-sanitizer": SANITIZER, "nvidia-smi": "#!/bin/sh\necho a GPU, 580\n"}
    for name, text in stubs.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)

    def run(*arguments, **variables):
        calls, out = tmp_path / "calls", tmp_path / "out"
        calls.write_text("")
        own = {"PATH": f"{tools}:{os.environ['PATH']}", "CALLS": str(calls), "BROKEN": "none", "ENDLESS": "none"}
        done = subprocess.run(
            ["bash", str(SCRIPT), str(out), *arguments], env=os.environ | own | variables, capture_output=True, text=True,
            timeout=60,
        )  # fmt: skip
        left = sorted(p.name for p in out.iterdir()) if out.exists() else []
        return done.returncode, done.stdout + done.stderr, calls.read_text().splitlines(), left

    return run


def test_all_stages(check):
    """Build, tests, sanitizers, benchmarks, tuning in turn; at most eight files that name device and date; an end of 0."""
    status, text, calls, left = check(SEMCOM_FAST_COMMIT="abc1234")
    assert status == 0, text
    assert "pip install --no-build-isolation --no-deps" in calls[0] and calls[0].split()[-2:] == ["-e", "."]
    order = "pip.*pytest.*pytest.*slow.*tool memcheck.*tool racecheck.*benchmarks ops.*benchmarks grid"
    assert re.search(order + ".*benchmarks loops.*benchmarks tune", " ".join(calls))
    assert len(left) == 8 and all("stub_device_2" in name for name in left), left
    assert text.count("passed") == 2 * 11 and "commit abc1234" in text and "a GPU, 580" in text


def test_one_stage(check):
    status, text, calls, left = check("bench", "tune")
    assert status == 0 and len(calls) == 4, text
    assert len(left) == 7 and all(c.startswith("-m benchmarks ") for c in calls)


@pytest.mark.parametrize("broken, count", [("pip", 1), ("pytest", 3), ("memcheck", 1), ("loops", 1)])
def test_goes_on_after_a_failure(check, broken, count):
    status, text, calls, _ = check(BROKEN=broken)
    assert status == 1 and text.count("FAILED") == 2 * count and any("tune" in c for c in calls), text


def test_a_part_that_does_not_end(check):
    """A part that outruns its time is ended and named; the others follow."""
    status, text, calls, _ = check("bench", ENDLESS="loops", GPU_CHECK_LIMIT="1")
    assert status == 1 and "OUT OF TIME loops (1 s)" in text and "passed      ops" in text and len(calls) == 3


def test_without_a_device_and_unknown_stages(check):
    status, text, calls, left = check(NO_DEVICE="1")
    assert status == 2 and "torch sees no CUDA device" in text and not calls and not left
    status, text, calls, _ = check("tests", "tunes")
    assert status == 2 and "unknown stage 'tunes'; one of: build tests sanitize bench tune" in text and not calls


def test_the_options_exist(check, capsys, monkeypatch):
    """Every option and verb the script passes to the benchmarks is one that they know."""
    monkeypatch.syspath_prepend(str(ROOT))
    _, _, calls, _ = check("bench", "tune")
    for call in calls:
        words = shlex.split(call)[2:]
        verb = words[0] if words[0] in ("tune", "grid") else "__main__"
        with pytest.raises(SystemExit):
            importlib.import_module(f"benchmarks.{verb}").main(["--help"])
        known = capsys.readouterr().out
        for word in words:
            assert word in known or not (word.startswith("--") or word in ("ops", "loops")), f"{verb}: {word}"
