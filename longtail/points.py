"""What a sweep runs: methods, each at the values of one parameter, read from text."""

import dataclasses
import math
from dataclasses import dataclass

from .given import shown
from .reducer import REDUCERS, Reducer, parse
from .reducers.full import Full

MOST = 200  # runs of one sweep
HOW = "numbers, comma between, or low:high:step"


@dataclass(frozen=True)
class Point:
    """A method with one parameter at one value, or as it comes."""

    method: str  # NAME or NAME:parameter=value
    parameter: str | None = None
    value: int | float | None = None

    def reducer(self) -> Reducer:
        """Raises ValueError where the method takes no such value."""
        if self.parameter is None:
            return parse(self.method)
        if self.parameter != "budget":
            return dataclasses.replace(parse(self.method), **{self.parameter: self.value})
        if not isinstance(self.value, int) or self.value < 1:
            raise ValueError(f"a budget must be a whole number of visual tokens, at least 1, got {shown(self.value)}")
        return parse(self.method, self.value)


def values(text: str) -> list[int | float]:
    """The values of `0.1,0.24,0.5`, of `0.05:1:0.05` (the upper end included), or of both. Raises ValueError."""
    given = [value for part in text.split(",") if part.strip() for value in _span(part.strip())]
    if not given:
        raise ValueError(f"there is no value to sweep: give {HOW}")
    return [int(value) if value == int(value) else value for value in dict.fromkeys(given)]


def _span(text: str) -> list[float]:
    try:
        ends = [float(end) for end in text.split(":")]
    except ValueError as error:
        raise ValueError(f"values are {HOW}, got {text[:40]!r}") from error
    if len(ends) == 1 and math.isfinite(ends[0]):
        return ends
    if len(ends) != 3 or not all(map(math.isfinite, ends)) or ends[0] > ends[1] or ends[2] <= 0:
        raise ValueError(f"values are {HOW}, with low below high and a step above 0, got {text[:40]!r}")
    low, high, step = ends
    if (high - low) / step >= MOST:
        raise ValueError(f"{text[:40]} is more than {MOST} values: take a larger step")
    return [round(low + i * step, 10) for i in range(math.floor((high - low) / step + 1e-9) + 1)]


def numbers_of(method: str) -> list[str]:
    """What can be swept of a method: its numeric parameters, and a budget where one changes it."""
    own = [p.name for p in parse(method).parameters() if p.kind in (int, float)]
    return own if "budget" in own or not _budgeted(method) else [*own, "budget"]


def _budgeted(method: str) -> bool:
    return parse(method, 16) != parse(method, 32)


def points(method: str, parameter: str, given: list[int | float]) -> list[Point]:
    """A method at each value; once, as it comes, where it has no such parameter. Raises ValueError for no method,
    and where the method takes none of the values."""
    if parameter not in numbers_of(method):
        return [Point(method)]
    asked = [Point(method, parameter, value) for value in given]
    refused = [error for point in asked if (error := _refusal(point))]
    if len(refused) == len(asked):
        raise refused[0]
    return asked


def _refusal(point: Point) -> ValueError | None:
    try:
        point.reducer()
    except ValueError as error:
        return error
    return None


def plan(methods: list[str], parameter: str, given: list[int | float]) -> list[Point]:
    """The points of all methods but Full, which every sweep runs. Raises ValueError where nothing can be swept."""
    methods = [method for method in dict.fromkeys(methods) if not isinstance(parse(method), Full)]
    if not methods:
        raise ValueError(f"there is no method to sweep: choose from {', '.join(n for n in REDUCERS if n != 'Full')}")
    known = list(dict.fromkeys(name for method in methods for name in numbers_of(method)))
    if parameter not in known:
        has = f"choose one of {', '.join(known)}" if known else "they have no number"
        raise ValueError(f"no parameter {shown(parameter)} of {', '.join(methods)} can be swept: {has}")
    return [point for method in methods for point in points(method, parameter, given)]
