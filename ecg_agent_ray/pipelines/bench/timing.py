"""Timing of alternatives in turns, so that a machine's other work falls on all of them alike."""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Timing", "hardware", "interleaved", "ratio", "single_thread"]


@dataclass(frozen=True)
class Timing:
    """Seconds of each round over ``n_items`` items: CPU time of all threads, and wall time."""

    n_items: int
    cpu_s: tuple[float, ...]
    wall_s: tuple[float, ...]

    @property
    def per_core(self) -> list[float]:
        """Items a second and core in each round. By CPU time, so that a second thread gains
        nothing and other work on the machine costs nothing."""
        return [self.n_items / seconds for seconds in self.cpu_s]

    def to_dict(self) -> dict[str, Any]:
        return {
            "records_per_s_per_core": round(float(np.median(self.per_core)), 2),
            "spread": [round(float(f(self.per_core)), 2) for f in (np.min, np.max)],
            "records_per_s_wall": round(self.n_items / float(np.median(self.wall_s)), 2),
            "ms_per_record": round(1000 * float(np.median(self.cpu_s)) / self.n_items, 3),
            "rounds": [round(value, 2) for value in self.per_core],
        }


def ratio(ours: Timing, other: Timing) -> dict[str, float]:
    """How many times as fast ``ours`` is: median, least and greatest over the rounds, each round's
    two timings being neighbours in time."""
    rounds = [b / a for a, b in zip(ours.cpu_s, other.cpu_s, strict=True)]
    return {
        "median": round(float(np.median(rounds)), 2),
        "min": round(min(rounds), 2),
        "max": round(max(rounds), 2),
    }


def interleaved(
    work: Mapping[str, Callable[[Any], object]],
    items: Sequence[Any],
    *,
    rounds: int,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Timing]:
    """Run every alternative over all items, in each round in another order.

    One item goes through each alternative beforehand, so that imports and caches are not timed.
    """
    for run in work.values():
        run(items[0])
    cpu: dict[str, list[float]] = {name: [] for name in work}
    wall: dict[str, list[float]] = {name: [] for name in work}
    names = list(work)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            gc.collect()
            begin_wall, begin_cpu = time.perf_counter(), time.process_time()
            for item in items:
                work[name](item)
            cpu[name].append(time.process_time() - begin_cpu)
            wall[name].append(time.perf_counter() - begin_wall)
        if progress is not None:
            progress((number + 1) * len(items), rounds * len(items))
    return {name: Timing(len(items), tuple(cpu[name]), tuple(wall[name])) for name in work}


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """One thread for BLAS and OpenMP, also where they are loaded already."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):
        yield


def hardware() -> dict[str, Any]:
    """What the numbers were taken on."""
    model = ""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as stream:  # noqa: PTH123
        lines = [line for line in stream if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else ""
    return {
        "cpu": model or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
