"""The Compare tab as it is laid out: what is asked, what is compared, one column a method. Wires nothing but a column's
own controls."""

from dataclasses import dataclass

import gradio as gr

from longtail import REDUCERS, cost, open_image
from longtail.export import picture

from . import arithmetic, board, chart, controls, export, gallery, numbers, panel, prose
from .examples import Example, cards
from .host import longest
from .presets import COLUMNS, FEWEST, FIRST, PRESETS
from .words import dictionary, say
from .words import label as t

PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}
QUICK = PRIVATE | {"queue": False}
# Gradio evaluates a filled template as JavaScript once more, so {{value}} would run what is written in it: text that a
# model or a visitor wrote is escaped inside the expression, and stays text.
SAFE = "(text => String(text).replace(/[&<>\"'`]/g, c => `&#${c.charCodeAt(0)};`))"
TEXT = f"<p>${{{SAFE}(value ?? '')}}</p>"
STATUS = f"<p class=\"${{/…\\ue001?$/.test(value) ? 'busy' : ''}}\">${{{SAFE}(value ?? '')}}</p>"
ANSWER = f"<p>${{value.map(part => `<span class='${{part.kind}}'>${{{SAFE}(part.text)}}</span> `).join('')}}</p>"


@dataclass(frozen=True)
class Asking:
    """What is asked, and the buttons that ask it."""

    picture: gr.Image
    question: gr.Textbox
    example: gr.Textbox  # the name of the example that is shown, none for an upload
    truth: gr.HTML
    ask: gr.Button
    preview: gr.Button
    measure: gr.Button
    follow: gr.Button
    stop: gr.Button
    clear: gr.Button
    message: gr.HTML
    trouble: gr.HTML
    need_image: gr.HTML  # what the field above lacks
    need_question: gr.HTML
    options: list[gr.components.Component]  # max new tokens, temperature, seed, repeats
    sheet: list[gr.components.Component]  # model, GPU and width of the arithmetic


@dataclass(frozen=True)
class Bar:
    """What applies to every column."""

    presets: dict[str, gr.Button]
    budget: gr.Number
    unpruned: gr.Button
    add: gr.Button
    files: dict[str, gr.Button]  # by ending
    download: gr.HTML
    replay: gr.UploadButton
    conditions: gr.HTML


@dataclass(frozen=True)
class Column:
    """One method's place on the page."""

    index: int
    box: gr.Column
    remove: gr.Button
    method: gr.Dropdown
    settings: gr.JSON  # {method: {parameter: value}}, kept by the browser
    save: gr.Button
    redraw: gr.Textbox  # set to anything new when settings come from elsewhere than the controls
    parts: dict[str, gr.components.Component]  # what a run fills in


def top(llava, models: tuple[str, ...], note: str) -> tuple[gr.HTML, gr.Dropdown]:
    """Name, claim, and which model answers; where there are several, the choice; a note, if any, below."""
    with gr.Row(elem_id="top"):
        gr.HTML(prose.header(), elem_id="header", js_on_load=None)
        status = gr.HTML(prose.status(llava), elem_id="status", js_on_load=None)
        model = gr.Dropdown(
            list(models),
            value=models[0] if models else None,
            label=t("model"),
            elem_id="model",
            visible=len(models) > 1,
        )
    if note:
        gr.HTML(f'<p role="status">{note}</p>', elem_id="note", js_on_load=None)
    dictionary(prose.PANEL)
    return status, model


def asking(llava, scenes: list[Example]) -> tuple[Asking, gr.HTML]:
    """Image, question, buttons and examples; the second is the cards, whose event is `pick`."""
    first = scenes[0] if scenes and llava else None
    with gr.Row(elem_id="ask"):
        with gr.Column(elem_id="ask-image"):
            picture = _upload(first)
            need_image = gr.HTML("", html_template=TEXT, elem_id="need-image", js_on_load=prose.ALERT)
        with gr.Column(elem_id="ask-question"):
            question = gr.Textbox(
                first.question if first else "",
                label=t("question"),
                placeholder=t("question_hint"),
                lines=2,
                max_lines=6,
                elem_id="question",
            )
            need_question = gr.HTML("", html_template=TEXT, elem_id="need-question", js_on_load=prose.ALERT)
            example = gr.Textbox(first.name if first else "", visible=False)
            truth = gr.HTML(prose.truth(first), elem_id="truth", js_on_load=None)
            buttons = _buttons()
            ready = say("only_replays" if llava is None else "invitation" if first else "empty")
            message = gr.HTML(ready, html_template=STATUS, elem_id="message", js_on_load=prose.LIVE)
            trouble = gr.HTML("", html_template=TEXT, elem_id="trouble", js_on_load=prose.ALERT)
            with gr.Accordion(t("more"), open=False, elem_id="more"):
                options, sheet = _options(llava), _sheet()
        with gr.Column(elem_id="ask-examples"):
            gr.HTML(f"<p>{say('examples')}</p>", js_on_load=None, elem_classes="eyebrow")
            picks = cards(scenes)
    needs = need_image, need_question
    return Asking(picture, question, example, truth, *buttons, message, trouble, *needs, options, sheet), picks


