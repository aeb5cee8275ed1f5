"""The Sweep tab: methods over values of a parameter, drawn as their runs come; a point or a row opens elsewhere."""

import math
import time
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import gradio as gr

from longtail import REDUCERS, sweep
from longtail.front import summary
from longtail.given import number
from longtail.points import Point, numbers_of, plan, values

from . import chart, fronts, run, space
from .examples import Example
from .host import Host, longest
from .layout import PRIVATE, QUICK, STATUS, TEXT
from .line import OPEN
from .numbers import seconds
from .prose import ALERT, LIVE
from .table import filled, table
from .words import label, say

COLUMNS = ("setting", "tokens", "true_tokens", "agreement", "same", "kl", "first", "of_full", "total", "of_full", "n")
RAW = {"preprocess": False}  # what a browser sends is checked here, and refused in a sentence
START = ("LongTail", "TopK")
PRESETS = {"alpha": "0.05:0.5:0.05", "seed": "0:4:1"}
SHARES = (1 / 36, 1 / 18, 1 / 9, 134 / 576, 1 / 2)  # of the patches: the budgets to begin with
MOST_METHODS, LONGEST, UPDATE_EVERY = 8, 10, 0.4  # LONGEST: a whole sweep, in time limits of an answer
LEAST = 0.0001  # nats; below, a divergence is said to be smaller
BAR = (
    f'<div role="progressbar" aria-label="{say("sweep_bar")}" '
    'aria-valuenow="${value}"><i style="width:${value}%"></i></div>'
)
FIGURES = {"tokens": "layer_mean", "time": "first_of_full"}


@dataclass(frozen=True)
class Sweep:
    """What of the tab others wire: the run that was picked, the running event, and what stops it."""

    asked: dict[str, gr.components.Component]  # what is swept, by name
    opened: gr.JSON  # {"method": spec, "image": path or null, "question": text, "at": when it was picked}
    running: object
    stop: gr.Button


@dataclass(frozen=True)
class Parts:
    """The components of the tab that a sweep fills in."""

    message: gr.HTML
    trouble: gr.HTML
    bar: gr.HTML
    figures: dict[str, gr.HTML]
    sheet: gr.HTML
    refused: gr.HTML
    conditions: gr.HTML
    rows: gr.State


def tab(host: Host, time_limit: float, image: gr.Image, question: gr.Textbox, scenes: list[Example]) -> Sweep:
    """Lay out the tab and wire it. `image` and `question` are what the page asks; `time_limit` is that of one answer.

    The page serves Plotly's folder (`chart.PLOTLY`) as a static path and has the style sheet `sweep.css`.
    """
    with gr.Row(elem_classes="sweep"):
        with gr.Column(elem_classes="sweep-ask", min_width=0):
            asked = _asking(host.llava, scenes)
            planned = gr.HTML(html_template=TEXT, elem_classes="sweep-plan", js_on_load=LIVE)
            with gr.Row(elem_classes="sweep-buttons"):
                go = gr.Button(label("sweep_go"), variant="primary", elem_classes="sweep-go", min_width=110)
                stop = gr.Button(label("stop"), elem_classes="sweep-stop", min_width=80)
            message = gr.HTML("", html_template=STATUS, elem_classes="sweep-message", js_on_load=LIVE)
            trouble = gr.HTML("", html_template=TEXT, elem_classes="sweep-trouble", js_on_load=ALERT)
            bar = gr.HTML(0, html_template=BAR, elem_classes="sweep-bar", js_on_load=None)
        with gr.Column(elem_classes="sweep-shown", min_width=0):
            figures = _figures()
    sheet = table(say("sweep_table"), elem_classes="sweep-table")
    refused = gr.HTML("", html_template=TEXT, elem_classes="sweep-refused", js_on_load=None)
    conditions = gr.HTML("", html_template=TEXT, elem_classes="sweep-conditions", js_on_load=None)
    opened, rows = gr.JSON(visible="hidden"), gr.State([])
    parts = Parts(message, trouble, bar, figures, sheet, refused, conditions, rows)
    _wire_asking(host, asked, planned, scenes)
    job = host.job("sweep", time_limit)
    running = _wire_sweep(_sweeping(host, time_limit, scenes), parts, go, [image, question, *asked.values()], job)
    stopped = stop.click(partial(host.line.halt, job.kind), None, None, cancels=[running], **QUICK)
    ended = say("sweep_stopped"), 0
    stopped.then(lambda: ended, None, [message, bar], **QUICK)  # after the last update, not beside it
    for picked in (*(figure.point for figure in figures.values()), sheet.row):
        picked(_opened, rows, opened, **QUICK)
    return Sweep(asked, opened, running, stop)


# ---- layout


