"""What every trial gives, and how it waits and reads."""

import re
import time
from collections.abc import Callable, Sized
from typing import NamedTuple

from demo.words import english

from .visitor import Turn

LONG, SHORT = "Describe the image.", "What shape is at the top?"  # the bundled model has much to say to the first
FEW = ("Full", "LongTail", "TopK", "H2O")


class Figure(NamedTuple):
    """One line of the table. `ok` is None where it could not be tried here; `timed`: it is a time or a size, which a
    loaded machine may miss."""

    name: str
    figure: str
    limit: str
    ok: bool | None
    timed: bool = False


def none(name: str, found: Sized) -> Figure:
    """There must be none of it."""
    return Figure(name, str(found or 0) if isinstance(found, dict | str) else str(len(found)), "0", not found)


def every(name: str, several: list) -> Figure:
    """All of them must be so."""
    return Figure(name, str(sum(map(bool, several))), str(len(several)), all(several))


def yes(name: str, so: object) -> Figure:
    """It must be so; a sentence says so too."""
    return Figure(name, so if isinstance(so, str) and so else "yes" if so else "no", "yes", bool(so))


def under(name: str, value: float, limit: float, unit: str = "s") -> Figure:
    """A time or a size that has a limit."""
    return Figure(name, f"{value:.2f} {unit}", f"{limit:g} {unit}", value <= limit, True)


def noted(name: str, value: float, unit: str) -> Figure:
    """A time or a size that has none."""
    return Figure(name, f"{value:.2f} {unit}", "-", True, True)


def trouble(turn: Turn) -> str:
    """What a visitor reads of what went wrong, on the page or through the API."""
    said = [turn.refused, turn.part("trouble"), turn.part("sweep-trouble"), turn.part("sweep-refused")]
    said += [turn.part("refusal", column) for column in range(4)]
    return " ".join(english(str(one)) for one in said if one)


def tells(sentence: str) -> bool:
    """Whether a sentence tells a position and a wait."""
    wait = re.search(r"\d[\d.]* ?(s\b|second|min)", sentence)
    return bool(wait and re.search(r"\d", sentence.replace(wait[0], "", 1)))


def within(what: Callable[[], object], seconds: float) -> bool:
    """Wait until that is so, for so long at most; whether it was."""
    deadline = time.perf_counter() + seconds
    while not what():
        if time.perf_counter() > deadline:
            return False
        time.sleep(0.005)
    return True


def quantile(values: list[float], share: float) -> float:
    """The value that this share is at most."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]
