"""What was given, checked and named: a finite number in its range, or one sentence that says what it is instead."""

import math
import sys

MOST = 40  # characters of a value that a refusal repeats


def shown(value) -> str:
    """A value as a refusal repeats it: in one line and ASCII, its end cut off where it is long."""
    try:
        words = ascii(value)
    except (ValueError, RecursionError):  # Python prints no number of more than 4300 digits, and no endless nesting
        words = f"a {type(value).__name__} too long to print"
    words = " ".join(words.split())
    return words if len(words) <= MOST else words[:MOST] + "..."


def number(name: str, value, low: float, high: float = math.inf, whole: bool = False) -> int | float:
    """The number, an int where it must be whole. Raises ValueError for what is none (a bool is none), not finite, not
    whole or out of range."""
    got = f"got {shown(value)}"
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{name} must be a finite number, {got}")
    if whole and value != int(value):
        raise ValueError(f"{name} must be a whole number, {got}")
    if not low <= value <= high:
        allowed = f"between {_plain(low)} and {_plain(high)}" if high < math.inf else f"at least {_plain(low)}"
        raise ValueError(f"{name} must be {allowed}, {got}")
    return int(value) if whole else float(value)


def _plain(limit: float) -> str:
    """A limit in words: 0.01, 576, 2,147,483,647."""
    return f"{limit:g}" if abs(limit) < 10**5 else f"{limit:,.0f}"