def _asking(llava, scenes: list[Example]) -> dict[str, gr.components.Component]:
    """What is swept, in the order in which a sweep reads it."""
    scopes = [(say("sweep_this"), "this"), (say("sweep_scenes", len(scenes)), "scenes")]
    methods = [name for name in REDUCERS if name != "Full"]
    start = [name for name in START if name in methods]
    return {
        "scope": gr.Radio(
            scopes if scenes else scopes[:1], value="this", label=label("sweep_scope"), visible=bool(scenes)
        ),
        "methods": gr.Dropdown(
            methods,
            value=start,
            multiselect=True,
            max_choices=MOST_METHODS,
            label=label("sweep_methods"),
            info=label("sweep_methods_info"),
        ),
        "parameter": gr.Dropdown(_parameters(start), value="budget", label=label("sweep_parameter")),
        "values": gr.Textbox(
            _preset(llava, start, "budget"), label=label("sweep_values"), info=label("sweep_values_info"), max_lines=1
        ),
        "new": gr.Slider(1, longest(llava), min(64, longest(llava)), step=1, label=label("new_tokens")),
    }


def _figures() -> dict[str, gr.HTML]:
    """Both charts, one over the other; which is seen is the style sheet's work, so a running sweep never asks."""
    with gr.Row(elem_classes="sweep-head"):
        gr.HTML(f"<h2>{say('sweep_title')}</h2>", js_on_load=None)
        names = [(say("sweep_by_tokens"), "tokens"), (say("sweep_by_time"), "time")]
        gr.Radio(names, value="tokens", label=label("sweep_axis"), show_label=False, container=False, interactive=True)
    gr.HTML(f"<p>{say('sweep_hint')}</p>", js_on_load=None, elem_classes="sweep-hint")
    with gr.Column(elem_classes="sweep-figures", min_width=0):
        gr.HTML(f"<p>{say('sweep_empty')}</p>", js_on_load=None, elem_classes="sweep-empty")
        return {
            name: chart.chart(say(f"sweep_chart_{name}"), elem_classes=f"sweep-chart by-{name}") for name in FIGURES
        }


def _parameters(methods: list[str]) -> list[str]:
    """What can be swept of some of the methods, what most of them have first."""
    known = [name for method in methods for name in numbers_of(method)]
    return sorted(dict.fromkeys(known), key=lambda name: -known.count(name))


def _preset(llava, methods: list[str], parameter: str) -> str:
    """Values to begin with."""
    if parameter == "budget":
        patches = math.prod(llava.grid) if llava else 576
        return ", ".join(str(max(round(share * patches), 1)) for share in SHARES)
    if parameter in PRESETS:
        return PRESETS[parameter]
    one = next(p for name in methods for p in REDUCERS[name].parameters() if p.name == parameter)
    between = [one.low + (one.high - one.low) * i / 4 for i in range(5)]
    return ", ".join(f"{round(value) if one.kind is int else value:.4g}" for value in between)


# ---- what the events do


def _wire_asking(host: Host, asked: dict, planned: gr.HTML, scenes: list[Example]):
    """Parameters follow the methods, values the parameter, and the sentence below all of them."""
    methods, parameter, text = asked["methods"], asked["parameter"], asked["values"]

    def follow(names, swept):
        known = _parameters(names)
        return gr.update(choices=known, value=swept if swept in known else next(iter(known), None))

    def preset(names, swept):
        return _preset(host.llava, names, swept) if swept in _parameters(names) else gr.skip()

    def said(scope, *asking):
        try:
            return _plan_in_words(_asked(*asking), len(scenes) if scope == "scenes" else 1)
        except ValueError as error:
            return run.trouble(error)[run.TROUBLE]

    methods.change(follow, [methods, parameter], parameter, **QUICK, **RAW)
    parameter.input(preset, [methods, parameter], text, **QUICK, **RAW)
    asking = [asked["scope"], methods, parameter, text]
    gr.on([part.change for part in asking], said, asking, planned, **QUICK, **RAW)
    planned.value = said("this", methods.value, parameter.value, text.value)


def _asked(methods, parameter, text) -> list[Point]:
    """The points that the fields ask for. Raises ValueError with a sentence."""
    if not isinstance(methods, list) or not all(isinstance(name, str) for name in methods):
        raise ValueError("the methods must be a list of names: choose them again")
    if len(methods) > MOST_METHODS:
        raise ValueError(f"a sweep here has at most {MOST_METHODS} methods, got {len(methods)}")
    return plan(methods, str(parameter), values(str(text or "")))


def _plan_in_words(points: list[Point], questions: int) -> str:
    """How many runs that is, and of what. Raises ValueError where they are too many."""
    counts: dict[int, list[str]] = {}
    for name in dict.fromkeys(point.method for point in points):
        swept = [point for point in points if point.method == name]
        counts.setdefault(len(swept) if swept[0].parameter else 0, []).append(name)
    parameter = next(point.parameter for point in points if point.parameter)
    said = "; ".join(_kind(n, parameter.replace("_", " "), ", ".join(names)) for n, names in counts.items())
    runs = sweep.runs(questions, points)
    return say("sweep_runs", runs, said) if questions == 1 else say("sweep_runs_several", runs, questions, said)


