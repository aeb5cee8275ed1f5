"""The page: layout first, then one wiring line an event. Loads nothing: it is handed a model and reads the examples."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gradio as gr

from longtail import REDUCERS, open_image

from . import api, controls, numbers, run, words
from .examples import EXAMPLES, Example, cards, read_examples

COLUMNS, FEWEST = 4, 2
FIRST = ("Full", "LongTail", "TopK", "Random")  # what the columns start with, so far as the registry has it
LANE = {"concurrency_id": "model", "concurrency_limit": 1}
PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}
QUICK = PRIVATE | {"queue": False}
RAW = {"preprocess": False}  # uploads are handed over unopened: longtail.open_image decides, and says why not
QUICK_RENDER = {"queue": False, "show_progress": "hidden"}
TEXT = "<p>{{value}}</p>"  # escaped by the browser: whatever a model or a visitor wrote stays text
STATUS = "<p class=\"${value.endsWith('…') ? 'busy' : ''}\">{{value}}</p>"


@dataclass(frozen=True)
class Asking:
    """What is asked, and the buttons that ask it."""

    picture: gr.Image
    question: gr.Textbox
    truth: gr.HTML
    ask: gr.Button
    stop: gr.Button
    clear: gr.Button
    message: gr.HTML
    trouble: gr.HTML
    options: list[gr.components.Component]  # max new tokens, temperature, seed


@dataclass(frozen=True)
class Column:
    """One method's place on the page."""

    index: int
    box: gr.Column
    remove: gr.Button
    method: gr.Dropdown
    settings: gr.JSON  # {method: {parameter: value}}, kept by the browser
    parts: dict[str, gr.components.Component]  # what a run fills in


