"""The figure of the README, drawn from a record of `results`: accuracy over visual tokens and over time, as SVG.

python -m longtail.pareto assets/tiny/results.json assets/readme/accuracy.svg
"""

import json
import math
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from . import svg as drawing
from .results import ORACLE
from .svg import BOTTOM, TOP, ticks

BARRED = "LongTail", "Full"  # their intervals are drawn
MARKS = (0, 20, 40, 60, 70, 80, 85, 90, 93, 95, 97, 98, 99, 99.5)
BOLD = {"LongTail": (2.5, 4), "Full": (1.5, 4), "Random": (1.25, 2.5), ORACLE: (1.25, 2.5)}  # line, dot
AROUND = [(dx, dy) for far in (9, 20, 34) for dx, dy in ((-far, -far), (far, far + 6), (-far, 4), (far, 4), (0, -far))]


@dataclass(frozen=True)
class Panel(drawing.Panel):
    """Accuracy over one measured quantity, on a logarithmic scale of errors; marks are per cent."""

    value: str = ""  # key of a row
    factor: float = 1

    def y(self, per_cent: float) -> float:
        low, high, wrong = (math.log2(100 - v) for v in (self.marks[0], self.marks[-1], min(per_cent, self.marks[-1])))
        return round(BOTTOM - (BOTTOM - TOP) * (wrong - low) / (high - low), 1)

    def spots(self, rows: list[dict]) -> list[tuple[float, float]]:
        """Where the rows of a method stand, from left to right."""
        return sorted((self.x(self.factor * row[self.value]), self.y(100 * row["mean"])) for row in rows)


def svg(record: dict) -> str:
    """The figure as SVG: accuracy over visual tokens and over time. LongTail and the front stand out.

    Raises ValueError where no row has numbers, or one has no times.
    """
    rows = [row for row in record["rows"] if "reason" not in row]
    if not rows:
        raise ValueError("there is no row to draw: no cell could be run")
    if any(row["of_full"] is None for row in rows):
        raise ValueError("the figure draws times, and some rows have none: evaluate them without --batch")
    methods = {row["method"]: [other for other in rows if other["method"] == row["method"]] for row in rows}
    tokens, times = [row["tokens"] for row in rows], [100 * row["of_full"] for row in rows]
    counts = sorted({row["budget"] for row in rows if row["budget"]} | {max(tokens)})
    counts = tuple(counts if min(tokens) > 0.9 * counts[0] else [min(tokens), *counts])
    ends = [end for row in rows for end in (row["mean"], *(row["mean_95"] if row["method"] in BARRED else ()))]
    marks = _between([100 * end for end in ends], MARKS)
    counted, timed = "visual tokens a decoder layer reads, mean over layers", "time to the first token, % of Full's"
    panels = (
        Panel("What accuracy costs in tokens", counted, 48, 500, counts, marks, log=True, value="tokens"),
        Panel("What it costs in time", timed, 580, 936, ticks(times), marks, value="of_full", factor=100),
    )
    note = (
        f"Exact answers in per cent, mean over families of {rows[0]['questions']} questions on {rows[0]['scenes']} "
        "held-out scenes, on a logarithmic scale of errors; bars: 95\u00a0% intervals, bootstrap over scenes. Dotted: "
        f"the front, where nothing that costs as little is more accurate ({ORACLE}, told where objects are, left out). "
        f"Times: {'; '.join(record['timed'])}. Thin: {', '.join(name for name in methods if name not in BOLD)}."
    )
    parts = [part for panel in panels for part in _panel(panel, methods)]
    return drawing.page(f"Accuracy of {len(methods)} methods by visual tokens and by time", parts, note)


def _between(values: list[float], marks: tuple[float, ...]) -> tuple[float, ...]:
    """The marks from the last one below all values to the first one above them."""
    low = max((mark for mark in marks if mark <= min(values)), default=marks[0])
    high = min((mark for mark in marks if mark >= max(values) and mark > low), default=marks[-1])
    return tuple(mark for mark in marks if low <= mark <= high)


