"""Measured time: two forms of the same work raced against each other, `python -m longtail bench ...`.

Nothing is timed unless both forms hand over the same. One warmed process; every repetition runs every form once, in an
order that rotates; the ratio is the median of paired ratios, its interval the bootstrap's 95 %. What races: `races`.
"""

import json
import math
import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

WARM_UPS, RESAMPLES, CHECKED_SEEDS = 5, 2000, 3
LEAST, MOST_CALLS = 0.005, 100  # seconds of a measurement of a short form; calls in one
VERDICTS = {True: "met", False: "missed", None: ""}
HEADS = 16  # of the vision tower
FLUSH = 256 * 2**20  # bytes written between two measurements on a GPU, to empty its second-level cache


class Disagreement(Exception):
    """Two forms of the same work hand over different results: their times mean nothing."""


@dataclass(frozen=True)
class Race:
    """The same work twice. Both callables return what they hand over, as a tensor, or `outcomes` tell it in the end."""

    method: str
    goal: float | None  # ratio aimed at
    given: str  # what both start from
    size: str  # of what is handed over
    plain: Callable
    ours: Callable
    checks: int = 1  # calls that must agree
    outcomes: tuple[Callable[[], Tensor], Callable[[], Tensor]] | None = None


@dataclass(frozen=True)
class Conditions:
    """What times depend on."""

    patches: int = 576
    width: int = 1024
    seed: int = 0
    device: str = "cpu"
    threads: int = 1
    repeat: int = 20

    def __post_init__(self):
        for name, least in (("patches", 36), ("width", HEADS), ("seed", 0), ("threads", 1), ("repeat", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, got {getattr(self, name)}")
        if self.width % HEADS:
            raise ValueError(f"--width must be a multiple of {HEADS}, got {self.width}")

    def record(self) -> dict:
        """Plain JSON values, with what was found out about the machine; `load`: what ran beside, mean of a minute."""
        cuda = self.device.startswith("cuda")
        name = torch.cuda.get_device_name(self.device) if cuda else f"{platform.machine()} CPU"
        return {
            **{"patches": self.patches, "width": self.width, "seed": self.seed, "dtype": "float32"},
            **{"device": self.device, "device_name": name, "threads": self.threads, "torch": torch.__version__},
            **{
                "processors": os.cpu_count(),
                "load": _rounded(os.getloadavg()[0]) if hasattr(os, "getloadavg") else None,
            },
            **{"repeat": self.repeat, "warm_ups": WARM_UPS, "order": "rotated", "checked_seeds": CHECKED_SEEDS},
        }


# ---- the protocol


@torch.inference_mode()
def measure(conditions: Conditions, races: Callable[[Conditions], list[Race]]) -> dict:
    """Check, warm up, time. Raises Disagreement, before anything is timed, where two forms do not agree."""
    under, before = conditions.record(), torch.get_num_threads()
    torch.set_num_threads(conditions.threads)
    try:
        for seed in range(conditions.seed, conditions.seed + CHECKED_SEEDS):
            for race in races(replace(conditions, seed=seed)):
                check(race)
        field = races(conditions)
        seconds = timed([form for race in field for form in (race.plain, race.ours)], conditions)
    finally:
        torch.set_num_threads(before)
    rows = [row(race, *seconds[2 * i : 2 * i + 2]) for i, race in enumerate(field)]
    return {"conditions": under, "rows": rows}


def check(race: Race):
    """Raises Disagreement unless both forms hand over the same at every call, or end in the same outcome."""
    for _ in range(race.checks):
        results = race.plain(), race.ours()
        if not race.outcomes:
            _agree(race, *results)
    if race.outcomes:
        _agree(race, *(outcome() for outcome in race.outcomes))


def _agree(race: Race, plain: Tensor, ours: Tensor):
    same = plain.shape == ours.shape
    if not (same and torch.allclose(plain.double(), ours.double(), rtol=1e-4, atol=1e-5)):
        raise Disagreement(f"{race.method}: ours and the published form do not hand over the same; nothing is timed")


def timed(forms: list[Callable], conditions: Conditions) -> np.ndarray:
    """Seconds a call [forms, repeat]: every repetition runs each form, the next one starts elsewhere and turns round.

    On a CPU a short form is called until `LEAST` seconds are full: what else runs would weigh too much on one call.
    """
    wait, flush = _waiting(conditions.device)

    def took(form: Callable, calls: int) -> float:
        wait()
        start = time.perf_counter()
        for _ in range(calls):
            form()
        wait()
        return (time.perf_counter() - start) / calls

    warm = [min(took(form, 1) for _ in range(WARM_UPS)) for form in forms]
    least = LEAST if conditions.device == "cpu" else 0
    calls = [max(math.ceil(least / max(seconds, LEAST / MOST_CALLS)), 1) for seconds in warm]
    seconds = np.empty((len(forms), conditions.repeat))
    for turn in range(conditions.repeat):
        order = np.roll(np.arange(len(forms)), -2 * (turn // 2))
        for i in order if turn % 2 == 0 else order[::-1]:
            flush()
            seconds[i, turn] = took(forms[i], calls[i])
    return seconds


def row(race: Race, plain: np.ndarray, ours: np.ndarray) -> dict:
    """A race's numbers: times in milliseconds, the median of paired ratios and its interval."""
    ratio = plain / ours
    draws = np.random.default_rng(0).integers(0, len(ratio), (RESAMPLES, len(ratio)))
    low, high = np.percentile(np.median(ratio[draws], axis=1), [2.5, 97.5])
    times = {"published": plain, "ours": ours}
    return {
        **{"method": race.method, "given": race.given, "size": race.size, "goal": race.goal},
        **{f"{name}_ms": _rounded(1e3 * np.median(values)) for name, values in times.items()},
        **{f"{name}_best_ms": _rounded(1e3 * values.min()) for name, values in times.items()},
        **{"ratio": _rounded(np.median(ratio)), "ratio_95": [_rounded(low), _rounded(high)]},
        "met": bool(np.median(ratio) >= race.goal) if race.goal else None,
    }


def table(record: dict) -> str:
    """The rows and their conditions as text."""
    head = ("method", "handed over", "published ms", "ours ms", "ratio", "95 %", "of the best", "goal", "")
    lines = [head] + [
        (
            *(r["method"], r["size"], f"{r['published_ms']:.2f}", f"{r['ours_ms']:.2f}", f"{r['ratio']:.1f} x"),
            *("{:.1f} to {:.1f}".format(*r["ratio_95"]), f"{r['published_best_ms'] / r['ours_best_ms']:.1f} x"),
            *(f"{r['goal']:g} x" if r["goal"] else "–", VERDICTS[r["met"]]),
        )
        for r in record["rows"]
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    given = [f"{r['method']}: from {r['given']}" for r in record["rows"]]
    return "\n".join([*rows, "", _conditions(record["conditions"]), *given])


def _conditions(c: dict) -> str:
    return (
        f"{c['device_name']} ({c['device']}), {c['dtype']}, {c['threads']} thread{'s' * (c['threads'] > 1)}, torch "
        f"{c['torch']}, load {c['load']} on {c['processors']} processors; n = {c['patches']}, D = {c['width']}, seed "
        f"{c['seed']}; medians of {c['repeat']} repetitions in rotated order after {c['warm_ups']} warm-ups; ratio: "
        f"median of paired ratios and its bootstrap 95 % interval; results equal on {c['checked_seeds']} seeds before "
        "anything was timed"
    )


def _waiting(device: str) -> tuple[Callable, Callable]:
    """How to wait for the device, and how to empty its cache."""
    if not device.startswith("cuda"):
        return (lambda: None), (lambda: None)
    spare = torch.empty(FLUSH, dtype=torch.uint8, device=device)
    return (lambda: torch.cuda.synchronize(device)), spare.zero_


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


# ---- the command


def device_of(text: str) -> str:
    """The device a flag names; `auto` is the GPU where there is one. Raises ValueError for one that is not here."""
    if text == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise ValueError(f"--device must be cpu, cuda or cuda:N, got {text!r}")
    if text != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"--device {text}: there is no CUDA device here")
    return text


def add_flags(command):
    """The flags of every benchmark."""
    command.add_argument("--patches", type=int, default=576, help="patches of the image, n (%(default)s)")
    command.add_argument("--width", type=int, default=1024, help="channels of the vision tower, D (%(default)s)")
    command.add_argument("--seed", type=int, default=0, help="of the tensors (%(default)s)")
    command.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (%(default)s)")
    command.add_argument("--threads", type=int, default=1, help="of the CPU (%(default)s)")
    command.add_argument("--repeat", type=int, default=20, help="timed repetitions (%(default)s)")
    command.add_argument("--out", help="write the record to this .json file")
    command.add_argument("--json", action="store_true", help="print JSON alone, without the table")


def command(name: str, races: Callable[[Conditions], list[Race]], arguments):
    """Run a benchmark; the table, and on the last line the record as JSON. Ends with status 1 where forms disagree."""
    given = {field.name: getattr(arguments, field.name) for field in fields(Conditions)}
    given["device"] = device_of(arguments.device)
    if arguments.out and Path(arguments.out).suffix != ".json":
        raise ValueError(f"--out takes a .json file, got {arguments.out!r}")
    try:
        record = {"bench": name, **measure(Conditions(**given), races)}
    except Disagreement as disagreement:
        raise SystemExit(f"longtail: {disagreement}") from disagreement
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if not arguments.json:
        print(table(record), end="\n\n")
    print(json.dumps(record))
