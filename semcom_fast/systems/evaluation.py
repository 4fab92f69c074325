"""What the evaluations of the systems share: jobs measured one by one with what each gave kept on disk, what a number was
made with, and by what a network is recognised."""

import hashlib
import json
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import nn

from .. import _backend, _native
from ..data.kept import whole_file
from ..errors import require_extra

Figures = dict[str, np.ndarray]  # by name: per item [N], and single numbers [1]
Job = TypeVar("Job")
_PLACE = "made_with"  # in a kept file, beside the figures


class KeptEvaluation(ABC, Generic[Job]):
    """Runs jobs and keeps their figures and what they were made with, so that a stopped evaluation goes on where it was.

    Args:
        folder: of the kept figures; None keeps them in memory alone.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.found: dict[Job, Figures] = {}
        self.places: dict[Job, dict[str, str]] = {}  # `where` each of them was made

    @abstractmethod
    def jobs(self) -> list[Job]:
        """In an order in which a stopped run holds whole comparisons."""

    @abstractmethod
    def _mark(self, job: Job) -> str:
        """Name of a job's file: other settings or networks, another name."""

    @abstractmethod
    def _title(self, job: Job) -> str:
        """A job, for a progress bar."""

    @abstractmethod
    def _measure(self, job: Job) -> Figures:
        """Run a job."""

    def run(self, progress: bool = True) -> Iterator[tuple[Job, Figures]]:
        """Every job with its figures, as they are finished or found."""
        bar = require_extra("tqdm", "demo").tqdm(self.jobs(), unit="row", disable=not progress, dynamic_ncols=True)
        for job in bar:
            bar.set_description(self._title(job))
            yield job, self.figures(job)

    def path(self, job: Job) -> Path | None:
        """Where a job's figures are kept."""
        return None if self.folder is None else self.folder / f"{self._mark(job)}.npz"

    def figures(self, job: Job) -> Figures:
        """The figures of one job, from memory, from the folder or made now."""
        if job not in self.found:
            path = self.path(job)
            if path is not None and path.exists():
                with np.load(path) as kept:
                    figures = dict(kept)
                place = figures.pop(_PLACE, None)
                self.places[job] = dict.fromkeys(where(), "unknown") if place is None else json.loads(str(place))
                self.found[job] = figures
            else:
                self.found[job], self.places[job] = self._measure(job), where()
                if path is not None:
                    with whole_file(path) as file:
                        np.savez(file, **self.found[job], **{_PLACE: np.array(json.dumps(self.places[job]))})  # type: ignore[arg-type]
        return self.found[job]


def table_or_stop(evaluate: Callable[[], object], out: Path, *more: Path) -> int:
    """An evaluation on the command line: its tables printed; on Ctrl-C, where the rows are. Returns the exit code."""
    try:
        evaluate()
    except KeyboardInterrupt:
        print(f"\nstopped; the rows finished so far are in {out}, and a new run goes on from them", file=sys.stderr)
        return 130
    print(*(path.read_text() for path in (out, *more) if path.exists()), sep="\n")
    return 0


def where() -> dict[str, str]:
    """What the numbers were made with: kernels, threads, torch, commit of the source tree."""
    return {
        "backend": running_backend(),
        "isa": _native.info().get("cpu level running", "none"),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "commit": _commit(),
    }


def running_backend() -> str:
    """The backend that the receiver's ops run on for CPU tensors."""
    return _backend.select("likelihood_score", ("cpu", "cuda"), torch.device("cpu"))


def _commit() -> str:
    """The commit of the source tree this runs from, "-dirty" when it has changes; "unknown" outside one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return "unknown"
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of a network's state, by which what it computed is recognised."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(np.ascontiguousarray(value.detach().cpu().numpy()).data)
    return digest.hexdigest()
