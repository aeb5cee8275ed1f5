"""The page: layout first, then one wiring line an event. It is handed a model, or none, and loads nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import gradio as gr

from longtail import REDUCERS, Reducer, make
from longtail.export import picture

from . import about, api, arithmetic, board, chart, export, layout, link, panel, prose, results, run, sweep
from .controls import chosen
from .examples import EXAMPLES, Example, read_examples
from .host import Host
from .layout import QUICK
from .presets import COLUMNS, FEWEST, PRESETS, Lanes
from .words import label, say

RESULTS = Path(__file__).parents[1] / "assets" / "tiny" / "results.json"
LANE = {"concurrency_id": "model", "concurrency_limit": 1}
RAW = {"preprocess": False}  # uploads are handed over unopened: longtail.open_image decides, and says why not
WAITING = {"api_visibility": "private", "show_progress": "minimal"}  # the place in the queue shows
FRESH = count(1)


@dataclass(frozen=True)
class Page:
    """Everything on the page that an event reads or fills."""

    host: Host
    time_limit: float
    scenes: list[Example]
    status: gr.HTML
    model: gr.Dropdown
    tabs: gr.Tabs
    asking: layout.Asking
    bar: layout.Bar
    columns: list[layout.Column]
    overlaps: gr.HTML
    swept: sweep.Sweep
    shown: gr.JSON  # which columns are
    result: gr.State

    def lanes(self) -> list:
        """The components that a `Lanes` is read from."""
        return [self.shown, *(c.method for c in self.columns), *(c.settings for c in self.columns)]

    def held(self) -> list:
        """The components whose values stand in the address, in the order that its script reads."""
        shown, *columns = self.lanes()
        return [self.asking.question, self.asking.example, shown, *self.fields().values(), *columns]

    def fields(self) -> dict:
        """The plain fields, by their names in the address."""
        fields = [self.bar.budget, *self.asking.options, *self.asking.sheet, *self.swept.asked.values()]
        return dict(zip(link.FIELDS, fields, strict=True))

    def places(self) -> dict:
        """Which component shows which part of a run."""
        parts = {(column.index, part): place for column in self.columns for part, place in column.parts.items()}
        parts |= {(column.index, "picture"): column.parts["panel"] for column in self.columns}
        return parts | {
            run.MESSAGE: self.asking.message,
            run.TROUBLE: self.asking.trouble,
            run.NEED_IMAGE: self.asking.need_image,
            run.NEED_QUESTION: self.asking.need_question,
            board.CONDITIONS: self.bar.conditions,
            board.OVERLAPS: self.overlaps,
            board.STATUS: self.status,
            board.RESULT: self.result,
        }

    def update(self, parts: run.Parts) -> dict:
        """The parts that a run names, as Gradio updates."""
        places, updates = self.places(), {}
        for (column, part), value in parts.items():
            place = places[column, part]
            if part in ("panel", "picture"):
                changed = {"value": value} if part == "panel" else {"picture": value}
                updates[place] = gr.update(
                    **{k: v for k, v in (updates.get(place) or {}).items() if k != "__type__"} | changed
                )
            else:
                updates[place] = value
        return updates

    def outputs(self) -> list:
        """Everything that a run may change."""
        return list(dict.fromkeys(self.places().values()))

    def set(self, lanes: Lanes) -> dict:
        """The columns as these lanes have them."""
        updates = {self.shown: lanes.shown, self.bar.add: gr.update(visible=not all(lanes.shown))}
        for column, on, method, settings in zip(self.columns, lanes.shown, lanes.methods, lanes.settings, strict=True):
            updates |= {
                column.box: gr.update(visible=on),
                column.remove: gr.update(visible=on and sum(lanes.shown) > 1),
                column.method: method,
                column.settings: settings,
                column.redraw: next(FRESH),
            }
        return updates

    def setting(self) -> list:
        """Everything that `set` may change."""
        each = [[c.box, c.remove, c.method, c.settings, c.redraw] for c in self.columns]
        return [self.shown, self.bar.add, *(part for parts in each for part in parts)]


def build(
    llava,
    time_limit: float = 60.0,
    examples: Path = EXAMPLES,
    models: tuple[str, ...] = (),
    load: Callable | None = None,
) -> gr.Blocks:
    """The page for a loaded model; for None, one that only replays. `models` may be changed to, by `load(name)`."""
    host, scenes = Host(llava, models, load), read_examples(examples)
    gr.set_static_paths([examples.resolve(), chart.PLOTLY])
    with api.Blocks(title="LongTail", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        status, model = layout.top(llava, models)
        with gr.Tabs(selected="compare", elem_id="tabs") as tabs:
            with gr.Tab(label("tab_compare"), id="compare") as compare_tab:
                asking, picks = layout.asking(llava, scenes)
                bar = layout.bar()
                columns = layout.columns(blocks, llava, scenes)
                overlaps = gr.HTML("", elem_id="overlaps", js_on_load=None)
                gr.HTML(prose.footer(), elem_id="footer", js_on_load=None)
            with gr.Tab(label("tab_sweep"), id="sweep") as sweep_tab:
                swept = sweep.tab(host, time_limit, asking.picture, asking.question, scenes)
            with gr.Tab(label("tab_results"), id="results") as results_tab:
                results.tab(RESULTS)
            with gr.Tab(label("tab_about"), id="about") as about_tab:
                about.about(llava)
        shown = gr.JSON([i < FEWEST for i in range(COLUMNS)], visible=False)
        result = gr.State(None, time_to_live=3600)
        page = Page(host, time_limit, scenes, status, model, tabs, asking, bar, columns, overlaps, swept, shown, result)
        runs = _wire_runs(page)
        _wire_inputs(page, picks, runs)
        _wire_columns(page)
        _wire_files(page, runs)
        _wire_link(page, blocks)
        for tab in (compare_tab, sweep_tab, results_tab, about_tab):
            tab.select(None, js=link.OPENED.format(tab.id), **QUICK)
        api.endpoints(host, time_limit)
        model.change(_changing(page), model, page.outputs(), cancels=runs, **LANE, **WAITING)
    return blocks


# ---- what asks the model


def _wire_runs(page: Page) -> list:
    """Run, Measure, Follow up, a selection by hand, a run of the sweep, and what stops them; returns the events."""
    asking, outputs = page.asking, page.outputs()
    inputs = [
        asking.picture,
        page.bar.budget,
        asking.question,
        *asking.options,
        *asking.sheet,
        page.result,
        *page.lanes(),
    ]
    how = {"inputs": inputs, "outputs": outputs} | LANE | RAW | WAITING | {"show_progress_on": asking.message}
    once, often, on = (_asking(page, mode) for mode in ("run", "measure", "follow"))
    runs = [
        gr.on([asking.ask.click, asking.question.submit], once, **how),
        asking.measure.click(often, **how),
        asking.follow.click(on, **how),
    ]

    def by_hand(event: gr.EventData, *values):
        return _by_hand(page, values, [int(patch) for patch in event.patches])

    for column in page.columns:
        chosen = column.parts["panel"].ask(by_hand, page.lanes(), page.setting(), **QUICK)
        runs.append(chosen.then(once, **how))
    picked = page.swept.opened
    opened = picked.change(partial(_opened, page), picked, _opening(page), **QUICK)
    runs.append(opened.then(once, **how))
    stopped = asking.stop.click(None, None, None, cancels=runs, **QUICK)
    stopped.then(lambda: say("stopped_now"), None, asking.message, **QUICK)  # after the last update, not beside it
    return runs


def _asking(page: Page, mode: str):
    """The event of a button: what the page holds, made into a comparison."""

    def produce(stop, upload, budget, question, new, temperature, seed, repeats, model, gpu, width, before, *lanes):
        needs = _needs(upload, question)
        yield needs
        if any(needs.values()):
            return
        llava = page.host.ready()
        if mode == "follow" and not (before and before.answers):
            raise ValueError("there is no answer to follow up on yet: press Run first")
        asked = board.Asked(
            run.opened(upload),
            question or "",
            _lanes(lanes).reducers(run.whole(budget or 0, "equal budget", 0)),
            run.whole(new, "max new tokens", 1),
            temperature or 0.0,
            run.whole(seed, "seed", 0),
            page.time_limit,
            repeat=run.whole(repeats, "repeats", 2) if mode == "measure" else 1,
            after=before if mode == "follow" else None,
            sheet=arithmetic.Sheet(model, gpu, width),
        )
        yield from board.compare(stop, llava, asked)

    return run.streamed(produce, page.update)


def _needs(upload, question) -> run.Parts:
    """What each field lacks, said under it."""
    return {
        run.NEED_IMAGE: "" if upload else say("need_image"),
        run.NEED_QUESTION: "" if (question or "").strip() else say("need_question"),
    }


def _lanes(values) -> Lanes:
    shown, methods, settings = values[0], values[1 : COLUMNS + 1], values[COLUMNS + 1 :]
    return Lanes(list(shown), list(methods), [column or {} for column in settings])


def _by_hand(page: Page, values, marked: list[int]) -> dict:
    """The patches chosen by hand as a column of their own: the one that has them already, a free one, or the last."""
    lanes = _lanes(values)
    have = next((i for i, on in enumerate(lanes.shown) if on and lanes.methods[i] == "Manual"), None)
    return page.set(lanes.having("Manual", {"patches": make("Manual", patches=marked).patches}, have))


def _opening(page: Page) -> list:
    """Everything that opening a run of the sweep may change."""
    asking = page.asking
    outputs = [page.tabs, page.bar.budget, asking.picture, asking.question, asking.example, asking.truth]
    return list(dict.fromkeys([*outputs, *page.setting(), *page.outputs()]))


def _opened(page: Page, chosen: dict | None) -> dict:
    """A run of the sweep in the Compare tab, beside the unpruned one."""
    try:
        lanes = Lanes.of(["Full", str((chosen or {}).get("method"))])
    except ValueError as error:
        return page.update(run.trouble(error))
    scene = next((scene for scene in page.scenes if scene.image == chosen.get("image")), None)
    asked = _scene(page, scene) if scene else {}
    asked[page.asking.question] = str(chosen.get("question"))
    return asked | page.set(lanes) | {page.tabs: gr.Tabs(selected="compare"), page.bar.budget: 0}


# ---- what is asked


def _wire_inputs(page: Page, picks: gr.HTML, runs: list):
    """A new image, an example or Clear: the columns start afresh, and a run about something else ends."""
    picture, question, example, truth = (getattr(page.asking, n) for n in ("picture", "question", "example", "truth"))
    end, everything = QUICK | {"cancels": runs}, [picture, question, example, truth, *page.outputs()]

    def pick(event: gr.EventData):
        return _scene(page, page.scenes[event.index])

    def new(upload):
        return {example: "", truth: ""} | _afresh(page, upload)

    picks.pick(pick, None, everything, **end)
    page.asking.clear.click(lambda: {question: "", picture: None} | new(None), None, everything, **end)
    gr.on([picture.upload, picture.clear], new, picture, everything, **RAW, **end)
    question.input(lambda: ("", ""), None, [truth, page.asking.need_question], **QUICK)


def _scene(page: Page, scene: Example) -> dict:
    """An example, and the columns fresh for it."""
    asking = page.asking
    asked = {asking.picture: scene.image, asking.question: scene.question, asking.example: scene.name}
    return asked | {asking.truth: prose.truth(scene)} | _afresh(page, {"path": scene.image})


def _afresh(page: Page, upload) -> dict:
    """The columns for a new image: nothing answered yet; or why the image cannot be used."""
    llava = page.host.llava
    try:
        crop = llava.crop(run.opened(upload)) if upload and llava else None
        parts, kept = run.said(say("invitation" if upload else "empty")), {}
    except ValueError as error:
        crop, parts = None, run.trouble(error)
        kept = {page.asking.picture: None}  # or the browser labours at what we refuse
    return kept | page.update(parts | _blank(crop, llava))


def _blank(crop, llava) -> run.Parts:
    parts = {board.CONDITIONS: say("side_by_side"), board.OVERLAPS: "", board.RESULT: None}
    parts |= {run.NEED_IMAGE: "", run.NEED_QUESTION: ""}
    for column in range(COLUMNS):
        parts |= board.blank(column, crop, llava and llava.grid)
    return parts


def _changing(page: Page):
    """Another model: the one before is unloaded first, the columns start afresh."""

    def change(name, progress=gr.Progress(track_tqdm=True)):  # noqa: B008 (Gradio finds it there)
        if page.host.name == name:
            return {page.asking.message: gr.skip()}
        try:
            with run.LANE:
                llava = page.host.change(name)
            parts = run.said(say("loaded", name))
        except Exception as error:
            llava, parts = page.host.llava, run.trouble(error)
        return page.update(parts | _blank(None, llava) | {board.STATUS: prose.status(llava)})

    return change


# ---- columns that come and go


def _wire_columns(page: Page):
    bar, lanes, setting = page.bar, page.lanes(), page.setting()

    def add(*values):
        now = _lanes(values)
        return page.set(now.having(now.methods[now.shown.index(False)]))

    def remove(at, *values):
        now = _lanes(values)
        return page.set(Lanes([on and i != at for i, on in enumerate(now.shown)], now.methods, now.settings))

    def unpruned(*values):
        now = _lanes(values)
        there = any(on and method == "Full" for on, method in zip(now.shown, now.methods, strict=True))
        return page.set(now if there else now.having("Full"))

    def preset(key):
        specs, budget = PRESETS[key]
        return page.set(Lanes.of(list(specs))) | {bar.budget: budget}

    bar.add.click(add, lanes, setting, **QUICK)
    bar.unpruned.click(unpruned, lanes, setting, **QUICK)
    for key, button in bar.presets.items():
        button.click(partial(preset, key), None, [*setting, bar.budget], **QUICK)
    for column in page.columns:
        column.remove.click(partial(remove, column.index), lanes, setting, **QUICK)
        changes = [column.settings.change, column.method.change, page.result.change]
        inputs = [column.method, column.settings, page.result]
        gr.on(changes, partial(_readings, column.index), inputs, column.readings, **QUICK)


def _readings(at: int, method: str, settings: dict | None, result: board.Result | None) -> str:
    """How a column's settings count on the image it answered about."""
    try:
        reducer = chosen(method, settings)
    except ValueError:
        return ""  # Run says what is wrong with them
    answer = result and result.answers.get(at)
    if type(reducer).explain is Reducer.explain:
        return ""
    if not answer or not answer.curve or answer.method != method:
        return prose.readings([], say("readings_run"))
    if reducer.layers_read() != answer.reducer.layers_read():
        return prose.readings([], say("readings_other"))
    return prose.readings(reducer.explain(answer.curve.similarity, answer.curve.knee))


