"""Plotly figures. Colours that must suit light and dark alike are set by the page's style sheet."""

import numpy as np
import plotly.graph_objects as go

from longtail.similarity import objective

from .words import say

HEAD, TAIL, QUIET = "#c8501f", "#8a857b", "#7d786e"
HEAD_FILL, TAIL_FILL = "rgba(200, 80, 31, 0.30)", "rgba(138, 133, 123, 0.28)"
FONT = {"family": "inherit", "size": 12, "color": QUIET}


def similarity_curve(curve: dict) -> go.Figure:
    """The descending CLS similarities of a record's curve: head and tail of the knee i*, the cut after the kept ones,
    the objective f. Hovering is the panel's."""
    similarity, knee, kept = np.array(curve["similarity"]), curve["knee"], curve["kept"]
    n, f = len(similarity), objective(similarity)
    ranks = np.arange(1, n + 1)
    figure = go.Figure()
    figure.add_scatter(
        x=ranks[: len(f)].tolist(),
        y=f.tolist(),
        yaxis="y2",
        name="objective f",
        line={"color": TAIL, "width": 1.5, "dash": "dot"},
        mode="lines",
        hoverinfo="skip",
    )
    for name, part, fill in (("head", slice(0, knee), HEAD_FILL), ("tail", slice(knee - 1, n), TAIL_FILL)):
        figure.add_scatter(
            x=ranks[part].tolist(),
            y=similarity[part].tolist(),
            name=name,
            fill="tozeroy",
            fillcolor=fill,
            line={"color": HEAD, "width": 2},
            mode="lines",
            hoverinfo="skip",
        )
    figure.add_vrect(0.5, kept + 0.5, fillcolor=HEAD, opacity=0.08, line_width=0, layer="below")
    _mark(figure, knee, "dash", say("knee_at", knee), 1.17)
    _mark(figure, kept, "solid", say("kept_of", kept, n), 1.05)
    figure.update_layout(**_layout(n))
    return figure


def _mark(figure: go.Figure, rank: int, dash: str, text: str, top: float):
    """A vertical line at a rank, up to its words above the plot: two marks at one rank stay legible."""
    line = {"color": QUIET, "width": 1.5, "dash": dash}
    figure.add_shape(type="line", x0=rank, x1=rank, y0=0, y1=top, yref="paper", line=line)
    place = {"x": rank, "y": top, "yref": "paper", "xanchor": "left", "yanchor": "middle", "xshift": 3}
    figure.add_annotation(text=text, showarrow=False, font=FONT, **place)


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
