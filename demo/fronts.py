"""Fronts as Plotly figures: what agreement, or accuracy, costs in tokens and in time."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from textwrap import wrap

import plotly.graph_objects as go

from longtail import results
from longtail.front import front

from .words import say

ACCENT, QUIET, RULE = "#c8501f", "#7d786e", "rgba(125, 120, 110, 0.18)"
OTHERS = ("#21808f", "#9a5b9c", "#4c8540", "#4b76c2", "#9a7412", "#b9556f", "#6b6fb0", "#3d8a6d")
OWN = {"LongTail": ACCENT, "Full": QUIET, "Random": QUIET, results.ORACLE: QUIET}
SANS = '-apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif'
FONT = {"family": SANS, "size": 12, "color": QUIET}
HEIGHT, TOP, BOTTOM, LEFT = 440, 40, 52, 36
APART, BESIDE = 16, 0.12  # pixels of a line of a name; share of the width within which two names may meet
LEAST = 0.5  # tokens; an axis in octaves has no zero
MARKS = (0, 20, 40, 60, 70, 80, 85, 90, 93, 95, 97, 98, 99, 99.5)


def swept(rows: list[dict], cost: str = "layer_mean") -> go.Figure:
    """Agreement over `layer_mean` or `first_of_full`, of rows of `front.summary`; customdata is the spec."""
    factor = 100 if cost == "first_of_full" else 1
    points = [
        {"method": row["method"], "x": factor * row[cost], "y": 100 * row["agreement"], "key": row["spec"]}
        | {"text": _about(row)}
        for row in rows
    ]
    best = [(factor * row[cost], 100 * row["agreement"]) for row in front(rows, cost)]
    across = _times(points) if cost == "first_of_full" else _tokens(points)
    return _figure(points, best, across, _shares(points), bold=lambda name: True, lined=cost == "layer_mean")


def measured(rows: list[dict], cost: str = "tokens", family: str | None = None, chosen: tuple = ()) -> go.Figure:
    """Accuracy over `tokens` or `of_full`, from rows of `results`: the mean, or one family; `chosen` methods stand out.

    The front leaves the Oracle out, which was told where to look. Without `chosen`, what is on the front stands out.
    """
    factor = 100 if cost == "of_full" else 1
    fine = [row for row in rows if "reason" not in row and (family is None or family in row["families"])]
    fine = sorted(fine, key=lambda row: row["tokens"])
    marks = {id(row): row["mean"] if family is None else row["families"][family][0] for row in fine}
    points = [
        {"method": row["method"], "x": max(factor * row[cost], LEAST), "y": 100 * marks[id(row)], "key": None}
        | {"text": _told(row, marks[id(row)], family)}
        for row in fine
    ]
    rivals = [row | {"agreement": marks[id(row)]} for row in fine if row["method"] != results.ORACLE]
    chain = front(rivals, cost)
    names = set(chosen) or {row["method"] for row in chain} | {"LongTail", "Full"}
    best = [(factor * row[cost], 100 * row["agreement"]) for row in chain]
    across = _times(points) if cost == "of_full" else _tokens(points)
    return _figure(points, best, across, _right(points), bold=names.__contains__)


def _about(row: dict) -> str:
    counts = say("front_swept", f"{row['layer_mean']:.0f}", _percent(row["agreement"]), f"{row['kl']:.2g}")
    head = [f"<b>{escape(row['spec'])}</b>", counts, _first(row["first_token"], row["first_of_full"])]
    asked = map(escape, wrap(row["question"].split("\n")[0], 60))
    where = [say("front_strays", row["n"]), *asked] if row["n"] > 1 else []
    lines = wrap(row["answer"], 60, max_lines=4, placeholder=" …")
    return "<br>".join([*head, *where, *(f"<i>{escape(line)}</i>" for line in lines)])


def _told(row: dict, accuracy: float, family: str | None) -> str:
    low, high = row["mean_95"]
    interval = f" ({say('between', f'{100 * low:.1f}', f'{100 * high:.1f}')})" if family is None else ""
    name = escape(row["method"])
    name = name if row["budget"] is None else say("front_setting", name, row["budget"])
    counts = say("front_measured", f"{row['tokens']:.0f}", _percent(accuracy, 1) + interval)
    return f"<b>{name}</b><br>{counts}<br>{_first(row['first_token'], row['of_full'])}"


def _first(seconds: float, share: float) -> str:
    return say("front_first", f"{1000 * seconds:.1f}", _percent(share))


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


# ---- axes


@dataclass(frozen=True)
class Axis:
    """What an axis spans, in its own units, and where it is marked; `log`: in octaves."""

    title: str
    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def at(self, value: float) -> float:
        return value

    def along(self, value: float) -> float:
        """How far from the left a value stands, as a share of the width."""
        low, high, value = (math.log2(v) if self.log else v for v in (self.low, self.high, value))
        return (value - low) / (high - low)

    def down(self, value: float) -> float:
        """How far below the top a value stands, as a share of the height."""
        low, high = self.at(self.low), self.at(self.high)
        return (high - self.at(value)) / (high - low)

    def plotly(self) -> dict:
        kind = {"type": "log", "range": [math.log10(self.low), math.log10(self.high)]} if self.log else {}
        span = {"range": [self.at(self.low), self.at(self.high)]} | kind
        return span | {"tickvals": [self.at(tick) for tick in self.ticks], "ticktext": [f"{t:g}" for t in self.ticks]}


class Errors(Axis):
    """Per cent right, in octaves of what is wrong: 90 is as far from 95 as 95 from 97.5. Above 99.5 nothing is told."""

    def at(self, value: float) -> float:
        return -math.log2(max(100 - value, 0.5))


def _tokens(points: list[dict]) -> Axis:
    """Octaves, with room on the left for names."""
    counts = [point["x"] for point in points] or [1, 2]
    low, high = min(counts), max(*counts, 1)
    ticks = [2**i for i in range(12) if low <= 2**i < high / 1.3]
    return Axis(say("front_tokens"), low / (2 * high / low) ** 0.28, 1.1 * high, (*ticks, round(high)), log=True)


def _times(points: list[dict]) -> Axis:
    shares = [point["x"] for point in points] or [0, 100]
    low, high = min(shares), max(*shares, 100)
    step = next(s * 10**i for i in range(12) for s in (5, 10, 20) if (high - low) / (s * 10**i) <= 6)
    ticks = tuple(step * i for i in range(math.floor(low / step), math.ceil(high / step) + 1))
    room = 0.28 * (max(high, ticks[-1]) - low)
    marked = tuple(tick for tick in ticks if tick >= low - room / 2)
    return Axis(say("front_time"), low - room, max(high, ticks[-1]), marked)


def _shares(points: list[dict]) -> Axis:
    lowest = min((point["y"] for point in points), default=0)
    step = 20 if lowest < 50 else 10 if lowest < 75 else 5
    floor = step * math.floor(lowest / step)
    room = 0.04 * (100 - floor or 1)
    return Axis(say("front_agreement"), floor - room, 100 + room, tuple(range(floor, 101, step)))


def _right(points: list[dict]) -> Axis:
    shares = [point["y"] for point in points] or [0, 100]
    low = max((mark for mark in MARKS if mark <= min(shares)), default=0)
    high = min((mark for mark in MARKS if mark >= max(shares) and mark > low), default=MARKS[-1])
    return Errors(say("front_accuracy"), low, high, tuple(mark for mark in MARKS if low <= mark <= high))


# ---- the drawing


def _figure(points: list[dict], best: list, across: Axis, up: Axis, bold: Callable, lined=True) -> go.Figure:
    """Methods, thin where not `bold`, `lined` in the order given; the front dotted above; names where they begin."""
    figure, names = go.Figure(), list(dict.fromkeys(point["method"] for point in points))
    colours = _colours([name for name in names if bold(name)])
    for name in sorted(names, key=lambda name: (bold(name), name == "LongTail")):  # the last lies on top
        line = [point for point in points if point["method"] == name]
        figure.add_scatter(**_line(line, up, colours.get(name), name), mode="lines+markers" if lined else "markers")
    if len(best) > 1:
        x, y = zip(*best, strict=True)
        dots = {"color": QUIET, "width": 1.5, "dash": "dot", "shape": "hv"}
        place = [up.at(value) for value in y]
        figure.add_scatter(x=x, y=place, mode="lines", line=dots, name="the front", hoverinfo="skip")
    _name(figure, [point for point in points if bold(point["method"])], colours, across, up)
    title = {"x": 0, "y": 1, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
    figure.add_annotation(text=up.title, showarrow=False, font=FONT, xshift=-LEFT, yshift=14, **title)
    figure.update_layout(**_layout(across, up))
    return figure


def _colours(names: list[str]) -> dict[str, str]:
    """A colour for each name: LongTail has the accent, references are quiet, others take turns."""
    rest = [name for name in names if _family(name) not in OWN]
    return {name: OWN.get(_family(name)) or OTHERS[rest.index(name) % len(OTHERS)] for name in names}


def _family(name: str) -> str:
    return name.split(":")[0]


def _line(points: list[dict], up: Axis, colour: str | None, name: str) -> dict:
    """A method's points; LongTail's are smaller, so that what lies under them is seen."""
    keys = {"customdata": [point["key"] for point in points]} if points[0]["key"] else {}
    width, size = (1, 4) if colour is None else (2.5, 6) if _family(name) == "LongTail" else (2.5, 9)
    return keys | {
        "x": [point["x"] for point in points],
        "y": [up.at(point["y"]) for point in points],
        "name": name,
        "hovertext": [point["text"] for point in points],
        "hoverinfo": "text",
        "cliponaxis": False,
        "line": {"color": colour or RULE, "width": width},
        "marker": {"color": colour or "rgba(125, 120, 110, 0.35)", "size": size, "opacity": 1},
    }


def _name(figure: go.Figure, points: list[dict], colours: dict[str, str], across: Axis, up: Axis):
    """Each method's name: left of its line's cheapest point, above a lone one; below another it would lie on."""
    lines = {name: [point for point in points if point["method"] == name] for name in colours}
    taken, room = [], HEIGHT - TOP - BOTTOM + 10  # pixels; a name may stand a little below the lowest line
    for name, line in sorted(lines.items(), key=lambda item: -min(item[1], key=lambda point: point["x"])["y"]):
        first, lone = min(line, key=lambda point: point["x"]), len(line) == 1
        text = "<br>".join(f'<span style="color:{colours[name]}">{escape(part)}</span>' for part in name.split(":"))
        tall = APART * (1 + text.count("<br>"))
        top = (HEIGHT - TOP - BOTTOM) * up.down(first["y"]) - (10 + tall if lone else tall / 2)
        for x, high, low in sorted(taken, key=lambda other: other[1]):
            if abs(across.along(x) - across.along(first["x"])) < BESIDE and high < top + tall and top < low:
                top = low if low + tall < room else high - tall
        taken.append((first["x"], top, top + tall))
        late = lone and first["x"] >= 0.8 * across.high
        where = {"xanchor": "right", "xshift": 6 if late else -10} if late or not lone else {"xanchor": "center"}
        place = {"x": math.log10(first["x"]) if across.log else first["x"], "y": 1, "yref": "paper", "yshift": -top}
        font = FONT | {"size": 13}
        look = {"showarrow": False, "yanchor": "top", "borderpad": 0, "align": "right"}
        figure.add_annotation(text=text, font=font, **place, **where, **look)


def _layout(across: Axis, up: Axis) -> dict:
    axis = {"zeroline": False, "fixedrange": True, "tickfont": FONT, "gridcolor": RULE, "ticklabelstandoff": 6}
    return {
        "height": HEIGHT,
        "margin": {"l": LEFT, "r": 12, "t": TOP, "b": BOTTOM},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False,
        "hovermode": "closest",
        "hoverlabel": {"bgcolor": "#1d1b18", "bordercolor": "#1d1b18", "align": "left"}
        | {"font": FONT | {"color": "#faf8f4"}},
        "font": FONT,
        "xaxis": axis | across.plotly() | {"title": {"text": across.title, "font": FONT}, "showgrid": False},
        "yaxis": axis | up.plotly(),
    }