def _kind(n: int, parameter: str, methods: str) -> str:
    """How many values methods have, none where they have no such parameter."""
    if n == 0:
        return say("sweep_as_it_comes", methods, parameter)
    return say("sweep_value_of", parameter, methods) if n == 1 else say("sweep_values_of", n, parameter, methods)


def _wire_sweep(sweeping, parts: Parts, go: gr.Button, inputs: list, job: run.Job):
    places = {name: getattr(parts, name) for name in ("message", "trouble", "bar", "sheet", "refused", "conditions")}
    places |= {"rows": parts.rows, **parts.figures}

    def show(produced: dict) -> dict:
        """The updates of a step, or of what `streamed` says of the line and of what went wrong."""
        if run.TROUBLE in produced:
            produced = {"message": produced[run.MESSAGE], "trouble": produced[run.TROUBLE], "bar": 0}
        return {places[name]: value for name, value in produced.items()} or {parts.message: gr.skip()}

    go.click(None, None, parts.message, js=f"() => {say('sweep_waiting')!r}", **QUICK)
    return go.click(run.streamed(sweeping, show, job), inputs, list(places.values()), **OPEN, **RAW, **PRIVATE)


def _sweeping(host: Host, time_limit: float, scenes: list[Example]):
    """The work of Sweep: what the page holds, made into runs; yields what changed on the page."""

    def sweeping(stop, upload, question, scope, methods, parameter, text, new):
        llava = host.ready()
        points, new = _asked(methods, parameter, text), number("max new tokens", new, 1, longest(llava), whole=True)
        questions = [(scene.image, scene.question) for scene in scenes]
        if scope != "scenes" or not scenes:
            run.opened(upload)
            questions = [(upload["path"], question or "")]
        conditions = sweep.conditions(llava, len(questions), new, 0)
        yield {"message": say("sweep_waiting"), "trouble": "", "bar": 0}
        rows, shown = [], -UPDATE_EVERY
        allowed = space.seconds(1 + sweep.runs(len(questions), points), new)
        limited = partial(sweep.sweep, time_limit=time_limit)
        with closing(host.run(limited, allowed, stop, questions, points, new)) as steps:
            for step in steps:
                rows += [step.row] if step.row else []
                late = step.spent > LONGEST * time_limit
                last = late or step.done == step.of
                changed = {"message": _said(step, rows, late), "bar": 0 if last else round(100 * step.done / step.of)}
                if step.row and (last or time.monotonic() - shown > UPDATE_EVERY):
                    changed |= _drawn(rows) | {"conditions": conditions}
                    shown = time.monotonic()
                yield changed
                if late:
                    return

    return sweeping


def _said(step: sweep.Step, rows: list[dict], late: bool) -> str:
    if step.left is None:
        return say("sweep_warming", step.of)
    spent, refused = seconds(step.spent), sum("reason" in row for row in rows)
    if step.done == step.of:
        return say("sweep_refused", step.of, spent, refused) if refused else say("sweep_done", step.of, spent)
    if late:
        return say("sweep_late", spent, step.done, step.of)
    return say("sweep_progress", step.done, step.of, _about(step.left))


def _about(left: float) -> str:
    return f"{max(round(left), 1)} s" if left < 90 else f"{round(left / 60)} min"


def _drawn(rows: list[dict]) -> dict:
    """Charts, table and refusals of the rows so far."""
    means = summary(rows)
    refused = dict.fromkeys(say("sweep_no_run", row["spec"], row["reason"]) for row in rows if "reason" in row)
    figures = {name: chart.drawn(fronts.swept(means, cost)) for name, cost in FIGURES.items()}
    sheet = filled(
        [say(f"sweep_{name}") for name in COLUMNS], [_cells(row) for row in means], [row["spec"] for row in means]
    )
    return figures | {"sheet": sheet, "refused": " ".join(refused), "rows": means}


def _cells(row: dict) -> list:
    def share(name):
        return f"{100 * row[name]:.0f} %", row[name]

    def took(name):
        return seconds(row[name]), row[name]

    same = share("same") if row["n"] > 1 else (say("sweep_yes" if row["same"] else "sweep_no"), row["same"])
    counts = [(f"{row[name]:,.0f}", row[name]) for name in ("visual", "layer_mean")]
    times = [took("first_token"), share("first_of_full"), took("total"), share("total_of_full")]
    kl = f"{row['kl']:.4f}" if row["kl"] >= LEAST else f"< {LEAST}" if row["kl"] else "0"
    return [row["spec"], *counts, share("agreement"), same, (kl, row["kl"]), *times, (str(row["n"]), row["n"])]


def _opened(rows: list[dict], event: gr.EventData):
    """The run that was picked: of several questions, the one whose answer strays furthest."""
    row = next((row for row in rows if row["spec"] == event.key), None)
    if row is None:
        return gr.skip()
    return {"method": row["spec"], "image": row["image"], "question": row["question"], "at": time.time()}
