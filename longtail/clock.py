"""Measured time of one answer, phase by phase; knows when to stop.

On a GPU a lap ends with an event in its stream, so that nothing waits between two phases: the host may run ahead, and a
method that acts in every layer is not charged for being watched. Events are read when seconds are asked for.
"""

import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch

from .given import number

# what phases are read by on a CPU; a benchmark may take the thread's own time
reading: ContextVar[Callable[[], float]] = ContextVar("reading", default=lambda: time.perf_counter())


@dataclass(frozen=True)
class Seconds:
    """Measured, the reader's time between two answers left out. `first_token` is all that came before it; `per_token`
    the median of the later ones; `method` what the reducer took up to the first token, wherever it acted."""

    preprocess: float = 0.0
    vision: float = 0.0
    method: float = 0.0
    prefill: float = 0.0
    first_token: float = 0.0
    per_token: float = 0.0
    total: float = 0.0


class Halted(Exception):
    """Raised between layers when the visitor stopped the run or its time is up."""


@dataclass
class Clock:
    """Laps of one answer: each names what was done since the last one. Knows stop and time limit. Raises ValueError for
    a limit that is no number of seconds."""

    device: torch.device
    stop: object = None  # has is_set(), as threading.Event
    limit: float | None = None  # seconds by the clock on the wall
    steps: list[float] = field(default_factory=list)  # of decoding
    passed: dict[str, float] = field(default_factory=dict)  # seconds of the other phases, read so far
    unread: list[tuple] = field(default_factory=list)  # (phase, its beginning, its end)
    began: float = field(default_factory=lambda: time.perf_counter())  # the limit counts from here

    def __post_init__(self):
        if self.limit is not None:
            number("time_limit", self.limit, 0)
        self.restart()

    def lap(self, name: str):
        """What was done since the last lap was `name`."""
        began, self.last = self.last, self._moment()
        self.unread.append((name, began, self.last))

    def restart(self):
        """After a yield: the reader's time is not ours."""
        self.last = self._moment()

    @property
    def laps(self) -> dict[str, float]:
        """Seconds of each phase but decode, of which `steps` has every one; waits for the device."""
        for name, began, ended in self.unread:
            seconds = self._between(began, ended)
            if name == "decode":
                self.steps.append(seconds)
            else:
                self.passed[name] = self.passed.get(name, 0.0) + seconds
        self.unread.clear()
        return self.passed

    def halted(self) -> str | None:
        """Why to stop, if so."""
        if self.stop is not None and self.stop.is_set():
            return "stopped"
        return "time" if self.limit is not None and time.perf_counter() - self.began > self.limit else None

    def between(self):
        """Between two layers. Raises Halted."""
        if reason := self.halted():
            raise Halted(reason)

    def seconds(self) -> Seconds:
        """All phases so far."""
        first, steps = sum(self.laps.values()), sorted(self.steps)
        median = (steps[len(steps) // 2] + steps[(len(steps) - 1) // 2]) / 2 if steps else 0.0
        return Seconds(**self.laps, first_token=first, per_token=median, total=first + sum(steps))

    def _moment(self):
        """Now: seconds on a CPU; on a GPU an event behind all the work launched so far."""
        if self.device.type != "cuda":
            return reading.get()()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _between(self, began, ended) -> float:
        if self.device.type != "cuda":
            return ended - began
        ended.synchronize()
        return began.elapsed_time(ended) / 1e3
