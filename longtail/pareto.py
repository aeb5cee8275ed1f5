"""The figure of the README, drawn from a record of `results`: accuracy over visual tokens and over time, as SVG.

python -m longtail.pareto assets/tiny/results.json assets/readme/accuracy.svg
"""

import json
import math
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from textwrap import wrap

from .results import ORACLE

WIDTH, TOP, BOTTOM, LINE = 960, 70, 410, 17
BARRED = "LongTail", "Full"  # their intervals are drawn
MARKS = (0, 20, 40, 60, 70, 80, 85, 90, 93, 95, 97, 98, 99, 99.5)
STYLE = """svg{--paper:#fff;--ink:#1c2430;--soft:#66707e;--thin:#ccd1d8;--rule:#eef0f3;--accent:#b5411a}
@media(prefers-color-scheme:dark){svg{--paper:#0d1117;--ink:#e6e9ee;--soft:#98a2b0;--thin:#3d4651;--rule:#1c232c;
--accent:#ff8a57}}
text{font:13px system-ui,-apple-system,"Segoe UI","Liberation Sans",Arial,sans-serif;fill:var(--soft)}
.head{font-size:15px;font-weight:600;fill:var(--ink)}
.label{fill:var(--hue);paint-order:stroke;stroke:var(--paper);stroke-width:4px;stroke-linejoin:round}
.label.LongTail{font-weight:700}
path{fill:none;stroke:var(--hue)}circle{fill:var(--hue);stroke:var(--paper)}.rule{stroke:var(--rule)}
.thin{--hue:var(--thin)}.Random,.Oracle,.tick{--hue:var(--soft)}.Full,.front{--hue:var(--ink)}
.LongTail{--hue:var(--accent)}"""
BOLD = {"LongTail": (2.5, 4), "Full": (1.5, 4), "Random": (1.25, 2.5), ORACLE: (1.25, 2.5)}  # line, dot
AROUND = [(dx, dy) for far in (9, 20, 34) for dx, dy in ((-far, -far), (far, far + 6), (-far, 4), (far, 4), (0, -far))]


@dataclass(frozen=True)
class Panel:
    """Accuracy over one measured quantity: where it stands on the page and what its axes span."""

    head: str
    axis: str
    value: str  # key of a row
    factor: float
    left: int
    right: int
    ticks: tuple[float, ...]
    marks: tuple[float, ...]  # accuracies, per cent, marked from bottom to top
    log: bool = False

    def x(self, value: float) -> float:
        low, high, value = (math.log2(v) if self.log else v for v in (self.ticks[0], self.ticks[-1], value))
        return round(self.left + (self.right - self.left) * (value - low) / (high - low), 1)

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
        Panel("What accuracy costs in tokens", counted, "tokens", 1, 48, 500, counts, marks, log=True),
        Panel("What it costs in time", timed, "of_full", 100, 580, 936, _ticks(times), marks),
    )
    note = (
        f"Exact answers in per cent, mean over families of {rows[0]['questions']} questions on {rows[0]['scenes']} "
        "held-out scenes, on a logarithmic scale of errors; bars: 95\u00a0% intervals, bootstrap over scenes. Dotted: "
        f"the front, where nothing that costs as little is more accurate ({ORACLE}, told where objects are, left out). "
        f"Times: {'; '.join(record['timed'])}. Thin: {', '.join(name for name in methods if name not in BOLD)}."
    )
    lines = [f'<text x="48" y="{BOTTOM + 74 + LINE * i}">{line}</text>' for i, line in enumerate(wrap(note, 128))]
    height = BOTTOM + 74 + LINE * len(lines)
    drawn = [f"<title>Accuracy of {len(methods)} methods by visual tokens and by time</title>\n<style>{STYLE}</style>"]
    drawn += [f'<rect width="{WIDTH}" height="{height}" rx="6" fill="var(--paper)"/>']
    drawn += [part for panel in panels for part in _panel(panel, methods)]
    box = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {box}>', *drawn, *lines, "</svg>\n"])


def _between(values: list[float], marks: tuple[float, ...]) -> tuple[float, ...]:
    """The marks from the last one below all values to the first one above them."""
    low = max((mark for mark in marks if mark <= min(values)), default=marks[0])
    high = min((mark for mark in marks if mark >= max(values) and mark > low), default=marks[-1])
    return tuple(mark for mark in marks if low <= mark <= high)


def _ticks(values: list[float]) -> tuple[float, ...]:
    """Round numbers, at most seven, around the values."""
    span = max(values) - min(values) or 1
    step = next(s for power in range(-6, 9) for s in (10**power, 2 * 10**power, 5 * 10**power) if span / s <= 5)
    first, last = math.floor(min(values) / step), math.ceil(max(values) / step)
    return tuple(i * step for i in range(first, max(last, first + 1) + 1))


def _panel(panel: Panel, methods: dict[str, list[dict]]) -> list[str]:
    spots = {name: panel.spots(rows) for name, rows in methods.items()}
    front = _front(panel, {name: rows for name, rows in methods.items() if name != ORACLE})
    bold = [name for name in methods if name in BOLD]
    lines = {name: _line(panel, name, methods[name], spots[name]) for name in methods}
    steps = " L".join(f"{x} {y}" for _, x, y in front)
    dots = "".join(f'<circle cx="{x}" cy="{y}" r="3.5"/>' for name, x, y in front if name not in BOLD)
    parts = [*_axes(panel), *(lines[name] for name in methods if name not in BOLD)]
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


def _axes(panel: Panel) -> list[str]:
    parts = [f'<text class="head" x="{panel.left}" y="30">{panel.head}</text>']
    parts += [f'<text x="{panel.left}" y="{BOTTOM + 42}">{panel.axis}</text>']
    for value in panel.marks:
        y = panel.y(value)
        parts.append(f'<path class="rule" d="M{panel.left} {y}H{panel.right}"/>')
        parts.append(f'<text x="{panel.left - 8}" y="{y + 4}" text-anchor="end">{value}</text>')
    for value in panel.ticks:
        x = panel.x(value)
        parts.append(f'<path class="tick" d="M{x} {BOTTOM + 4}v5"/>')
        parts.append(f'<text x="{x}" y="{BOTTOM + 23}" text-anchor="middle">{value:.4g}</text>')
    return parts


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
