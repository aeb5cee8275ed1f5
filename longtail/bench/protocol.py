"""How a benchmark measures: all warmed up, each repetition runs all in an order that turns, ratios are paired.

One process. The ratio of two forms is the median of the ratios of the same repetition, its interval the bootstrap's
95 %. On a GPU events are read, the device is waited for around each measurement, and its second-level cache emptied.
On a CPU the clock is the wall's, or the processor's: the time that one thread really ran, whatever shared its core.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from .. import clock as engine

WARM_UPS, ENOUGH = 5, 2.0  # calls before any counts; seconds after which fewer do, but never fewer than two
RESAMPLES = 2000
LEAST, MOST_CALLS = 0.005, 100  # seconds of a measurement of a short form; calls in one
FLUSH = 256 * 2**20  # bytes written between two measurements on a GPU


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Stopwatch:
    """Seconds of calls on a device, by a clock of CLOCKS."""

    def __init__(self, device: str, clock: str = "wall"):
        self.device, self.cuda, self.now = device, device.startswith("cuda"), CLOCKS[clock]
        self.spare = torch.empty(FLUSH, dtype=torch.uint8, device=device) if self.cuda else None

    def __call__(self, form: Callable, calls: int = 1) -> float:
        """Seconds a call, over so many calls in a row."""
        if self.cuda:
            return self._on_gpu(form, calls)
        start = self.now()
        for _ in range(calls):
            form()
        return (self.now() - start) / calls

    def _on_gpu(self, form: Callable, calls: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.spare.zero_()
        torch.cuda.synchronize(self.device)
        start.record()
        for _ in range(calls):
            form()
        end.record()
        torch.cuda.synchronize(self.device)
        return start.elapsed_time(end) / 1000 / calls


def timed(
    forms: Sequence[Callable], device: str, repeat: int, group: int = 1, least: float = LEAST, clock: str = "wall"
) -> np.ndarray:
    """Seconds a call [forms, repeat]. Forms that belong together, `group` of them, stay neighbours.

    On a CPU a short form is called until `least` seconds are full: what else runs would weigh too much on one call.
    """
    watch = Stopwatch(device, clock)
    warm = [warmed(form, watch) for form in forms]
    least = 0 if watch.cuda else least
    calls = [max(math.ceil(least / max(seconds, LEAST / MOST_CALLS)), 1) for seconds in warm]
    seconds = np.empty((len(forms), repeat))
    for turn in range(repeat):
        for i in order(len(forms), turn, group):
            seconds[i, turn] = watch(forms[i], calls[i])
    return seconds


@dataclass(frozen=True, eq=False)
class Against:
    """Seconds of forms, and of the base that ran right before or right behind each, both [forms, repeat]; `base`: every
    run of it, [runs]; `also`: what ran once a repetition and is compared to nothing, [repeat] or empty."""

    forms: np.ndarray
    beside: np.ndarray
    base: np.ndarray
    also: np.ndarray

    def pairs(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of the base, then of each form: its seconds, and those of the base beside it."""
        return [(self.base, self.base), *zip(self.forms, self.beside, strict=True)]


def against(
    base: Callable, forms: Sequence[Callable], device: str, repeat: int, clock: str = "wall", also: Sequence = ()
) -> Against:
    """Time forms of seconds against one. It runs between every two of them, so that both are its neighbours in time:
    what drifts falls on both sides of a ratio."""
    watch = Stopwatch(device, clock)
    for form in dict.fromkeys((base, *forms, *also)):
        warmed(form, watch)
    seconds, beside = np.empty((2, len(forms), repeat))
    runs, others = [], []
    for turn in range(repeat):
        turned = order(len(forms), turn)
        for first, *second in (turned[at : at + 2] for at in range(0, len(forms), 2)):
            seconds[first, turn] = watch(forms[first])
            runs.append(watch(base))
            beside[[first, *second], turn] = runs[-1]
            for other in second:
                seconds[other, turn] = watch(forms[other])
        others += [watch(form) for form in also]
    return Against(seconds, beside, np.array(runs), np.array(others))


def warmed(form: Callable, watch: Stopwatch) -> float:
    """The best of the calls that warm a form up, in seconds."""
    seconds = []
    while len(seconds) < 2 or (len(seconds) < WARM_UPS and sum(seconds) < ENOUGH):
        seconds.append(watch(form))
    return min(seconds)


def order(count: int, turn: int, group: int = 1) -> np.ndarray:
    """Who comes after whom in a repetition: the next one starts elsewhere and turns round."""
    turned = np.roll(np.arange(count), -group * (turn // 2))
    return turned if turn % 2 == 0 else turned[::-1]


def paired(over: np.ndarray, under: np.ndarray) -> dict:
    """The median ratio of two forms' seconds [repeat], and its interval."""
    ratio = over / under
    return {"ratio": rounded(np.median(ratio)), "ratio_95": interval(ratio)}


def interval(values: np.ndarray) -> list[float]:
    """Bootstrap 95 % interval of the median of `values` [n]."""
    draws = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    return [rounded(end) for end in np.percentile(np.median(values[draws], axis=1), [2.5, 97.5])]


def milliseconds(seconds: np.ndarray) -> dict:
    """Median and best of a form's seconds [repeat]."""
    return {"ms": rounded(1e3 * np.median(seconds)), "best_ms": rounded(1e3 * seconds.min())}


def rounded(value: float) -> float:
    """Four digits: more would be noise."""
    return float(f"{value:.4g}")


def planned(kind: type, arguments):
    """The plan of a command's flags, settled."""
    names = [name for name, entry in kind.__dataclass_fields__.items() if entry.init]
    return kind(**{name: getattr(arguments, name) for name in names}).settled()


def numbers(flag: str, text: str, most: int) -> tuple[int, ...]:
    """Whole numbers, comma between, each once in order: visual tokens from the most, which all else is compared to.

    Raises ValueError.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= most for part in parts):
        raise ValueError(f"--{flag} takes whole numbers from 1 to {most}, comma between, got {text!r}")
    return tuple(sorted({int(part) for part in parts}, reverse=flag == "visual"))


def clock_of(name: str, device: str, count: int) -> str:
    """The clock that a flag names. Raises ValueError for one that cannot be read here."""
    if name not in CLOCKS:
        raise ValueError(f"--clock must be one of {', '.join(CLOCKS)}, got {name!r}")
    if name == "cpu" and (device != "cpu" or count != 1):
        raise ValueError("--clock cpu is the time of one thread on a CPU: leave --device cpu and --threads 1")
    return name


CLOCK_HELP = "wall, or cpu: the time that the one thread ran, where other work shares the machine (%(default)s)"


@contextmanager
def threads(count: int):
    """So many threads of the CPU inside; 0: torch's own choice."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def phases_by(clock: str):
    """The engine tells its phases on a CPU by this clock inside, so that they and the whole are of one kind."""
    before = engine.reading.set(CLOCKS[clock])
    try:
        yield
    finally:
        engine.reading.reset(before)
