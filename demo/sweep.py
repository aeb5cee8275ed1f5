"""The Sweep tab: methods over values of a parameter, drawn as their runs come; a point or a row opens elsewhere."""

import math
import time
from dataclasses import dataclass

import gradio as gr

from longtail import REDUCERS, sweep
from longtail.front import summary
from longtail.points import Point, numbers_of, plan, values

from . import chart, fronts, run
from .examples import Example
from .host import Host, longest
from .numbers import seconds
from .table import filled, table

WORDS = {
    "scope": "Asked of",
    "this": "this image and question",
    "scenes": "the {n} example scenes",
    "methods": "Methods",
    "methods_info": "the unpruned model always runs first, as the reference",
    "parameter": "Swept",
    "values": "Values",
    "values_info": "comma between, or low:high:step",
    "new": "max new tokens",
    "go": "Sweep",
    "stop": "Stop",
    "runs": "{runs} runs{questions}: the unpruned model; {values}.",
    "values_of": "{n} values of {parameter} each for {methods}",
    "value_of": "one value of {parameter} for {methods}",
    "as_it_comes": "{methods} once, having no {parameter}",
    "on_questions": " on {n} questions",
    "waiting": "Waiting for the model …",
    "warming": "Warming up, then {of} runs …",
    "progress": "{done} of {of} runs, about {left} left …",
    "done": "Done: {n} runs in {spent}.",
    "refused": "Done: {n} runs in {spent}, of which {refused} could not run, see below.",
    "late": "Ended after {spent}, the longest that a sweep here may take: {done} of {of} runs.",
    "stopped": "Stopped. What came until then stays.",
    "axis": "Cost",
    "by_tokens": "tokens",
    "by_time": "time",
    "title": "What agreement costs",
    "hint": "Each point is one setting. Click one, or a row, to open that run. Dotted: nothing as cheap agrees better.",
    "empty": "The points appear here as their runs come.",
    "chart": "Agreement with the unpruned answer over {cost}",
    "table": "Every setting of the sweep",
    "no_run": "{spec} could not run: {reason}.",
}
COLUMNS = ["setting", "tokens", "true tokens", "agreement", "same answer", "KL, nats", "first token", "of unpruned"]
COLUMNS += ["total", "of unpruned", "n"]
LANE = {"concurrency_id": "model", "concurrency_limit": 1}
PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}
QUICK = PRIVATE | {"queue": False}
RAW = {"preprocess": False}  # what a browser sends is checked here, and refused in a sentence
START = ("LongTail", "TopK")
PRESETS = {"alpha": "0.05:0.5:0.05", "seed": "0:4:1"}
SHARES = (1 / 36, 1 / 18, 1 / 9, 134 / 576, 1 / 2)  # of the patches: the budgets to begin with
MOST_METHODS, LONGEST, UPDATE_EVERY = 8, 10, 0.4  # LONGEST: a whole sweep, in time limits of an answer
LEAST = 0.0001  # nats; below, a divergence is said to be smaller
TEXT = "<p>{{value}}</p>"
STATUS = "<p class=\"${value.endsWith('…') ? 'busy' : ''}\">{{value}}</p>"
BAR = '<div role="progressbar" aria-label="runs done" aria-valuenow="${value}"><i style="width:${value}%"></i></div>'
LIVE = "element.setAttribute('aria-live', 'polite');"
ALERT = "element.setAttribute('role', 'alert');"
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
                go = gr.Button(WORDS["go"], variant="primary", elem_classes="sweep-go", min_width=110)
                stop = gr.Button(WORDS["stop"], elem_classes="sweep-stop", min_width=80)
            message = gr.HTML("", html_template=STATUS, elem_classes="sweep-message", js_on_load=LIVE)
            trouble = gr.HTML("", html_template=TEXT, elem_classes="sweep-trouble", js_on_load=ALERT)
            bar = gr.HTML(0, html_template=BAR, elem_classes="sweep-bar", js_on_load=None)
        with gr.Column(elem_classes="sweep-shown", min_width=0):
            figures = _figures()
    sheet = table(WORDS["table"], elem_classes="sweep-table")
    refused = gr.HTML("", html_template=TEXT, elem_classes="sweep-refused", js_on_load=None)
    conditions = gr.HTML("", html_template=TEXT, elem_classes="sweep-conditions", js_on_load=None)
    opened, rows = gr.JSON(visible="hidden"), gr.State([])
    parts = Parts(message, trouble, bar, figures, sheet, refused, conditions, rows)
    _wire_asking(host, asked, planned, scenes)
    running = _wire_sweep(_sweeping(host, time_limit, scenes), parts, go, [image, question, *asked.values()])
    stopped = stop.click(None, None, None, cancels=[running], **QUICK)
    stopped.then(lambda: (WORDS["stopped"], 0), None, [message, bar], **QUICK)  # after the last update, not beside it
    for picked in (*(figure.point for figure in figures.values()), sheet.row):
        picked(_opened, rows, opened, **QUICK)
    return Sweep(asked, opened, running, stop)


# ---- layout


