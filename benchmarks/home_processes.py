"""Watch the processes of one home: their processor time, and how many of their threads could run. Linux only."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_INTERVAL_SECONDS = 0.2


class Sample(NamedTuple):
    """Time since 1970, processor seconds of all watched processes so far, and threads that run or wait for a core."""

    time: float
    processor: float
    runnable: int


class HomeProcesses(threading.Thread):
    """Samples, from ``start`` until ``stop``, every process whose environment has ``GRADCAMO_HOME`` set to a folder."""

    def __init__(self, home: Path):
        super().__init__(daemon=True)
        self.samples: list[Sample] = []
        self._marker = f"GRADCAMO_HOME={home}".encode()
        self._ours: dict[tuple[str, str], list[tuple[float, float]]] = {}
        self._others: set[str] = set()
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(_INTERVAL_SECONDS):
            now, runnable = time.time(), 0
            for process in _list_processes():
                with suppress(OSError):  # It has ended meanwhile.
                    runnable += self._look_at(process, now)
            self.samples.append(Sample(now, sum(seen[-1][1] for seen in self._ours.values()), runnable))

    def stop(self) -> None:
        """End the samples."""
        self._stopped.set()
        self.join()

    def terminate(self) -> None:
        """End the watched processes that still run, and wait until they are gone."""
        until = time.monotonic() + 60
        while alive := [process for process in _list_processes() if self._is_ours(process)]:
            for process in alive:
                with suppress(ProcessLookupError):
                    os.kill(int(process.name), signal.SIGTERM if time.monotonic() < until else signal.SIGKILL)
            time.sleep(1)

    @property
    def count(self) -> int:
        """Number of processes that were seen."""
        return len(self._ours)

    def processor_seconds(self, process: int, start: float, end: float) -> float:
        """Processor seconds of a process between two times; 0 if it was never seen."""
        for (number, _), seen in self._ours.items():
            if int(number) == process and seen[0][0] <= end and seen[-1][0] >= start:
                times, seconds = zip(*seen, strict=True)
                return float(np.diff(np.interp([start, end], times, seconds))[0])
        return 0.0

    def totals(self, processes: set[int]) -> float:
        """Processor seconds of these processes from their start to their end."""
        return sum(seen[-1][1] for (number, _), seen in self._ours.items() if int(number) in processes)

    def _is_ours(self, process: Path) -> bool:
        with suppress(OSError):
            values = _read_stat(process)
            return values[0] != "Z" and (process.name, values[19]) in self._ours
        return False

    def _look_at(self, process: Path, now: float) -> int:
        if process.name in self._others:
            return 0
        values = _read_stat(process)
        key = process.name, values[19]  # A number can be used again; the start time tells.
        if key not in self._ours:
            if self._marker not in (process / "environ").read_bytes().split(b"\0"):
                if int(values[1]) != os.getpid():  # A new child has this process's environment for a moment.
                    self._others.add(process.name)
                return 0
            self._ours[key] = []
        self._ours[key].append((now, (int(values[11]) + int(values[12])) / _TICKS_A_SECOND))
        return sum(_read_stat(task)[0] == "R" for task in (process / "task").iterdir())


def _list_processes() -> Iterator[Path]:
    return (path for path in Path("/proc").iterdir() if path.name.isdecimal())


def _read_stat(folder: Path) -> list[str]:
    """The values of ``stat`` after the name, which can contain blanks: state, parent, ... (proc_pid_stat(5))."""
    return (folder / "stat").read_text().rpartition(")")[2].split()