def bar() -> Bar:
    """Presets and what applies to every column."""
    with gr.Row(elem_id="presets"):
        gr.HTML(f"<p>{say('presets')}</p>", js_on_load=None, elem_classes="eyebrow")
        presets = {key: gr.Button(t(key), size="sm", scale=0, min_width=0) for key in PRESETS}
        unpruned = gr.Button(t("unpruned"), elem_id="unpruned", size="sm", scale=0, min_width=0)
        add = gr.Button(t("add"), elem_id="add", size="sm", scale=0, min_width=0)
    with gr.Row(elem_id="bar"):
        budget = gr.Number(
            0, label=t("equal"), info=t("equal_info"), precision=0, minimum=0, maximum=576, elem_id="budget"
        )
        view()
        with gr.Row(elem_id="files"):
            gr.HTML(f"<p>{say('export')}</p>", js_on_load=None, elem_classes="eyebrow")
            files = {
                ending: gr.Button(ending[1:].upper(), size="sm", scale=0, min_width=0, elem_classes="file")
                for ending in export.WRITERS
            }
            replay = gr.UploadButton(
                t("replay"), file_types=[".json", ".html"], size="sm", scale=0, min_width=0, elem_id="replay"
            )
        download = export.download()
    conditions = gr.HTML(say("side_by_side"), elem_id="conditions", js_on_load=gallery.STANDING)
    return Bar(presets, budget, unpruned, add, files, download, replay, conditions)


def view():
    """The veil, the scale of the curve, the link: the browser's own, no event of the server's."""
    value = (
        f'<label>{say("veil")} <input type="range" name="veil" min="0" max="1" step="0.02"></label>'
        f'<label><input type="checkbox" name="log"> {say("log")}</label>'
        f'<button type="button" name="link">{say("link")}</button>'
    )
    gr.HTML(value, elem_id="view", js_on_load=chart.script("view.js"))


def column(page: gr.Blocks, llava, index: int, scenes: list[Example]) -> Column:
    """A column, its controls made from its method's parameters."""
    name = FIRST[index] if index < len(FIRST) and FIRST[index] in REDUCERS else next(iter(REDUCERS))
    image = open_image(scenes[0].image) if scenes and llava else None
    crop, views = (llava.crop(image), llava.views(image.size)) if image else (None, None)
    start = {part: value for (_, part), value in board.blank(index, views).items()}
    with gr.Column(visible=index < FEWEST, elem_id=f"column-{index + 1}", elem_classes="lane", min_width=0) as box:
        with gr.Row(elem_classes="head"):
            method = gr.Dropdown(
                list(REDUCERS),
                value=name,
                label=say("method_n", index + 1),
                show_label=False,
                container=False,
                elem_classes="method",
                scale=1,
            )
            save = gr.Button("PNG", size="sm", elem_classes="save", scale=0, min_width=0)
            remove = gr.Button(t("remove"), size="sm", elem_classes="remove", scale=0, min_width=0)
        settings = gr.JSON({}, visible=False)
        about = gr.HTML(prose.about(name), elem_classes="about", js_on_load=None)
        method.change(prose.about, method, about, **QUICK)
        with gr.Accordion(t("parameters"), open=False, elem_classes="parameters"):
            redraw = controls.drawn(index, page, method, settings)
            readings = gr.HTML("", elem_classes="readings", js_on_load=None)
        parts = {
            "readings": readings,
            "by": gr.HTML(start["by"], html_template=TEXT, elem_classes="by", js_on_load=None),
            "turns": gr.HTML("", html_template="<dl>${value}</dl>", elem_classes="turns", js_on_load=None),
            "answer": gr.HTML([], html_template=ANSWER, elem_classes="answer", js_on_load=prose.LIVE),
            "refusal": gr.HTML("", html_template=TEXT, elem_classes="refusal", js_on_load=prose.ALERT),
            "panel": panel.panel(index, start["panel"], crop and picture(crop)),
            "numbers": gr.HTML(numbers.table(None), elem_classes="numbers", js_on_load=None),
        }
    return Column(index, box, remove, method, settings, save, redraw, parts)


def _buttons() -> tuple[gr.Button, ...]:
    with gr.Row(elem_id="buttons"):
        return (
            gr.Button(t("run"), variant="primary", elem_id="run", min_width=0),
            gr.Button(t("preview"), elem_id="preview", min_width=0),
            gr.Button(t("measure"), elem_id="measure", min_width=0),
            gr.Button(t("follow"), elem_id="follow", min_width=0),
            gr.Button(t("stop"), elem_id="stop", min_width=0),
            gr.Button(t("clear"), elem_id="clear", min_width=0),
        )


def _upload(scene: Example | None) -> gr.Image:
    return gr.Image(
        scene.image if scene else None,
        label=t("image"),
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard"],
        buttons=["fullscreen"],
        height=306,
    )


def _options(llava) -> list[gr.components.Component]:
    most = 2**31 - 1
    return [
        gr.Slider(1, longest(llava), 128, step=1, label=t("new_tokens"), info=t("new_tokens_info")),
        gr.Slider(0, 2, 0, step=0.05, label=t("temperature"), info=t("temperature_info")),
        gr.Number(0, label=t("seed"), precision=0, minimum=0, maximum=most, info=t("seed_info")),
        gr.Slider(2, 20, 5, step=1, label=t("repeats"), info=t("repeats_info")),
    ]


def _sheet() -> list[gr.components.Component]:
    usual = arithmetic.Sheet()
    return [
        gr.Dropdown(list(cost.MODELS), value=usual.model, label=t("arithmetic_of")),
        gr.Dropdown(list(cost.SHEET), value=usual.gpu, label=t("arithmetic_gpu")),
        gr.Radio(list(arithmetic.BITS), value=usual.width, label=t("arithmetic_width")),
    ]


def columns(page: gr.Blocks, llava, scenes: list[Example]) -> list[Column]:
    """All columns, the first few of them shown."""
    with gr.Row(elem_id="columns"):
        return [column(page, llava, i, scenes) for i in range(COLUMNS)]
