"""A Plotly figure as one HTML block: drawn by the Plotly of the installed package, with points that can be clicked."""

from pathlib import Path

import gradio as gr
import plotly
import plotly.graph_objects as go

PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"  # its folder is made a static path by the page
TEMPLATE = '<div class="plot" role="img" aria-label="${label}"></div>'


def script(name: str) -> str:
    """A script of this folder."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


LOADER = script("chart.js").replace("PLOTLY", PLOTLY.as_posix())
SCRIPT = LOADER + script("point.js")


def chart(label: str, figure: go.Figure | None = None, **look) -> gr.HTML:
    """A place for a figure; `.point(...)` is its event, `event.key` the customdata of the point that was clicked."""
    value = drawn(figure)
    return gr.HTML(value, label=label, html_template=TEMPLATE, js_on_load=SCRIPT, apply_default_css=False, **look)


def drawn(figure: go.Figure | None) -> str | None:
    """What a chart shows now."""
    return figure and figure.to_json()
