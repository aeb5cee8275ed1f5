"""Two forms of the same work raced against each other: nothing is timed unless both hand over the same."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor

from . import counted, goals, protocol
from .goals import NO_CPU, NO_GPU, Goal
from .protocol import WARM_UPS, milliseconds, paired
from .record import add_flags as output_flags
from .record import checked, conditions, deliver, device_of, machine, span, table

CHECKED_SEEDS = 3
WHERE = {"cpu": "CPU", "cuda": "GPU"}
HEADS = 16  # of the vision tower


class Disagreement(Exception):
    """Two forms of the same work hand over different results: their times mean nothing."""


@dataclass(frozen=True)
class Race:
    """The same work twice. Both callables return what they hand over, as a tensor, or `outcomes` tell it in the end."""

    method: str
    goal: float | None  # ratio aimed at, with one thread of a CPU
    given: str  # what both start from
    size: str  # of what is handed over
    plain: Callable
    ours: Callable
    checks: int = 1  # calls that must agree
    outcomes: tuple[Callable[[], Tensor], Callable[[], Tensor]] | None = None
    most: dict[str, dict[str, float]] = field(default_factory=dict)  # by device, what ours may take


@dataclass(frozen=True)
class Conditions:
    """What times depend on."""

    patches: int = 576
    width: int = 1024
    seed: int = 0
    device: str = "cpu"
    threads: int = 1
    repeat: int = 20
    clock: str = "wall"

    def __post_init__(self):
        for name, least in (("patches", 36), ("width", HEADS), ("seed", 0), ("threads", 1), ("repeat", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, got {getattr(self, name)}")
        if self.width % HEADS:
            raise ValueError(f"--width must be a multiple of {HEADS}, got {self.width}")
        protocol.clock_of(self.clock, self.device, self.threads)

    def record(self) -> dict:
        """Plain JSON values, with what was found out about the machine."""
        return {
            **conditions(self.device),
            **{"patches": self.patches, "width": self.width, "seed": self.seed, "dtype": "float32"},
            "clock": self.clock,
            **{"repeat": self.repeat, "warm_ups": WARM_UPS, "order": "rotated", "checked_seeds": CHECKED_SEEDS},
        }


# ---- racing


@torch.inference_mode()
def measure(under: Conditions, races: Callable[[Conditions], list[Race]]) -> dict:
    """Check, warm up, time. Raises Disagreement, before anything is timed, where two forms do not agree."""
    with protocol.threads(under.threads):
        found = under.record()
        for seed in range(under.seed, under.seed + CHECKED_SEEDS):
            for race in races(replace(under, seed=seed)):
                check(race)
        pairs = races(under)
        forms = [form for race in pairs for form in (race.plain, race.ours)]
        seconds = protocol.timed(forms, under.device, under.repeat, group=2, clock=under.clock)
        counts = [counted.count(race.ours, under.device) if race.most else {} for race in pairs]
    rows = [row(race, *seconds[2 * i : 2 * i + 2]) | counts[i] for i, race in enumerate(pairs)]
    aims = [goal for race, line in zip(pairs, rows, strict=True) for goal in aims_of(race, line, under.device)]
    return {"conditions": found, "rows": rows, "goals": [goal.record() for goal in aims]}


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


def row(race: Race, plain: np.ndarray, ours: np.ndarray) -> dict:
    """A race's numbers: times in milliseconds, the median of paired ratios and its interval."""
    times = {"published": milliseconds(plain), "ours": milliseconds(ours)}
    return {
        **{"method": race.method, "given": race.given, "size": race.size},
        **{f"{form}_{name}": value for form, part in times.items() for name, value in part.items()},
        **paired(plain, ours),
    }


def aims_of(race: Race, line: dict, device: str) -> list[Goal]:
    """How much faster ours is than the released form, on a CPU, and what it may take at most on either device."""
    here, found = device.partition(":")[0], line | {"ms": line["ours_ms"]}
    aims = [
        Goal(
            f"{race.method}: {name}, {WHERE[kind]}",
            found.get(name) if kind == here else None,
            most=most,
            unit=" ms" if name == "ms" else "",
            reason=NO_GPU if kind == "cuda" else NO_CPU,
        )
        for kind, told in race.most.items()
        for name, most in told.items()
    ]
    if race.goal:
        ratio = line["ratio"] if here == "cpu" else None
        aims.append(Goal(f"{race.method}: over its released form, CPU", ratio, race.goal, unit=" x", reason=NO_CPU))
    return aims


def words(found: dict) -> str:
    """The rows and their conditions as text."""
    head = ("method", "handed over", "published ms", "ours ms", "ratio", "95 %", "of the best")
    rows = [
        (
            *(r["method"], r["size"], f"{r['published_ms']:.3g}", f"{r['ours_ms']:.3g}", f"{r['ratio']:.1f} x"),
            *(span(r["ratio_95"]), f"{r['published_best_ms'] / r['ours_best_ms']:.1f} x"),
        )
        for r in found["rows"]
    ]
    given = [f"{r['method']}: from {r['given']}" for r in found["rows"]]
    return "\n".join([table(head, rows), "", goals.words(found["goals"]), "", _conditions(found["conditions"]), *given])


def _conditions(c: dict) -> str:
    return (
        f"{machine(c)}; n = {c['patches']}, D = {c['width']}, seed {c['seed']}; medians of {c['repeat']} repetitions "
        f"in rotated order after {c['warm_ups']} warm-ups; ratio: median of paired ratios and its bootstrap 95 % "
        f"interval; results equal on {c['checked_seeds']} seeds before anything was timed"
    )


# ---- the command


def add_flags(command):
    """The flags of `bench selectors`."""
    command.add_argument("--patches", type=int, default=576, help="patches of the image, n (%(default)s)")
    command.add_argument("--width", type=int, default=1024, help="channels of the vision tower, D (%(default)s)")
    command.add_argument("--seed", type=int, default=0, help="of the tensors (%(default)s)")
    command.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (%(default)s)")
    command.add_argument("--threads", type=int, default=1, help="of the CPU (%(default)s)")
    command.add_argument("--repeat", type=int, default=20, help="timed repetitions (%(default)s)")
    command.add_argument("--clock", default="wall", help=protocol.CLOCK_HELP)
    output_flags(command)


def command(name: str, races: Callable[[Conditions], list[Race]], arguments):
    """Run a benchmark of races. Ends with status 1 where forms disagree."""
    given = {field.name: getattr(arguments, field.name) for field in fields(Conditions)}
    given["device"] = device_of(arguments.device)
    checked(arguments.out)
    try:
        found = {"bench": name, **measure(Conditions(**given), races)}
    except Disagreement as disagreement:
        raise SystemExit(f"longtail: {disagreement}") from disagreement
    deliver(found, words(found), arguments)
