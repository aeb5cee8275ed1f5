"""The deep link: all that the page holds, but an uploaded image, stands in its address, and sets the page."""

import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

from longtail import REDUCERS, cost
from longtail.given import shown

from .arithmetic import BITS
from .chart import script
from .examples import Example
from .presets import Lanes

FOLLOWED = "() => { window.longtailFollowed = true; }"  # until then the page is not yet what the address says
OPENED = """() => {{ if (!window.longtailFollowed) return; const now = new URLSearchParams(location.search);
  '{0}' === 'compare' ? now.delete('tab') : now.set('tab', '{0}');
  history.replaceState(history.state, '', `?${{now}}`); }}"""
TABS = ("compare", "sweep", "results", "about")
LONGEST = 8000  # characters of an address that are read


@dataclass(frozen=True)
class Linked:
    """What an address asks for; None where it says nothing."""

    lanes: Lanes | None
    scene: Example | None
    question: str | None
    fields: dict  # by their names in FIELDS
    tab: str | None
    recorded: str | None = None  # the name of a recorded run


def linked(pairs: Sequence[tuple[str, str]], scenes: list[Example], recorded: Collection[str] = ()) -> Linked:
    """The page that an address's parameters describe. Raises ValueError, in a sentence, for one that cannot be."""
    if sum(len(key) + len(value) for key, value in pairs) > LONGEST:
        raise ValueError(f"the link is too long: at most {LONGEST:,} characters are read")
    given = dict(pairs)
    specs = [value for key, value in pairs if key == "m"]
    lanes = Lanes.of(specs) if specs else None
    if lanes:
        lanes.reducers()  # whose errors name the parameter
    names = {scene.name: scene for scene in scenes}
    if "example" in given:
        _one_of(names, "example", given["example"])
    if "recorded" in given:
        _one_of(recorded, "recorded", given["recorded"])
    if "tab" in given:
        _one_of(TABS, "tab", given["tab"])
    fields = {name: read(name, given[name]) for name, read in FIELDS.items() if name in given}
    scene = names.get(given.get("example"))
    return Linked(lanes, scene, given.get("q"), fields, given.get("tab"), given.get("recorded"))


def writer(usual: dict) -> str:
    """The script that writes the address; fields that are as `usual` are left out."""
    return script("link.js").replace("FIELDS", json.dumps([[name, usual[name]] for name in FIELDS]))


def _number(low: float, high: float, whole: bool, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high or (whole and value != int(value)):
        raise ValueError(f"{name} must be a number between {low} and {high}, got {shown(text)}")
    return int(value) if whole else value


def _one_of(known: Collection[str], name: str, text: str) -> str:
    if text not in known:
        raise ValueError(f"{name} must be one of {', '.join(known) or 'none'}, got {shown(text)}")
    return text


def _some_of(known: Collection[str], name: str, text: str) -> list[str]:
    return [_one_of(known, name, part) for part in text.split(",") if part]


FIELDS: dict[str, Callable] = {  # name in the address -> how its text is read
    "budget": partial(_number, 0, 576, True),
    "new": partial(_number, 1, 100_000, True),
    "temperature": partial(_number, 0, 2, False),
    "seed": partial(_number, 0, 2**31 - 1, True),
    "repeats": partial(_number, 2, 20, True),
    "arithmetic": partial(_one_of, cost.MODELS),
    "gpu": partial(_one_of, cost.SHEET),
    "bits": partial(_one_of, BITS),
    "scope": partial(_one_of, ("this", "scenes")),
    "methods": partial(_some_of, REDUCERS),
    "over": partial(_one_of, sorted({p.name for r in REDUCERS.values() for p in r.parameters()})),
    "values": lambda name, text: text,
    "sweep_new": partial(_number, 1, 100_000, True),
}