def _asking(llava, scenes: list[Example]) -> dict[str, gr.components.Component]:
    """What is swept, in the order in which a sweep reads it."""
    scopes = [(WORDS["this"], "this"), (WORDS["scenes"].format(n=len(scenes)), "scenes")]
    methods = [name for name in REDUCERS if name != "Full"]
    start = [name for name in START if name in methods]
    return {
        "scope": gr.Radio(scopes if scenes else scopes[:1], value="this", label=WORDS["scope"], visible=bool(scenes)),
        "methods": gr.Dropdown(
            methods,
            value=start,
            multiselect=True,
            max_choices=MOST_METHODS,
            label=WORDS["methods"],
            info=WORDS["methods_info"],
        ),
        "parameter": gr.Dropdown(_parameters(start), value="budget", label=WORDS["parameter"]),
        "values": gr.Textbox(
            _preset(llava, start, "budget"), label=WORDS["values"], info=WORDS["values_info"], max_lines=1
        ),
        "new": gr.Slider(1, longest(llava), min(64, longest(llava)), step=1, label=WORDS["new"]),
    }


def _figures() -> dict[str, gr.HTML]:
    """Both charts, one over the other; which is seen is the style sheet's work, so a running sweep never asks."""
    with gr.Row(elem_classes="sweep-head"):
        gr.HTML(f"<h2>{WORDS['title']}</h2>", js_on_load=None)
        names = [(WORDS["by_tokens"], "tokens"), (WORDS["by_time"], "time")]
        gr.Radio(names, value="tokens", label=WORDS["axis"], show_label=False, container=False, interactive=True)
    gr.HTML(f"<p>{WORDS['hint']}</p>", js_on_load=None, elem_classes="sweep-hint")
    with gr.Column(elem_classes="sweep-figures", min_width=0):
        gr.HTML(f"<p>{WORDS['empty']}</p>", js_on_load=None, elem_classes="sweep-empty")
        return {
            name: chart.chart(WORDS["chart"].format(cost=WORDS[f"by_{name}"]), elem_classes=f"sweep-chart by-{name}")
            for name in FIGURES
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
    kinds = {n: "as_it_comes" if n == 0 else "value_of" if n == 1 else "values_of" for n in counts}
    said = [
        WORDS[kinds[n]].format(n=n, parameter=parameter.replace("_", " "), methods=", ".join(names))
        for n, names in counts.items()
    ]
    several = WORDS["on_questions"].format(n=questions) if questions > 1 else ""
    runs = sweep.runs(questions, points)
    return WORDS["runs"].format(runs=runs, values="; ".join(said), questions=several)


def _wire_sweep(sweeping, parts: Parts, go: gr.Button, inputs: list):
    places = {name: getattr(parts, name) for name in ("message", "trouble", "bar", "sheet", "refused", "conditions")}
    places |= {"rows": parts.rows, **parts.figures}

    def show(produced: dict) -> dict:
        """The updates of a step, or of what `streamed` says went wrong."""
        if run.TROUBLE in produced:
            produced = {"message": "", "trouble": produced[run.TROUBLE], "bar": 0}
        return {places[name]: value for name, value in produced.items()}

    go.click(None, None, parts.message, js=f"() => {WORDS['waiting']!r}", **QUICK)
    return go.click(run.streamed(sweeping, show), inputs, list(places.values()), **LANE, **RAW, **PRIVATE)


def _sweeping(host: Host, time_limit: float, scenes: list[Example]):
    """The work of Sweep: what the page holds, made into runs; yields what changed on the page."""

    def sweeping(stop, upload, question, scope, methods, parameter, text, new):
        llava = host.ready()
        points, new = _asked(methods, parameter, text), run.whole(new, WORDS["new"], 1)
        questions = [(scene.image, scene.question) for scene in scenes]
        if scope != "scenes" or not scenes:
            run.opened(upload)
            questions = [(upload["path"], question or "")]
        conditions = sweep.conditions(llava, len(questions), new, 0)
        yield {"message": WORDS["waiting"], "trouble": "", "bar": 0}
        rows, shown = [], -UPDATE_EVERY
        steps = sweep.sweep(llava, questions, points, new, stop=stop, time_limit=time_limit)
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
        return WORDS["warming"].format(of=step.of)
    spent, refused = seconds(step.spent), sum("reason" in row for row in rows)
    if step.done == step.of:
        return WORDS["refused" if refused else "done"].format(n=step.of, spent=spent, refused=refused)
    if late:
        return WORDS["late"].format(spent=spent, done=step.done, of=step.of)
    return WORDS["progress"].format(done=step.done, of=step.of, left=_about(step.left))


def _about(left: float) -> str:
    return f"{max(round(left), 1)} s" if left < 90 else f"{round(left / 60)} min"


def _drawn(rows: list[dict]) -> dict:
    """Charts, table and refusals of the rows so far."""
    means = summary(rows)
    refused = dict.fromkeys(WORDS["no_run"].format(**row) for row in rows if "reason" in row)
    figures = {name: chart.drawn(fronts.swept(means, cost)) for name, cost in FIGURES.items()}
    sheet = filled(COLUMNS, [_cells(row) for row in means], [row["spec"] for row in means])
    return figures | {"sheet": sheet, "refused": " ".join(refused), "rows": means}


def _cells(row: dict) -> list:
    def share(name):
        return f"{100 * row[name]:.0f} %", row[name]

    def took(name):
        return seconds(row[name]), row[name]

    same = share("same") if row["n"] > 1 else ("yes" if row["same"] else "no", row["same"])
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
