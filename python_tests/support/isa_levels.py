"""Test code at another instruction-set level: the level is fixed at import, so it runs in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import semcom_fast as sf
from semcom_fast import _native

SUPPORT = Path(__file__).parent
PLACES = (Path(sf.__file__).parents[1], SUPPORT, SUPPORT.parent / "ops")  # the package, helpers, other tests
BUILT = _native.core.isa_built() if _native.core else []
OTHERS = [level for level in BUILT if level != _native.core.isa()]
FRAME = """
import torch
torch.set_num_threads(1)
{}
from semcom_fast import _native
print(_native.core.isa())
"""


def start_at(level: str, code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `code` on one thread with SEMCOM_FAST_ISA=level; `arguments` are its sys.argv[1:]."""
    env = os.environ | {"SEMCOM_FAST_ISA": level, "PYTHONPATH": os.pathsep.join(map(str, PLACES))}
    command = [sys.executable, "-c", FRAME.format(code), *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)


def run_at(level: str, code: str, *arguments: object) -> None:
    """As `start_at`, and it must succeed at that level; skips where this processor lacks it."""
    done = start_at(level, code, *arguments)
    if done.returncode and "this processor cannot run it" in done.stderr:
        pytest.skip(f"this processor lacks {level}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == level, done.stdout
