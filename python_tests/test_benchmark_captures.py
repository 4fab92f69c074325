"""Sides of a benchmark as CUDA graphs, on a stand-in for torch.cuda: what is captured, what is left behind, the timing."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from benchmark_rows import BRIEF, made_up, run

from benchmarks import runner, timing


@pytest.fixture(autouse=True)
def _small_cache(monkeypatch):
    """Buffers of megabytes, so that these tests do not fill memory."""
    monkeypatch.setattr(timing, "last_cache_bytes", lambda: 1 << 20)


class Captures:
    """Stands in for torch.cuda as torch 2.11 is: a capture that fails leaves generator and allocator in it."""

    def __init__(self, monkeypatch):
        self.stream, self.mode, self.graph, self.broken = "default", 0, None, False
        self.drawing, self.pools, self.begun, self.replays, self.evictions = False, [], 0, 0, 0
        outer = self

        class Graph:
            def capture_begin(self, pool):
                assert outer.stream == "side" and outer.graph is None
                outer.graph, outer.drawing, outer.broken = self, True, False
                outer.begun += 1
                outer.pools.append(pool)

            def capture_end(self):
                outer.graph = None
                if outer.broken:
                    raise RuntimeError("operation failed due to a previous error during capture")
                outer.drawing = False
                outer.pools.pop()

            def replay(self):
                outer.replays += 1

        monkeypatch.setattr(timing, "_capture_stream", lambda: SimpleNamespace(wait_stream=lambda other: None))
        monkeypatch.setattr(timing, "evict", lambda: setattr(self, "evictions", self.evictions + 1))
        for name, value in {
            "CUDAGraph": Graph, "graph_pool_handle": lambda: (0, self.begun), "synchronize": lambda: None,
            "current_stream": lambda: self.stream, "current_device": lambda: 0, "stream": self.within,
            "empty_cache": self.empty_cache, "get_sync_debug_mode": lambda: self.mode,
            "set_sync_debug_mode": lambda mode: setattr(self, "mode", mode),
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda _, p: self.pools.remove(p), raising=False)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda *_: None, raising=False)

    @contextlib.contextmanager
    def within(self, _):
        before, self.stream = self.stream, "side"
        try:
            yield
        finally:
            self.stream = before

    def empty_cache(self):
        if self.pools:
            raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    def waits(self, seen=True):
        """A call that waits for the device; not every wait is one that torch sees."""
        if self.mode == "error" and seen:
            raise RuntimeError("called a synchronizing CUDA operation")
        if self.graph:
            self.broken = True
            raise RuntimeError("operation not permitted when stream is capturing")

    @property
    def clean(self):
        return (self.stream, self.mode, self.graph, self.drawing, self.pools) == ("default", 0, None, False, [])


@pytest.mark.parametrize("seen", [True, False])
def test_a_side_that_waits_is_not_captured_and_not_tried_again(monkeypatch, seen):
    """Where torch sees the wait nothing is begun; else the next side still can be captured, and torch draws as before."""
    cuda, calls = Captures(monkeypatch), []
    bad = timing.Side("inv", lambda i: calls.append(i) or cuda.waits(seen))
    assert not bad.capture(5) and cuda.clean and bad.graph is None
    assert cuda.begun == (0 if seen else 2)  # the second one ends what the first has left
    calls.clear()
    assert not bad.capture(5) and not calls
    good = timing.Side("ours", calls.append)
    assert good.capture(5) and cuda.clean and calls == [0, 0, 1, 2, 3, 4]


def test_samples_of_a_captured_side(monkeypatch):
    """As many replays as were planned or fill the time; one, with the cache emptied before it, where sets are to be cold."""
    cuda, side = Captures(monkeypatch), timing.Side("ours", lambda i: None)
    ticks = iter(range(10**6))
    monkeypatch.setattr(timing, "clock", lambda: next(ticks) * 1e-3)  # every sample takes a millisecond
    side.repeats = 60
    assert side.capture(20) and side.replays == 3
    cuda.replays = 0
    assert side.seconds(0) == pytest.approx(1e-3 / 60) and (cuda.replays, cuda.evictions) == (3, 0)
    assert side.capture(20, target=7.5e-3) and side.replays == 7
    side.cold = True
    assert side.capture(20, target=7.5e-3) and side.replays == 1
    cuda.replays = cuda.evictions = 0
    assert side.seconds(0) == pytest.approx(1e-3 / 20) and (cuda.replays, cuda.evictions) == (1, 1)
    side.release()
    cuda.evictions = 0
    side.seconds(0)
    assert (side.graph, side.calls, cuda.evictions) == (None, 1, 0)


def test_rows_of_captured_calls(monkeypatch):
    """CuPy and the definition are called and never captured, the row says so; a quick run has fewer visits."""
    cuda, inside = Captures(monkeypatch), []

    def told(name):
        return lambda x: inside.append(name) if cuda.graph else -x

    given = made_up(ours=told("ours"), rivals={"cupy": told("cupy"), "sionna": lambda x: cuda.waits()})
    given.check, given.reference = (lambda: 0.0), told("reference")
    out, _ = run([given], graphs=True, visits=5, target=1e-4)
    assert {r.kernel.split(" graph ")[1] for r in out.rows} == {"(not captured: reference, cupy, sionna)"}
    assert set(inside) == {"ours"} and cuda.clean and all(r.reference_us > 0 for r in out.rows)
    assert {r.rounds for r in out.rows} == {runner.GRAPH_VISITS * BRIEF.rounds}