def _panel(panel: Panel, methods: dict[str, list[dict]]) -> list[str]:
    spots = {name: panel.spots(rows) for name, rows in methods.items()}
    front = _front(panel, {name: rows for name, rows in methods.items() if name != ORACLE})
    bold = [name for name in methods if name in BOLD]
    lines = {name: _line(panel, name, methods[name], spots[name]) for name in methods}
    steps = " L".join(f"{x} {y}" for _, x, y in front)
    dots = "".join(f'<circle cx="{x}" cy="{y}" r="3.5"/>' for name, x, y in front if name not in BOLD)
    parts = [*panel.axes(), *(lines[name] for name in methods if name not in BOLD)]
    parts.append(f'<g class="front"><path d="M{steps}" stroke-dasharray="1 4" stroke-linecap="round"/>{dots}</g>')
    parts += [lines[name] for name in sorted(bold, key=lambda name: name == "LongTail")]  # the last lies on top
    anchors = {name: spots[name] for name in bold}
    anchors = {"LongTail": [], **anchors} if "LongTail" in bold else anchors
    for name, x, y in front:
        if name not in BOLD:
            anchors.setdefault(name, []).append((x, y))
    return parts + _labels(panel, anchors, spots)


def _front(panel: Panel, methods: dict[str, list[dict]]) -> list[tuple[str, float, float]]:
    """The points that nothing as cheap, to the token or per cent, is as accurate as: name and place."""
    rows = [row for part in methods.values() for row in part]
    front, best = [], 0.0
    for row in sorted(rows, key=lambda row: (round(panel.factor * row[panel.value]), -row["mean"], row["method"])):
        if not front or row["mean"] > best:
            best = row["mean"]
            front.append((row["method"], *panel.spots([row])[0]))
    return front


def _line(panel: Panel, name: str, rows: list[dict], spots: list[tuple[float, float]]) -> str:
    wide, dot = BOLD.get(name, (1, 1.5))
    dashes = ' stroke-dasharray="5 4"' if name == ORACLE else ""
    steps = " L".join(f"{x} {y}" for x, y in spots)
    parts = [f'<g class="{name if name in BOLD else "thin"}"><title>{name}</title>']
    parts += [f'<path d="M{steps}" stroke-width="{wide}"{dashes}/>']
    if name in BARRED:
        ends = [(panel.x(panel.factor * r[panel.value]), *(panel.y(100 * end) for end in r["mean_95"])) for r in rows]
        parts += [f'<path d="M{x} {low}V{high}" stroke-width="1"/>' for x, low, high in ends]
    return "".join([*parts, *(f'<circle cx="{x}" cy="{y}" r="{dot}"/>' for x, y in spots), "</g>"])


def _labels(panel: Panel, anchors: dict[str, list], spots: dict[str, list]) -> list[str]:
    """Each name near one of its points, where it hides least."""
    ink = []
    for name, part in spots.items():
        weight = 2 if name in anchors else 0.1
        steps = [*pairwise([*part, part[-1]]), *(((x, y - 25), (x, y + 25)) for x, y in part if name in BARRED)]
        for (x0, y0), (x1, y1) in steps:
            ink += [(x0 + (x1 - x0) * i / 36, y0 + (y1 - y0) * i / 36, weight) for i in range(36)]
    parts, boxes = [], []
    for name, places in anchors.items():
        wide, tried = 8 * len(name), []
        for nth, (x, y, dx, dy) in enumerate((*place, *by) for place in reversed(places) for by in AROUND):
            left = x + dx - (wide if dx < 0 else 0 if dx else wide / 2)
            box = (left - 2, y + dy - 12, left + wide + 2, y + dy + 4)
            hidden = sum(w for px, py, w in ink if box[0] < px < box[2] and box[1] < py < box[3])
            hidden += 99 * sum(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in boxes)
            outside = box[0] < panel.left or box[2] > panel.right + 20 or box[1] < TOP - 30 or box[3] > BOTTOM
            tried.append((hidden + 999 * outside + (abs(dx) + abs(dy)) / 2, nth, box, x + dx, y + dy, dx))
        _, _, box, x, y, dx = min(tried)
        boxes.append(box)
        kind, anchor = name if name in BOLD else "front", "end" if dx < 0 else "start" if dx else "middle"
        parts.append(f'<text class="label {kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{name}</text>')
    return parts


def draw(record: Path, figure: Path):
    """The figure of a record's file."""
    figure.write_text(svg(json.loads(record.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    draw(*map(Path, sys.argv[1:]))
