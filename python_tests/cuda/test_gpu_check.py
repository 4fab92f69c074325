"""benchmarks/gpu_check.sh with stand-ins for everything that needs a GPU: what it calls, what it leaves, how it ends."""

import importlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_check.sh"
PYTHON = """#!/usr/bin/env bash
if [ "$1" = -c ]; then
  case $2 in
    *get_device_name*) [ -n "$NO_DEVICE" ] || printf '%s\\n' stub_device 90 "$INSTALLER" python3 /nowhere ;;
    *cuda_usable*) [ -z "$NO_EXTENSION" ] ;;
  esac
  exit
fi
printf '%q ' "$@" >>"$CALLS"; echo >>"$CALLS"
echo "output of $2"
if [ -n "$TEST_FILE" ] && [[ "$*" == *"gpu and not slow"* ]]; then
  for word; do case $word in --junitxml=*) exec "$REAL" -m pytest -q -p no:cacheprovider "$word" "$TEST_FILE" ;; esac; done
fi
while [ $# -gt 0 ]; do
  case $1 in
    --csv | --png) echo row >"$2"; echo half >"$2.part" ;;
    --junitxml=*) echo '<?xml version="1.0"?><testsuites name="a"><testsuite name="b"/></testsuites>' >"${1#*=}" ;;
  esac
  case "$1" in $BROKEN) exit 3 ;; $ENDLESS) exec sleep 60 ;; esac
  shift
done
"""
SANITIZER = """#!/usr/bin/env bash
echo "sanitizer $*" >>"$CALLS"
[[ "$*" != *"tool $BROKEN"* ]]
"""
CMAKE = """#!/usr/bin/env bash
echo "cmake $*, CUDAARCHS $CUDAARCHS" >>"$CALLS"
[ "$BROKEN" != cmake ] && mkdir -p build/gpu_check && echo built >build/gpu_check/_core.stub.so
"""
STANDARD = {"BROKEN": "none", "ENDLESS": "none", "INSTALLER": "pip"} | dict.fromkeys(
    ["NO_DEVICE", "NO_EXTENSION", "TEST_FILE"], ""
)


@pytest.fixture
def tree(tmp_path):
    """A source tree with the script and what it copies."""
    for path in ("benchmarks/gpu_check.sh", "semcom_fast/triton/tuned.json"):
        (tmp_path / "tree" / path).parent.mkdir(parents=True)
        shutil.copy(ROOT / path, tmp_path / "tree" / path)
    return tmp_path / "tree"


@pytest.fixture
def check(tmp_path, tree):
    """(exit status, standard output and error, calls, files left) of the script with these arguments and variables."""
    tools = tmp_path / "tools"
    tools.mkdir()
    stubs = {"python3": PYTHON, "compute-sanitizer": SANITIZER, "cmake": CMAKE, "nvidia-smi": "#!/bin/sh\necho a GPU\n"}
    for name, text in stubs.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)

    def run(*arguments, **variables):
        calls, out = tmp_path / "calls", tmp_path / "out"
        calls.write_text("")
        own = {"PATH": f"{tools}:{os.environ['PATH']}", "CALLS": str(calls), "REAL": sys.executable}
        environment = {k: v for k, v in os.environ.items() if not k.startswith("GPU_CHECK_")}
        done = subprocess.run(
            ["bash", str(tree / "benchmarks" / "gpu_check.sh"), str(out), *arguments], capture_output=True, text=True,
            env=environment | STANDARD | own | variables, timeout=60,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # as in the background of a shell
        )  # fmt: skip
        left = sorted(p.name for p in out.iterdir()) if out.exists() else []
        return done.returncode, done.stdout + done.stderr, calls.read_text().splitlines(), left

    return run


def suites(tmp_path):
    """The test suites in the one XML file."""
    (path,) = (tmp_path / "out").glob("gpu_tests_*.xml")
    return ElementTree.parse(path).findall("testsuite")


def test_all_stages(check, tmp_path):
    """Everything in turn; at most eight files that name device and date, none half written; an end of 0."""
    status, text, calls, left = check(SEMCOM_FAST_COMMIT="abc1234")
    assert status == 0, text
    assert "pip install --disable-pip-version-check --no-build-isolation --no-deps" in calls[0]
    assert calls[0].split()[-2:] == ["-e", "."]
    order = ["pip", "pytest.*and.*not.*slow", "pytest.*and.*slow", "pytest.*-m gpu ", "pytest.*not.*gpu", "memcheck"]
    order += ["racecheck", *(f"benchmarks {verb}" for verb in ("ops", "grid", "loops", "tune"))]
    assert re.search(".*".join(order), " ".join(calls))
    assert len(left) == 8 and all("stub_device_2" in name for name in left), left
    assert text.count("passed") == 2 * 12 and "commit abc1234" in text and "\na GPU\n" in text
    assert all("--report-api-errors no" in c for c in calls if c.startswith("sanitizer"))
    assert len(suites(tmp_path)) == 4


def test_one_stage(check):
    status, text, calls, left = check("bench", "tune")
    assert status == 0 and len(calls) == 4, text
    assert len(left) == 7 and all(c.startswith("-m benchmarks ") for c in calls)


