"""The Plotly figure of the panel. Colours that must suit light and dark alike are set by the page's style sheet."""

import numpy as np

from longtail.similarity import objective

from .words import say

HEAD, TAIL, QUIET = "#c8501f", "#8a857b", "#7d786e"
HEAD_FILL, TAIL_FILL = "rgba(200, 80, 31, 0.30)", "rgba(138, 133, 123, 0.28)"
FONT = {"family": "inherit", "size": 12, "color": QUIET}


def similarity_curve(curve: dict) -> dict:
    """The descending CLS similarities of a record's curve: head and tail of the knee i*, the cut after the kept ones,
    the objective f. Hovering is the panel's. Plain JSON values: it is made while a visitor waits for the first token,
    and Plotly's own classes take longer than all else on the way."""
    similarity, knee, kept = curve["similarity"], curve["knee"], curve["kept"]
    n, f = len(similarity), objective(np.array(similarity))
    ranks = list(range(1, n + 1))
    line = {"type": "scatter", "mode": "lines", "hoverinfo": "skip"}
    dotted = {"color": TAIL, "width": 1.5, "dash": "dot"}
    data = [line | {"x": ranks[: len(f)], "y": f.tolist(), "yaxis": "y2", "name": "objective f", "line": dotted}]
    for name, part, fill in (("head", slice(0, knee), HEAD_FILL), ("tail", slice(knee - 1, n), TAIL_FILL)):
        filled = {"name": name, "fill": "tozeroy", "fillcolor": fill, "line": {"color": HEAD, "width": 2}}
        data.append(line | filled | {"x": ranks[part], "y": similarity[part]})
    cut = {"type": "rect", "x0": 0.5, "x1": kept + 0.5, "y0": 0, "y1": 1, "yref": "paper", "layer": "below"}
    shapes = [cut | {"fillcolor": HEAD, "opacity": 0.08, "line": {"width": 0}}]
    marks = [
        _mark(knee, "dash", say("knee_at", knee), 1.17),
        _mark(kept, "solid", say("kept_of", kept, n), 1.05),
    ]
    notes = {"shapes": [*shapes, *(line for line, _ in marks)], "annotations": [text for _, text in marks]}
    return {"data": data, "layout": _layout(n) | notes}


def _mark(rank: int, dash: str, text: str, top: float) -> tuple[dict, dict]:
    """A vertical line at a rank, up to its words above the plot: two marks at one rank stay legible."""
    line = {"color": QUIET, "width": 1.5, "dash": dash}
    place = {"x": rank, "y": top, "yref": "paper", "xanchor": "left", "yanchor": "middle", "xshift": 3}
    return (
        {"type": "line", "x0": rank, "x1": rank, "y0": 0, "y1": top, "yref": "paper", "line": line},
        {"text": text, "showarrow": False, "font": FONT} | place,
    )


def _layout(n: int) -> dict:
    axis = {"showgrid": False, "zeroline": False, "fixedrange": True, "tickfont": FONT, "title": {"font": FONT}}
    return {
        "height": 260,
        "margin": {"l": 52, "r": 44, "t": 40, "b": 40},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False,
        "hovermode": False,
        "font": FONT,
        "xaxis": axis | {"title": {"text": say("rank_axis"), "font": FONT}, "range": [0, n], "nticks": 5},
        "yaxis": axis | {"title": {"text": say("similarity_axis"), "font": FONT}, "rangemode": "tozero", "nticks": 5},
        "yaxis2": axis
        | {
            "title": {"text": say("objective_axis"), "font": FONT},
            "overlaying": "y",
            "side": "right",
            "rangemode": "tozero",
            "nticks": 4,
        },
    }
