"""The page: layout first, then one wiring line an event. It is handed a model, or none, and loads nothing."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import gradio as gr

from . import about, api, chart, events, export, layout, link, prose, results, sweep
from .examples import EXAMPLES, PRESSED, read_examples
from .gallery import RECORDED, gallery, read_recorded
from .host import Host
from .journal import Journal
from .layout import QUICK
from .line import MOST, OPEN, Line
from .parts import Page
from .presets import COLUMNS, FEWEST
from .words import label, say

RESULTS = Path(__file__).parents[1] / "assets" / "tiny" / "results.json"
RAW = {"preprocess": False}  # uploads are handed over unopened: longtail.open_image decides, and says why not
WAITING = {"api_visibility": "private", "show_progress": "minimal"}  # the place in the queue shows


def build(
    llava,
    time_limit: float = 60.0,
    examples: Path = EXAMPLES,
    models: tuple[str, ...] = (),
    load: Callable | None = None,
    note: str = "",
    recorded: Path = RECORDED,
    waiting: int = MOST,
    journal: Journal | None = None,
) -> api.Blocks:
    """The page for a loaded model; for None, one that only replays. `models` may be changed to, by `load(name)`; `note`
    is what is to be said of the one that it starts with; `recorded` is a folder of reports to replay; `waiting` may
    stand in line for the model, and `journal` is told of every run. What it is built around is its `host`."""
    host = Host(llava, models, load, Line(waiting), journal)
    scenes, runs = read_examples(examples), read_recorded(recorded)
    gr.set_static_paths([examples.resolve(), chart.PLOTLY])
    with api.Blocks(title="LongTail", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        status, model = layout.top(llava, models, note)
        with gr.Tabs(selected="compare", elem_id="tabs") as tabs:
            with gr.Tab(label("tab_compare"), id="compare") as compare_tab:
                if llava is None:
                    cards = gallery(runs, asleep=True)
                asking, picks = layout.asking(llava, scenes)
                if llava is not None:
                    cards = gallery(runs, asleep=False)
                bar = layout.bar()
                columns = layout.columns(blocks, llava, scenes)
                overlaps = gr.HTML("", elem_id="overlaps", js_on_load=None)
                gr.HTML(prose.footer(), elem_id="footer", js_on_load=None)
            with gr.Tab(label("tab_sweep"), id="sweep") as sweep_tab:
                swept = sweep.tab(host, time_limit, asking.picture, asking.question, scenes)
            with gr.Tab(label("tab_results"), id="results") as results_tab:
                results.tab(RESULTS)
            with gr.Tab(label("tab_about"), id="about") as about_tab:
                about.about(llava, host.journal.content)
        shown = gr.JSON([i < FEWEST for i in range(COLUMNS)], visible=False)
        result = gr.State(None, time_to_live=3600)
        top, below = (status, model, tabs, asking), (bar, columns, overlaps, swept, shown, result)
        page = Page(host, time_limit, scenes, runs, *top, *below)
        opened = [compare_tab, sweep_tab, results_tab, about_tab]
        _wire_link(page, blocks, opened)  # the first: the listeners to an event wait for each other
        asked = _wire_runs(page)
        _wire_inputs(page, picks, asked)
        _wire_columns(page)
        _wire_files(page, cards, asked)
        _wire_model(page, asked)
        api.endpoints(host, time_limit)
    blocks.host = host
    return blocks


# ---- the wires


def _wire_link(page: Page, blocks: gr.Blocks, tabs: list[gr.Tab]):
    """What the page holds is written into its address; an address is followed when the page is opened."""
    held = page.held()
    write = link.writer({name: field.value for name, field in page.fields().items()})
    gr.on([part.change for part in held], None, held, None, js=write, **QUICK)
    for tab in tabs:
        tab.select(None, js=link.OPENED.format(tab.id), **QUICK)

    def follow(request: gr.Request):
        return events.follow(page, request.query_params.multi_items())

    followed = blocks.load(follow, None, page.everything(), **QUICK)
    followed.then(None, js=link.FOLLOWED, **QUICK)


def _wire_runs(page: Page) -> list:
    """Run, Preview, Measure, Follow up, a selection by hand, a run of the sweep, what stops them; returns events."""
    asking, lanes, setting, opened = page.asking, page.lanes(), page.setting(), page.swept.opened
    fields = [asking.picture, page.bar.budget, asking.question, *asking.options, *asking.sheet, page.result]
    how = {"inputs": [*fields, *lanes], "outputs": page.outputs(), "show_progress_on": asking.message}
    how |= OPEN | RAW | WAITING
    once, beside, often, on = (events.asking(page, mode) for mode in ("run", "preview", "measure", "follow"))

    def by_hand(event: gr.EventData, *values):
        return events.by_hand(page, values, [int(patch) for patch in event.patches])

    runs = [
        gr.on([asking.ask.click, asking.question.submit], once, **how),
        asking.preview.click(beside, **how),
        asking.measure.click(often, **how),
        asking.follow.click(on, **how),
        opened.change(partial(events.opened, page), opened, page.everything(), **QUICK).then(once, **how),
        *(c.parts["panel"].ask(by_hand, lanes, setting, **QUICK).then(once, **how) for c in page.columns),
    ]
    stopped = asking.stop.click(partial(page.host.line.halt, *events.ASKING), None, None, cancels=runs, **QUICK)
    stopped.then(lambda: say("stopped_now"), None, asking.message, **QUICK)  # after the last update, not beside it
    return runs


def _wire_inputs(page: Page, picks: gr.HTML, runs: list):
    """A new image, an example or Clear: the columns start afresh, and a run about something else ends."""
    asking, end, everything = page.asking, QUICK | {"cancels": runs}, page.everything()
    picture, question, example, truth = asking.picture, asking.question, asking.example, asking.truth

    def pick(event: gr.EventData):
        return events.example(page, page.scenes[event.index])

    def new(upload):
        return {example: "", truth: ""} | events.afresh(page, upload)

    picks.pick(pick, None, everything, **end)
    asking.clear.click(lambda: {question: "", picture: None} | new(None), None, everything, **end)
    gr.on([picture.upload, picture.clear], new, picture, everything, **RAW, **end)
    example.change(None, example, None, js=PRESSED, **QUICK)
    question.input(lambda: ("", ""), None, [truth, asking.need_question], **QUICK)


def _wire_columns(page: Page):
    """Columns that come and go, presets, and how settings count on the image."""
    bar, lanes, setting = page.bar, page.lanes(), page.setting()
    bar.add.click(partial(events.added, page), lanes, setting, **QUICK)
    bar.unpruned.click(partial(events.unpruned, page), lanes, setting, **QUICK)
    for key, button in bar.presets.items():
        button.click(partial(events.preset, page, key), None, [*setting, bar.budget], **QUICK)
    for column in page.columns:
        column.remove.click(partial(events.removed, page, column.index), lanes, setting, **QUICK)
        inputs = [column.method, column.settings, page.result]
        for change in (column.settings.change, column.method.change):  # each its own: deferred, Gradio repeats an event
            change(partial(events.readings, column.index), inputs, column.parts["readings"], **QUICK)


def _wire_files(page: Page, cards: gr.HTML, runs: list):
    """Exports, replays, recorded runs, and the arithmetic for another model or GPU."""
    bar, sheet, told = page.bar, page.asking.sheet, [page.bar.download, page.asking.message, page.asking.trouble]

    def pick(event: gr.EventData):
        return events.recorded(page, event.name)

    for ending, button in bar.files.items():
        make = partial(export.packed, ending=ending)
        button.click(partial(events.handed, page, make), page.result, told, **QUICK)
    for column in page.columns:
        make = partial(export.column, at=column.index)
        column.save.click(partial(events.handed, page, make), page.result, told, **QUICK)
    bar.replay.upload(partial(events.replayed, page), bar.replay, page.everything(), cancels=runs, **QUICK)
    cards.pick(pick, None, page.everything(), cancels=runs, **QUICK)
    recount, outputs = partial(events.recounted, page), page.outputs()
    gr.on([part.input for part in sheet], recount, [*sheet, page.result], outputs, **QUICK)


def _wire_model(page: Page, runs: list):
    """Another model."""
    how = OPEN | RAW | {"api_visibility": "private", "show_progress": "full", "show_progress_on": page.status}
    inputs, changing = [page.model, page.asking.picture], events.changing(page)
    page.model.input(changing, inputs, page.everything(), cancels=runs, **how)
