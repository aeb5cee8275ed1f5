"""The deep link: all that the page holds, but an uploaded image, stands in its address, and sets the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .chart import script
from .examples import Example
from .presets import Lanes

SCRIPT = script("link.js")
FOLLOWED = "() => { window.longtailFollowed = true; }"  # until then the page is not yet what the address says
OPENED = """() => {{ if (!window.longtailFollowed) return; const now = new URLSearchParams(location.search);
  '{0}' === 'compare' ? now.delete('tab') : now.set('tab', '{0}');
  history.replaceState(history.state, '', `?${{now}}`); }}"""
TABS = ("compare", "sweep", "results", "about")
NUMBERS = {"budget": (0, 576), "new": (1, 100_000), "temperature": (0, 2), "seed": (0, 2**31 - 1), "repeats": (2, 20)}
LONGEST = 8000  # characters of an address that are read


@dataclass(frozen=True)
class Linked:
    """What an address asks for; None where it says nothing."""

    lanes: Lanes | None
    scene: Example | None
    question: str | None
    numbers: dict[str, float]
    tab: str | None


def linked(pairs: Sequence[tuple[str, str]], scenes: list[Example]) -> Linked:
    """The page that an address's parameters describe. Raises ValueError, in a sentence, for one that cannot be."""
    if sum(len(key) + len(value) for key, value in pairs) > LONGEST:
        raise ValueError(f"the link is too long: at most {LONGEST:,} characters are read")
    given = dict(pairs)
    specs = [value for key, value in pairs if key == "m"]
    lanes = Lanes.of(specs) if specs else None
    if lanes:
        lanes.reducers()  # whose errors name the parameter
    names = {scene.name: scene for scene in scenes}
    if "example" in given and given["example"] not in names:
        raise ValueError(f"there is no example {given['example']!r}: choose one of {', '.join(names)}")
    if given.get("tab", TABS[0]) not in TABS:
        raise ValueError(f"the tab must be one of {', '.join(TABS)}, got {given['tab']!r}")
    numbers = {name: _number(name, given[name]) for name in NUMBERS if name in given}
    return Linked(lanes, names.get(given.get("example")), given.get("q"), numbers, given.get("tab"))


def _number(name: str, text: str) -> float:
    low, high = NUMBERS[name]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high or (name != "temperature" and value != int(value)):
        raise ValueError(f"{name} must be a number between {low} and {high}, got {text!r}")
    return value if name == "temperature" else int(value)
