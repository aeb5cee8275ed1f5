"""The linked panel: patches over the model's own crop beside the similarity curve. What is hovered in one is lit in the
other, and in every other column; patches that are clicked become a selection by hand. No hover asks the server."""

import json
from itertools import accumulate

import gradio as gr
import numpy as np

from longtail.similarity import objective

from . import chart, draw, figures

SCRIPT = chart.LOADER + chart.script("panel.js")
TEMPLATE = """<svg class="picture" tabindex="0" role="group"></svg><p class="tip"></p>
<div class="under"><div class="scrub" hidden><input type="range" min="0" step="1"><output></output></div>
<div class="legend" role="group"></div>
<div class="hand" hidden><span></span> <button type="button" data-do="ask"></button>
<button type="button" data-do="kept"></button> <button type="button" data-do="clear"></button></div></div>
<div class="curve"><p class="which"></p>
<div class="plot" tabindex="0" role="group" hidden></div><i class="dot" hidden></i>
<p class="none"></p></div>"""


def panel(index: int, shown: str, picture: str | None) -> gr.HTML:
    """A column's panel: `shown` is a `view`, `picture` a data URI. Its event is `ask`, with `event.patches`."""
    return gr.HTML(
        shown,
        picture=picture,
        column=index + 1,
        html_template=TEMPLATE,
        js_on_load=SCRIPT,
        apply_default_css=False,
        elem_classes="panel",
    )


def blank(views: list[dict] | None) -> str:
    """The panel before there is an answer: the patches the model will cut the crop into."""
    return json.dumps({"views": views or [], "method": None})


def view(record: dict) -> str:
    """All that the panel draws of a record, as JSON."""
    if not record["role"]:  # stopped before the tower was through
        return blank(record["views"])
    fates, sizes = draw.fates(record), [rows * columns for rows, columns in (v["grid"] for v in record["views"])]
    curves = [record["curve"] and record["curve"] | {"order": record["order"]}, *record["tile_curves"]]
    starts = accumulate(sizes, initial=0)
    return json.dumps(
        {
            "method": record["method"],
            "views": record["views"],
            "role": fates.role.tolist(),
            "group": _groups(fates.group),
            "recycled": np.flatnonzero(fates.recycled).tolist(),
            "left": fates.left.tolist(),
            "said": [characters for characters, _ in record["steps"]],
            "text": record["answer"],
            "curves": [curve and _curve(curve, start) for curve, start in zip(curves, starts, strict=False)],
        }
    )


def _curve(curve: dict, start: int) -> dict:
    """One view's curve; its patches counted through all views, from `start`."""
    return {
        "order": [start + patch for patch in curve["order"]],
        "similarity": curve["similarity"],
        "objective": objective(np.array(curve["similarity"])).round(4).tolist(),
        "figure": figures.similarity_curve(curve),
    }


def _groups(group: np.ndarray) -> list[int]:
    """The group of each patch, -1 where the token that speaks for it speaks for no other."""
    size = np.bincount(group[group >= 0], minlength=group.max(initial=-1) + 1)
    return [g if g >= 0 and size[g] > 1 else -1 for g in group.tolist()]
