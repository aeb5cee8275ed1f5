"""What is aimed at, what was measured, and the verdict: met, missed, reported, or why it was not run here."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from .record import RESULTS, span, table

NO_GPU = "not run here: needs a CUDA device"
HEAD = "goal", "aim", "measured", "verdict"
NO_CPU = "not run here: is measured on a CPU"
REFUSED = "{} could not be captured as a CUDA graph, the log says why: rows of mode graph were launched op by op"


@dataclass(frozen=True)
class Goal:
    """A number to be reached from below (`least`) or above (`most`); with neither it is reported, no more.

    `measured` is None where nothing could be, and `reason` says why. With a `doubt` no number meets a goal.
    """

    what: str
    measured: float | None
    least: float | None = None
    most: float | None = None
    unit: str = ""
    reason: str = NO_GPU
    doubt: str = ""

    @property
    def met(self) -> bool | None:
        """Whether it is; None where nothing was measured, it is in doubt, or nothing is aimed at."""
        if self.measured is None or self.doubt or self.least is self.most is None:
            return None
        return (self.least is None or self.measured >= self.least) and (self.most is None or self.measured <= self.most)

    @property
    def verdict(self) -> str:
        """One of met, missed, reported, or the reason, or the doubt."""
        if self.measured is None:
            return self.reason
        return f"in doubt: {self.doubt}" if self.doubt else {True: "met", False: "missed", None: "reported"}[self.met]

    @property
    def aim(self) -> str:
        """The number aimed at."""
        signs = ((">=", self.least), ("<=", self.most))
        return " ".join(f"{sign} {value:g}{self.unit}" for sign, value in signs if value is not None) or "no goal"

    def unless(self, ends: list[float]) -> "Goal":
        """This goal, in doubt where the 95 % interval of what was measured reaches across what is aimed at."""
        if self.measured is None:
            return self
        sides = {replace(self, measured=end).met for end in ends}
        return replace(self, doubt=f"95 % interval {span(ends)}") if len(sides) > 1 else self

    def record(self) -> dict:
        """Plain JSON values."""
        return asdict(self) | {"aim": self.aim, "met": self.met, "verdict": self.verdict}


def words(goals: list[dict]) -> str:
    """Goal, measured, verdict: a line each, from their records."""
    return table(HEAD, [_cells(goal) for goal in goals])


def _cells(goal: dict) -> tuple[str, ...]:
    measured = "" if goal["measured"] is None else f"{goal['measured']:.3g}{goal['unit']}"
    return goal["what"], goal["aim"], measured, goal["verdict"]


# ---- `bench goals`: of all records that are kept


def kept(folder: str) -> list[tuple[Path, dict]]:
    """The newest record of each benchmark on each kind of device in a folder, and its file.

    Raises ValueError where there is no folder, or no record in it.
    """
    newest = {}
    for file in sorted(Path(folder).glob("*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        key, dated = (record["bench"], record["conditions"]["device"]), (record["conditions"]["date"], file)
        if key not in newest or dated > newest[key][0]:
            newest[key] = dated, record
    if not newest:
        raise ValueError(f"there is no record of a benchmark in {folder}: make some with --out {folder}")
    return [(file, record) for (_, file), record in newest.values()]


def listed(records: list[tuple[Path, dict]]) -> list[tuple[dict, Path, dict]]:
    """Every goal once, with the record it is from, where one could measure it that one; the measured ones first."""
    found = {}
    for file, record in records:
        for goal in record.get("goals", []):
            key = goal["what"], goal["aim"]
            if key not in found or found[key][0]["measured"] is None:
                found[key] = goal, file, record
    return sorted(found.values(), key=lambda told: told[0]["measured"] is None)


def markdown(folder: str) -> str:
    """The table of the README."""
    lines = ["| goal | aim | measured | | record |", "|---|---|---|---|---|"]
    for goal, file, record in listed(kept(folder)):
        under = record["conditions"]
        where = f"[{record['bench']}]({folder}/{file.name}), {under['date'][:10]}, load {under['load']}"
        lines.append(f"| {' | '.join(_cells(goal))} | {'' if goal['measured'] is None else where} |")
    return "\n".join(lines)


def add_flags(command):
    """The flags of `bench goals`."""
    command.add_argument("folder", nargs="?", default=RESULTS, help="of records (%(default)s)")
    command.add_argument("--markdown", action="store_true", help="print the table of the README")


def command(arguments):
    """`bench goals`: goal, aim, measured, verdict, from the newest records."""
    folder = arguments.folder
    print(markdown(folder) if arguments.markdown else words([goal for goal, _, _ in listed(kept(folder))]))
