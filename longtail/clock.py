"""Measured time of one answer, phase by phase, the device waited for; knows when to stop."""

import time
from dataclasses import dataclass, field

import torch


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
    """Laps of one answer: each names what was done since the last, the device waited for. Knows stop and time limit."""

    device: torch.device
    stop: object = None  # has is_set(), as threading.Event
    limit: float | None = None  # seconds
    last: float = field(default_factory=time.perf_counter)
    laps: dict = field(default_factory=dict)
    steps: list = field(default_factory=list)

    def lap(self, name: str):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if name == "decode":
            self.steps.append(now - self.last)
        else:
            self.laps[name] = self.laps.get(name, 0.0) + now - self.last
        self.last = now

    def restart(self):
        """After a yield: the reader's time is not ours."""
        self.last = time.perf_counter()

    def halted(self) -> str | None:
        if self.stop is not None and self.stop.is_set():
            return "stopped"
        spent = sum(self.laps.values()) + sum(self.steps) + time.perf_counter() - self.last
        return "time" if self.limit is not None and spent > self.limit else None

    def between(self):
        if reason := self.halted():
            raise Halted(reason)

    def seconds(self) -> Seconds:
        first, steps = sum(self.laps.values()), sorted(self.steps)
        median = (steps[len(steps) // 2] + steps[(len(steps) - 1) // 2]) / 2 if steps else 0.0
        return Seconds(**self.laps, first_token=first, per_token=median, total=first + sum(steps))
