"""The figure of the README drawn from a record of `bench prefill`: measured, floor and FLOP bound by visual tokens."""

import json
import math
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from .. import svg
from ..svg import BOTTOM, TOP, ticks
from .goals import kept
from .prefill import setting
from .record import RESULTS

DECADES = [base * 10**power for power in range(-2, 6) for base in (1, 2, 5)]
DASHES = "", ' stroke-dasharray="6 4"', ' stroke-dasharray="2 3"'  # of the first regime, the second, the third


@dataclass(frozen=True)
class Logarithmic(svg.Panel):
    """A panel whose heights are logarithmic too."""

    def y(self, value: float) -> float:
        low, high, value = (math.log2(v) for v in (self.marks[0], self.marks[-1], value))
        return round(BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low), 1)


def figure(record: dict) -> str:
    """SVG: time and floor, speed-up and its bounds, both over visual tokens; a line for each batch and mode.

    Raises ValueError for a record of another benchmark.
    """
    if record.get("bench") != "prefill":
        raise ValueError(f"the figure is drawn from a record of bench prefill, got one of {record.get('bench')!r}")
    rows = sorted((r for r in record["rows"] if not r["what"]), key=lambda r: (r["batch"], r["mode"], r["visual"]))
    regimes = [[*part] for _, part in groupby(rows, key=lambda r: (r["batch"], r["mode"]))]
    counts = tuple(sorted({r["visual"] for r in rows}))
    if len(counts) < 2:
        raise ValueError("the figure needs a record of at least two counts of visual tokens")
    times = [ms for r in rows for ms in (r["ms"], r["floor_ms"]) if ms]
    most = max(max(r["flop_ratio"], r["ratio_95"][1]) for r in rows)
    low = max(value for value in DECADES if value <= min(times))
    high = min(value for value in DECADES if value >= max(times) and value > low)
    marks = tuple(value for value in DECADES if low <= value <= high)
    axis = "visual tokens of a prompt"
    left = Logarithmic("Reading a prompt, ms", axis, 72, 470, counts, marks, log=True)
    right = svg.Panel("Speed-up over all visual tokens", axis, 548, 936, counts, ticks([0.0, most]), log=True)
    parts = [*left.axes(), *right.axes()]
    for nth, regime in enumerate(regimes):
        dashes = DASHES[nth % len(DASHES)]
        parts += _regime(left, right, regime, dashes)
    lines = "solid", "dashed", "dotted"
    named = [_name(regime[0]) for regime in regimes]
    if len(named) > 1:
        named = [f"{name} {lines[nth % len(lines)]}" for nth, name in enumerate(named)]
    note = (
        f"Measured: {'; '.join(named)}; bars: 95\u00a0% intervals of the median of paired ratios. Floor and bounds "
        "are arithmetic: operations over the peak or bytes over the bandwidth, whichever takes longer. "
        f"{setting(record['conditions'], record['peaks'])}."
    )
    return svg.page("Prefill by visual tokens: measured, floor and FLOP bound", parts, note)


def _regime(left: svg.Panel, right: svg.Panel, rows: list[dict], dashes: str) -> list[str]:
    """Both panels' lines of one batch and mode."""
    bars = [f"M{right.x(r['visual'])} {right.y(r['ratio_95'][0])}V{right.y(r['ratio_95'][1])}" for r in rows]
    apart = any(r["bound"] and abs(r["bound"] / r["flop_ratio"] - 1) > 0.02 for r in rows)
    return [
        *_line(left, rows, "floor_ms", "tick", "floor", dashes, (8, 18)),
        *_line(right, rows, "flop_ratio", "Full", "FLOP bound", dashes, (8, -8)),
        *(_line(right, rows, "bound", "tick", "ratio of floors", dashes, (8, -8)) if apart else []),
        *_line(left, rows, "ms", "LongTail", "measured", dashes, (-8, -12)),
        f'<g class="LongTail"><path d="{"".join(bars)}" stroke-width="1"/></g>',
        *_line(right, rows, "ratio", "LongTail", "measured", dashes, (-10, 22)),
    ]


def _line(panel: svg.Panel, rows: list[dict], key: str, kind: str, label: str, dashes: str, by: tuple) -> list[str]:
    """A series, with dots where it was measured, and its name `by` so many pixels from its middle."""
    spots = [(panel.x(r["visual"]), panel.y(r[key])) for r in rows if r[key]]
    if not spots:
        return []
    steps, (x, y), (dx, dy) = " L".join(f"{x} {y}" for x, y in spots), spots[(len(spots) - 1) // 2], by
    dots = "".join(f'<circle cx="{x}" cy="{y}" r="3.5"/>' for x, y in spots) if kind == "LongTail" else ""
    anchor, wide = "start" if dx > 0 else "end", 2.5 if kind == "LongTail" else 1.5
    text = f'<text class="label {kind}" x="{x + dx:.1f}" y="{y + dy:.1f}" text-anchor="{anchor}">{label}</text>'
    return [
        f'<g class="{kind}"><title>{label}</title><path d="M{steps}" stroke-width="{wide}"{dashes}/>{dots}{text}</g>'
    ]


def _name(row: dict) -> str:
    return f"batch {row['batch']}, {row['mode']}"


def _newest() -> dict:
    """The newest record of `bench prefill` that is kept. Raises ValueError where there is none."""
    dated = {record["conditions"]["date"]: record for _, record in kept(RESULTS) if record["bench"] == "prefill"}
    if not dated:
        raise ValueError(f"there is no record of bench prefill in {RESULTS}: name one")
    return dated[max(dated)]


def add_flags(command):
    """The flags of `bench figure`."""
    command.add_argument(
        "record", nargs="?", help=f"a .json file that bench prefill wrote; else the newest in {RESULTS}"
    )
    command.add_argument("--out", default="assets/readme/speed.svg", help="the .svg file (%(default)s)")


def command(arguments):
    """`bench figure`: draw it."""
    if Path(arguments.out).suffix != ".svg":
        raise ValueError(f"--out takes a .svg file, got {arguments.out!r}")
    record = json.loads(Path(arguments.record).read_text(encoding="utf-8")) if arguments.record else _newest()
    Path(arguments.out).write_text(figure(record), encoding="utf-8")
