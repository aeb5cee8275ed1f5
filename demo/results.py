"""The Results tab: accuracy of an evaluation as a figure and a table, from its file; no model is asked."""

from pathlib import Path

import gradio as gr

from longtail import results
from longtail.results import GROUND
from longtail.tiny.questions import FAMILIES

from . import chart, fronts
from .layout import QUICK, TEXT
from .numbers import seconds
from .prose import ALERT
from .table import filled, table
from .words import choice, label, say

COLUMNS = ("method", "budget", "tokens", "true_tokens", "mean_column", "interval", "share", "interval", "agreement")
COLUMNS += ("first", "total", "of_full")
COSTS = {"tokens": "tokens", "time": "of_full"}
RAW = {"preprocess": False}


def tab(file: Path) -> gr.State:
    """Lay out the tab over a results file and wire it; the record it shows is what comes back.

    The page serves Plotly's folder (`chart.PLOTLY`) as a static path and has the style sheet `sweep.css`.
    """
    record, trouble = _read(file, file.name) if file.is_file() else (None, say("results_nothing"))
    with gr.Column(elem_classes="results", min_width=0):
        with gr.Row(elem_classes="results-head"):
            gr.HTML(f"<h2>{say('results_title')}</h2>", js_on_load=None)
            names = [(say("sweep_by_tokens"), "tokens"), (say("sweep_by_time"), "time")]
            axis = gr.Radio(names, value="tokens", label=label("sweep_axis"), show_label=False, container=False)
        gr.HTML(f"<p>{say('results_hint')}</p>", js_on_load=None, elem_classes="results-hint")
        with gr.Row(elem_classes="results-choose"):
            family = gr.Dropdown(_families(record), value="", label=label("results_family"), scale=1)
            methods = gr.Dropdown(
                _methods(record),
                value=[],
                multiselect=True,
                label=label("results_methods"),
                info=label("results_methods_info"),
                scale=2,
            )
            upload = gr.UploadButton(
                label("results_upload"), file_types=[".json"], elem_classes="results-upload", scale=0
            )
        shown = gr.HTML(_shown(record, file.name), html_template=TEXT, elem_classes="results-shown", js_on_load=None)
        said = gr.HTML(trouble, html_template=TEXT, elem_classes="results-trouble", js_on_load=ALERT)
        figure = chart.chart(say("results_chart"), _figure(record, "", [], "tokens"), elem_classes="results-chart")
        sheet = table(say("results_table"), _sheet(record), elem_classes="results-table")
        conditions = gr.HTML(
            _conditions(record), html_template=TEXT, elem_classes="results-conditions", js_on_load=None
        )
    kept = gr.State(record)

    def redraw(record, *chosen):
        return chart.drawn(_figure(record, *chosen))

    def opened(upload, current):
        record, trouble = _uploaded(upload)
        if record is None:
            return {said: trouble}
        name = _name(upload)
        updates = {kept: record, said: "", shown: _shown(record, name), sheet: _sheet(record)}
        updates |= {conditions: _conditions(record), figure: chart.drawn(_figure(record, "", [], current))}
        return updates | {
            family: gr.update(choices=_families(record), value=""),
            methods: gr.update(choices=_methods(record), value=[]),
        }

    gr.on(
        [part.change for part in (family, methods, axis)],
        redraw,
        [kept, family, methods, axis],
        figure,
        **QUICK,
        **RAW,
    )
    places = [kept, said, shown, sheet, conditions, figure, family, methods]
    upload.upload(opened, [upload, axis], places, **QUICK, **RAW)
    return kept


# ---- the file


def _read(path: Path, name: str) -> tuple[dict | None, str]:
    """The record of a file, or None and why not."""
    try:
        return results.read(path), ""
    except (ValueError, OSError) as error:
        return None, f"{str(error).replace(path.name, name)}."


def _uploaded(upload) -> tuple[dict | None, str]:
    path = Path(upload["path"]) if isinstance(upload, dict) and upload.get("path") else None
    if path is None or not path.is_file():
        return None, say("results_unusable")
    return _read(path, _name(upload))


def _name(upload: dict) -> str:
    return str(upload.get("orig_name") or "the file")[:80]


# ---- what is shown


def _fine(record: dict | None) -> list[dict]:
    return [row for row in record["rows"] if "reason" not in row] if record else []


def _methods(record: dict | None) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in _fine(record)))


def _families(record: dict | None) -> list[tuple[str, str]]:
    """The families of all rows, ours first in their order, others in theirs."""
    known = list(dict.fromkeys(name for row in _fine(record) for name in row["families"]))
    ours = [name for name in (*FAMILIES, GROUND) if name in known]
    return [(choice("results_mean"), ""), *((name, name) for name in dict.fromkeys([*ours, *known]))]


def _figure(record: dict | None, family, methods, cost):
    """The chart of a record; a choice that it does not have is none."""
    known, chosen = _methods(record), methods if isinstance(methods, list) else []
    family = family if any(family == name for _, name in _families(record)) else ""
    if record is None:
        return None
    stand_out = tuple(name for name in known if name in chosen)
    return fronts.measured(_fine(record), COSTS.get(str(cost), "tokens"), family or None, stand_out)


def _sheet(record: dict | None) -> str | None:
    families = [name for _, name in _families(record)[1:]]
    rows = [_cells(row, families) for row in _fine(record)]
    return filled([*(say(f"results_{name}") for name in COLUMNS), *families], rows) if rows else None


def _cells(row: dict, families: list[str]) -> list:
    def share(value):
        return (None, None) if value is None else (f"{100 * value:.1f} %", value)

    def interval(ends):
        return say("between", *(f"{100 * end:.1f}" for end in ends)), ends[0]

    budget = (say("results_as_it_comes"), 0) if row["budget"] is None else (f"{row['budget']:,}", row["budget"])
    counts = [(f"{row[name]:,.0f}", row[name]) for name in ("visual", "tokens")]
    accuracy = [share(row["mean"]), interval(row["mean_95"]), share(row["share"]), interval(row["share_95"])]
    times = [(seconds(row[name]), row[name]) for name in ("first_token", "total")]
    asked = [share(row["families"].get(name, [None])[0]) for name in families]
    return [row["method"], budget, *counts, *accuracy, share(row["agreement"]), *times, share(row["of_full"]), *asked]


def _shown(record: dict | None, name: str) -> str:
    return say("results_shown", name, len(_fine(record)), len(_methods(record))) if record else ""


def _conditions(record: dict | None) -> str:
    """The file's own words, and what could not be run."""
    if not record:
        return ""
    refused = dict.fromkeys(say("results_refused", r["method"], r["reason"]) for r in record["rows"] if "reason" in r)
    several = [say("results_timed", len(record["timed"]))] if len(record["timed"]) > 1 else []
    return " ".join([record["conditions"], *several, *refused])