def test_the_calls_of_the_heading_fit_ten_minutes(check):
    """Their parts' times, kills included, leave half a minute for the start; together they are every stage, once."""
    lines = re.findall(r"GPU_CHECK_TOTAL=570 benchmarks/gpu_check.sh FOLDER (.*)", SCRIPT.read_text())
    assert len(lines) == 3
    assert sorted(" ".join(lines).split()) == ["bench", "build", "sanitize", "tests", "triton", "tune"]
    for line in lines:
        status, text, calls, _ = check(*line.split(), GPU_CHECK_TOTAL="570")
        limits = [int(s) for s in re.findall(r"at most (\d+) s", text)]
        assert status == 0 and sum(limits) <= 540, f"{line}: {limits}"
        for call in calls:
            if "--limit" in call:  # sweeps and rows end in order before their part is interrupted
                own = int(call.split("--limit ")[1].split()[0])
                assert own <= 0.8 * limits[calls.index(call)], call


@pytest.mark.parametrize("broken, count", [("pytest", 4), ("memcheck", 1), ("loops", 1)])
def test_goes_on_after_a_failure(check, broken, count):
    status, text, calls, _ = check(BROKEN=broken)
    assert status == 1 and text.count("FAILED") == 2 * count and any("tune" in c for c in calls), text


def test_builds_without_pip(check, tree):
    """Where Python's environment is not ours, or pip fails: CMake, and the module lies in the source tree."""
    status, text, calls, _ = check("build", INSTALLER="cmake")
    assert status == 0 and not any("pip" in c for c in calls) and "passed      build without pip" in text, text
    assert [c.split()[1] for c in calls if c.startswith("cmake")] == ["-S", "--build"] and "CUDAARCHS 90" in calls[-1]
    built = tree / "semcom_fast" / "_core.stub.so"
    assert built.read_text() == "built\n"
    built.unlink()
    status, text, calls, _ = check("build", BROKEN="pip")
    assert status == 1 and "FAILED      build (exit 3" in text and built.exists() and "cmake" in calls[-1]
    status, text, _, _ = check("build", INSTALLER="cmake", BROKEN="cmake")
    assert status == 1 and "FAILED      build without pip" in text


def test_builds_where_there_is_no_extension(check):
    """A stage alone on a machine that has forgotten the build."""
    _, _, calls, _ = check("tune", NO_EXTENSION="1")
    assert len(calls) == 2 and "pip install" in calls[0] and "tune" in calls[1]
    assert len(check("tune")[2]) == 1


def test_a_part_that_does_not_end(check):
    """A part that outruns its time is ended and named; the others follow."""
    status, text, calls, _ = check("bench", ENDLESS="loops", GPU_CHECK_LIMIT="2")
    assert status == 1 and "OUT OF TIME loops (2 s)" in text and "passed      ops" in text and len(calls) == 3


def test_all_parts_have_an_end(check):
    """The whole time passes in one part: the others are not begun, and named."""
    start = time.monotonic()
    status, text, calls, _ = check("bench", "tune", ENDLESS="ops", GPU_CHECK_TOTAL="4")
    assert time.monotonic() - start < 8 and status == 1 and len(calls) == 1, text
    assert "OUT OF TIME ops" in text and all(f"NO TIME FOR {name}" in text for name in ("grid", "loops", "tune"))


def test_tests_out_of_time_leave_their_results(check, tmp_path):
    """Interrupted as by Ctrl-C even in the background, pytest writes what it knows."""
    slow = tmp_path / "test_slow.py"
    slow.write_text("import time\ndef test_first():\n    pass\ndef test_second():\n    time.sleep(60)\n")
    status, text, _, left = check("tests", GPU_CHECK_LIMIT="8", TEST_FILE=str(slow))
    assert status == 1 and "OUT OF TIME GPU tests (8 s)" in text and "1 passed" in text and len(left) == 2, text
    (suite,) = (s for s in suites(tmp_path) if s.findall("testcase"))
    assert "test_first" in [case.get("name") for case in suite.findall("testcase")]


def test_without_a_device_and_unknown_stages(check):
    status, text, calls, left = check(NO_DEVICE="1")
    assert status == 2 and "torch sees no CUDA device" in text and not calls and not left
    status, text, calls, _ = check("tests", "tunes")
    assert status == 2 and "unknown stage 'tunes'; one of: build tests triton sanitize bench tune" in text and not calls


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


def test_every_gpu_test_is_in_a_part(check):
    """Tests marked `gpu` lie in the two folders whose tests are run, slow ones and others; the kernels' own run as well."""
    marked = {p.parent.name for p in (ROOT / "python_tests").rglob("test_*.py") if "mark.gpu" in p.read_text()}
    assert marked <= {"cuda", "triton"}
    _, _, calls, _ = check("tests", "triton")
    words = [shlex.split(call) for call in calls]
    chosen = {(w[w.index("-m", 2) + 1], next(x for x in w if x.startswith("python_tests/"))) for w in words}
    cuda, triton = "python_tests/cuda", "python_tests/triton"
    assert chosen == {("gpu and not slow", cuda), ("gpu and slow", cuda), ("gpu", triton), ("not gpu", triton)}