def build(llava, time_limit: float = 60.0, examples: Path = EXAMPLES) -> gr.Blocks:
    """The page for a loaded model."""
    scenes = read_examples(examples)
    gr.set_static_paths([examples.resolve()])
    with api.Blocks(title="LongTail", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(words.header(llava), elem_id="header", js_on_load=None)
        with gr.Row(elem_id="ask"):
            asking = _asking(llava, scenes)
            picks = _examples(scenes)
        with gr.Row(elem_id="bar"):
            conditions = gr.HTML(run.SIDE_BY_SIDE, elem_id="conditions", js_on_load=None)
            add = gr.Button("Add a method", elem_id="add", size="sm", scale=0, min_width=140)
        with gr.Row(elem_id="columns"):
            columns = [_column(page, llava, i, scenes) for i in range(COLUMNS)]
        gr.HTML(words.FOOTER, elem_id="footer", js_on_load=None)
        shown = gr.State([i < FEWEST for i in range(COLUMNS)])

        places = _places(asking, columns, conditions)
        running = _wire_run(llava, time_limit, asking, columns, shown, places)
        _wire_inputs(_fresh(llava, asking, places), asking, picks, scenes, list(places.values()), running)
        _wire_columns(columns, add, shown)
        api.endpoints(llava, time_limit)
    return page


def _wire_run(llava, time_limit: float, asking: Asking, columns: list[Column], shown: gr.State, places: dict):
    """Run, and what stops it; returns the running event."""
    settings = [*(column.method for column in columns), *(column.settings for column in columns)]
    inputs = [asking.picture, asking.question, shown, *asking.options, *settings]
    event = run.streamed(_comparing(llava, time_limit), partial(_update, places))
    pressed = [asking.ask.click, asking.question.submit]
    running = gr.on(pressed, event, inputs, list(places.values()), **LANE, **RAW, **PRIVATE)
    asking.stop.click(lambda: "Stopped.", None, asking.message, cancels=[running], **QUICK)
    return running


def _wire_inputs(fresh, asking: Asking, picks: gr.HTML, scenes: list[Example], outputs: list, running):
    """A new image, an example or Clear: the columns start afresh, and a run about something else ends."""
    picture, question, truth = asking.picture, asking.question, asking.truth
    end = QUICK | {"cancels": [running]}
    everything = [picture, question, truth, *outputs]

    def pick(event: gr.EventData):
        scene = scenes[event.index]
        return {picture: scene.image, question: scene.question, truth: words.truth(scene)} | fresh(
            {"path": scene.image}
        )

    picks.pick(pick, None, everything, **end)
    asking.clear.click(lambda: {picture: None, question: "", truth: ""} | fresh(None), None, everything, **end)
    gr.on([picture.upload, picture.clear], fresh, picture, everything, **RAW, **end)
    gr.on([question.input, picture.upload, picture.clear], lambda: "", None, truth, **QUICK)


def _wire_columns(columns: list[Column], add: gr.Button, shown: gr.State):
    boxes = [shown, add, *(column.box for column in columns), *(column.remove for column in columns)]
    add.click(lambda on: _showing([*on[: on.index(False)], True, *on[on.index(False) + 1 :]]), shown, boxes, **QUICK)
    for column in columns:
        column.remove.click(partial(_without, column.index), shown, boxes, **QUICK)


# ---- layout


def _asking(llava, scenes: list[Example]) -> Asking:
    with gr.Column(elem_id="ask-image"):
        picture = _upload(scenes)
    with gr.Column(elem_id="ask-question"):
        question = gr.Textbox(
            scenes[0].question if scenes else "",
            label="Question",
            placeholder="What do you want to know about the image?",
            lines=2,
            max_lines=6,
            elem_id="question",
        )
        truth = gr.HTML(words.truth(scenes[0]) if scenes else "", elem_id="truth", js_on_load=None)
        with gr.Row(elem_id="buttons"):
            ask = gr.Button("Run", variant="primary", elem_id="run", min_width=120)
            stop = gr.Button("Stop", elem_id="stop", min_width=80)
            clear = gr.Button("Clear", elem_id="clear", min_width=80)
        ready = words.INVITATION if scenes else words.EMPTY
        message = gr.HTML(ready, html_template=STATUS, elem_id="message", js_on_load=words.LIVE)
        trouble = gr.HTML("", html_template=TEXT, elem_id="trouble", js_on_load=words.ALERT)
        with gr.Accordion("More", open=False, elem_id="more"):
            options = _options(llava)
    return Asking(picture, question, truth, ask, stop, clear, message, trouble, options)


def _upload(scenes: list[Example]) -> gr.Image:
    return gr.Image(
        scenes[0].image if scenes else None,
        label="Image",
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard"],
        buttons=["fullscreen"],
        height=306,
    )


def _options(llava) -> list[gr.components.Component]:
    longest = min(512, llava.room() // 2)
    most = 2**31 - 1
    return [
        gr.Slider(1, longest, 128, step=1, label="max new tokens", info="where an answer is cut off"),
        gr.Slider(0, 2, 0, step=0.05, label="temperature", info="0: the likeliest token, always"),
        gr.Number(0, label="seed", precision=0, minimum=0, maximum=most, info="of the draws, above temperature 0"),
    ]


def _examples(scenes: list[Example]) -> gr.HTML:
    with gr.Column(elem_id="ask-examples"):
        gr.HTML(words.EXAMPLES_TITLE, js_on_load=None, elem_classes="eyebrow")
        return cards(scenes)


def _column(page: gr.Blocks, llava, index: int, scenes: list[Example]) -> Column:
    name = FIRST[index] if index < len(FIRST) and FIRST[index] in REDUCERS else next(iter(REDUCERS))
    crop = llava.crop(open_image(scenes[0].image)) if scenes else None
    start = {part: value for (_, part), value in run.blank(index, crop, llava.grid).items()}
    visible = index < FEWEST
    with gr.Column(visible=visible, elem_id=f"column-{index + 1}", elem_classes="lane", min_width=0) as box:
        with gr.Row(elem_classes="head"):
            method = gr.Dropdown(
                list(REDUCERS),
                value=name,
                label=f"Method {index + 1}",
                show_label=False,
                container=False,
                elem_classes="method",
                scale=1,
            )
            remove = gr.Button("Remove", size="sm", elem_classes="remove", scale=0, min_width=76, visible=False)
        settings = gr.JSON({}, visible=False)
        about = gr.HTML(words.about(name), elem_classes="about", js_on_load=None)
        method.change(words.about, method, about, **QUICK)
        with gr.Accordion("Parameters", open=False, elem_classes="parameters"):

            @gr.render([method, settings], triggers=[method.change, page.load], **QUICK_RENDER)
            def parameters(name, values):
                controls.show(name, values, settings)

        parts = {
            "by": gr.HTML(start["by"], html_template=TEXT, elem_classes="by", js_on_load=None),
            "answer": gr.HTML(start["answer"], html_template=TEXT, elem_classes="answer", js_on_load=words.LIVE),
            "refusal": gr.HTML(start["refusal"], html_template=TEXT, elem_classes="refusal", js_on_load=words.ALERT),
            "picture": gr.Image(
                start["picture"],
                label=f"Patches, method {index + 1}",
                format="png",
                buttons=["download", "fullscreen"],
                interactive=False,
                show_label=False,
                elem_classes="picture",
            ),
            "legend": gr.HTML(start["legend"], elem_classes="legend", js_on_load=None),
            "numbers": gr.HTML(numbers.table(None), elem_classes="numbers", js_on_load=None),
            "curve": gr.Plot(visible=False, show_label=False, label="Similarity curve", elem_classes="curve"),
            "no_curve": gr.HTML(start["no_curve"], elem_classes="no-curve", js_on_load=None),
        }
    return Column(index, box, remove, method, settings, parts)


# ---- what the events do


def _places(asking: Asking, columns: list[Column], conditions: gr.HTML) -> dict[tuple, gr.components.Component]:
    """Where each part that a run speaks of stands on the page."""
    parts = {(column.index, part): place for column in columns for part, place in column.parts.items()}
    return {run.MESSAGE: asking.message, run.TROUBLE: asking.trouble, run.CONDITIONS: conditions} | parts


def _update(places: dict, parts: run.Parts) -> dict:
    """The parts that a run names, as Gradio updates; a column shows its curve or says why there is none."""
    updates = {}
    for key, value in parts.items():
        updates[places[key]] = value
        if key[1] == "curve":
            updates[places[key]] = gr.update(value=value, visible=value is not None)
            updates.setdefault(places[key[0], "no_curve"], gr.update(visible=value is None))
        elif key[1] == "no_curve":
            updates[places[key]] = gr.update(value=value, visible=parts.get((key[0], "curve")) is None)
    return updates


def _comparing(llava, time_limit: float):
    """The work of Run: what the page holds, made into a comparison."""

    def comparing(stop, upload, question, shown, new, temperature, seed, *methods_and_settings):
        methods, settings = methods_and_settings[:COLUMNS], methods_and_settings[COLUMNS:]
        asked = run.Asked(
            run.opened(upload),
            question or "",
            {i: controls.chosen(methods[i], settings[i]) for i in range(COLUMNS) if shown[i]},
            run.whole(new, "max new tokens", 1),
            temperature or 0.0,
            run.whole(seed, "seed", 0),
            time_limit,
        )
        yield from run.compare(stop, llava, asked)

    return comparing


def _fresh(llava, asking: Asking, places: dict):
    """The columns for a new image: nothing answered yet; or why the image cannot be used."""

    def fresh(upload):
        try:
            crop = llava.crop(run.opened(upload)) if upload else None
            parts = run.said(words.INVITATION if upload else words.EMPTY)
            kept = {}
        except ValueError as error:
            crop, parts = None, run.trouble(error)
            kept = {asking.picture: None}  # or the browser labours at what we refuse
        parts[run.CONDITIONS] = run.SIDE_BY_SIDE
        for column in range(COLUMNS):
            parts |= run.blank(column, crop, llava.grid)
        return kept | _update(places, parts)

    return fresh


def _without(index: int, shown: list[bool]) -> list:
    return _showing([on and i != index for i, on in enumerate(shown)])


def _showing(shown: list[bool]) -> list:
    """Updates for the columns that are shown; fewer than two compare nothing, more than four cannot be read."""
    few = sum(shown) <= FEWEST
    updates = [gr.update(visible=on) for on in shown] + [gr.update(visible=on and not few) for on in shown]
    return [shown, gr.update(visible=not all(shown)), *updates]