# ---- files


def _wire_files(page: Page, runs: list):
    bar, told = page.bar, [page.bar.download, page.asking.message, page.asking.trouble]

    def handed(make, result):
        try:
            return {bar.download: make(result)}
        except ValueError as error:
            return page.update(run.trouble(error))

    def replay(path):
        try:
            result = export.replayed(path)
        except ValueError as error:
            return page.update(run.trouble(error))
        return _replayed(page, result, Path(path).name)

    for ending, button in bar.files.items():
        button.click(partial(handed, partial(export.packed, ending=ending)), page.result, told, **QUICK)
    for column in page.columns:
        make = partial(export.column, at=column.index)
        column.save.click(partial(handed, make), page.result, told, **QUICK)
    asking = page.asking
    outputs = [*page.outputs(), *page.setting(), asking.question, asking.picture, asking.example, asking.truth]
    bar.replay.upload(replay, bar.replay, outputs, cancels=runs, **QUICK)
    gr.on(
        [part.input for part in asking.sheet],
        partial(_recounted, page),
        [*asking.sheet, page.result],
        page.outputs(),
        **QUICK,
    )


def _replayed(page: Page, result: board.Result, name: str) -> dict:
    """A report in the columns: everything as it was, nothing computed."""
    records, crop = result.comparison.records, result.comparison.crop
    parts = _blank(None, None) | board.standing(result, arithmetic.Sheet())
    for column, record in zip(result.columns, records, strict=True):
        parts[column, "picture"] = picture(crop)
        parts[column, "panel"] = panel.view(record)
    parts |= run.said(say("replayed", name)) | {board.CONDITIONS: prose.escape(result.comparison.conditions)}
    known = [record["method"] if record["method"] in REDUCERS else "Full" for record in records]
    asked = {page.asking.question: records[0]["question"], page.asking.picture: None, page.asking.example: ""}
    return page.set(Lanes.of(known)) | page.update(parts) | asked | {page.asking.truth: ""}


