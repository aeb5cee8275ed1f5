"""What the README's figures share: the page, its colours in light and dark, a panel's axes, round numbers."""

import math
from dataclasses import dataclass
from textwrap import wrap

WIDTH, TOP, BOTTOM, LINE = 960, 70, 410, 17
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


@dataclass(frozen=True)
class Panel:
    """One plot: where it stands on the page and what its axes span; `y` is linear unless a figure has its own."""

    head: str
    axis: str
    left: int
    right: int
    ticks: tuple[float, ...]
    marks: tuple[float, ...]  # marked from bottom to top
    log: bool = False  # of the axis below

    def x(self, value: float) -> float:
        """Where a value stands."""
        low, high, value = (math.log2(v) if self.log else v for v in (self.ticks[0], self.ticks[-1], value))
        return round(self.left + (self.right - self.left) * (value - low) / (high - low), 1)

    def y(self, value: float) -> float:
        """How high a value stands."""
        low, high = self.marks[0], self.marks[-1]
        return round(BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low), 1)

    def axes(self) -> list[str]:
        """Head, axis, a rule for each mark, a tick for each number below."""
        parts = [f'<text class="head" x="{self.left}" y="30">{self.head}</text>']
        parts += [f'<text x="{self.left}" y="{BOTTOM + 42}">{self.axis}</text>']
        for value in self.marks:
            y = self.y(value)
            parts.append(f'<path class="rule" d="M{self.left} {y}H{self.right}"/>')
            parts.append(f'<text x="{self.left - 8}" y="{y + 4}" text-anchor="end">{value}</text>')
        for value in self.ticks:
            x = self.x(value)
            parts.append(f'<path class="tick" d="M{x} {BOTTOM + 4}v5"/>')
            parts.append(f'<text x="{x}" y="{BOTTOM + 23}" text-anchor="middle">{value:.4g}</text>')
        return parts


def page(title: str, parts: list[str], note: str) -> str:
    """The whole figure: its parts, and the note below them in lines."""
    lines = [f'<text x="48" y="{BOTTOM + 74 + LINE * i}">{line}</text>' for i, line in enumerate(wrap(note, 128))]
    height = BOTTOM + 74 + LINE * len(lines)
    drawn = [f"<title>{title}</title>\n<style>{STYLE}</style>"]
    drawn += [f'<rect width="{WIDTH}" height="{height}" rx="6" fill="var(--paper)"/>', *parts]
    box = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {box}>', *drawn, *lines, "</svg>\n"])


def ticks(values: list[float]) -> tuple[float, ...]:
    """Round numbers, at most seven, around the values."""
    span = max(values) - min(values) or 1
    step = next(s for power in range(-6, 9) for s in (10**power, 2 * 10**power, 5 * 10**power) if span / s <= 5)
    first, last = math.floor(min(values) / step), math.ceil(max(values) / step)
    return tuple(i * step for i in range(first, max(last, first + 1) + 1))