def _recounted(page: Page, model, gpu, width, result: board.Result | None) -> dict:
    """The numbers again, the arithmetic for another model or GPU."""
    if result is None:
        return {page.asking.message: gr.skip()}
    return page.update(board.standing(result, arithmetic.Sheet(model, gpu, width)))


# ---- the address


def _wire_link(page: Page, blocks: gr.Blocks):
    held = page.held()
    write = link.writer({name: field.value for name, field in page.fields().items()})
    gr.on([part.change for part in held], None, held, None, js=write, **QUICK)
    outputs = [*held, *page.setting(), *page.outputs(), page.asking.picture, page.asking.truth, page.tabs]

    def follow(request: gr.Request):
        return _follow(page, request.query_params.multi_items())

    followed = blocks.load(follow, None, list(dict.fromkeys(outputs)), **QUICK)
    followed.then(None, js=link.FOLLOWED, **QUICK)


def _follow(page: Page, pairs: list[tuple[str, str]]) -> dict:
    """The page as its address asks for it."""
    asking, nothing = page.asking, {page.asking.message: gr.skip()}
    try:
        asked = link.linked(pairs, page.scenes)
    except ValueError as error:
        return page.update(run.trouble(ValueError(f"the link could not be followed: {error}")))
    updates = _scene(page, asked.scene) if asked.scene else {}
    if asked.question is not None:
        updates[asking.question] = asked.question
    if asked.lanes:
        updates |= page.set(asked.lanes)
    fields = page.fields()
    updates |= {fields[name]: value for name, value in asked.fields.items()}
    if asked.tab:
        updates[page.tabs] = gr.Tabs(selected=asked.tab)
    return updates | ({asking.message: say("linked")} if updates else nothing)
