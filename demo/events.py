"""What the events do: the page and its values in, Gradio updates out. A run itself is `board.compare`."""

from contextlib import aclosing
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

import gradio as gr

from longtail import Reducer, make
from longtail.export import picture
from longtail.given import number, shown
from longtail.models.loading import Progress, gib

from . import arithmetic, board, export, link, panel, preview, prose, run
from .controls import chosen
from .examples import Example
from .host import LOADING, longest
from .parts import Page
from .presets import COLUMNS, PRESETS, Lanes
from .words import say

ASKING = ("run", "preview", "measure", "follow")  # the buttons that fill the columns

# ---- what asks the model


def asking(page: Page, mode: str):
    """The event of a button: what the page holds, made into a comparison."""

    def produce(stop, upload, budget, question, new, temperature, seed, repeats, model, gpu, width, before, *lanes):
        llava = page.host.ready()
        if needs := _needs(upload, question):
            yield needs
            return
        if mode == "follow" and (before is None or before.replayed):
            raise ValueError("there is no answer to follow up on yet: press Run first")
        asked = board.Asked(
            run.opened(upload),
            question,
            _lanes(lanes).reducers(number("equal budget", 0 if budget is None else budget, 0, 576, whole=True)),
            number("max new tokens", new, 1, longest(llava), whole=True),
            number("temperature", temperature, 0, 2),
            number("seed", seed, 0, 2**31 - 1, whole=True),
            page.time_limit,
            repeat=number("repeats", repeats, 2, 20, whole=True) if mode == "measure" else 1,
            after=before if mode == "follow" else None,
            sheet=arithmetic.Sheet(model, gpu, width),
        )
        ask = preview.preview if mode == "preview" else board.compare
        for parts in ask(stop, llava, asked, page.host.run):
            if result := parts.get(board.RESULT):
                page.host.keep(result.answers)
            yield parts

    return run.streamed(produce, page.shown_of, page.host.job(mode, page.time_limit, _records))


def _records(parts: run.Parts) -> list[dict]:
    """The records of all that stands in the columns, where that is what changed."""
    result = parts.get(board.RESULT)
    return result.comparison.records if result else []


def _needs(upload, question) -> run.Parts:
    """What fields lack, said under each."""
    needs = {} if upload else {run.NEED_IMAGE: say("need_image")}
    blank = question is None or (isinstance(question, str) and not question.strip())  # what is no text is told by a run
    return needs | ({run.NEED_QUESTION: say("need_question")} if blank else {})


def by_hand(page: Page, values, marked: list[int]) -> dict:
    """The patches chosen by hand as a column of their own: the one that has them already, a free one, or the last."""
    lanes = _lanes(values)
    have = next((i for i, on in enumerate(lanes.shown) if on and lanes.methods[i] == "Manual"), None)
    return page.set(lanes.having("Manual", {"patches": make("Manual", patches=marked).patches}, have), lanes)


def opened(page: Page, chosen: dict | None) -> dict:
    """A run of the sweep in the Compare tab, beside the unpruned one."""
    try:
        lanes = Lanes.of(["Full", str((chosen or {}).get("method"))])
    except ValueError as error:
        return page.update(run.trouble(error))
    scene = next((scene for scene in page.scenes if scene.image == chosen.get("image")), None)
    asked = example(page, scene) if scene else {}
    asked[page.asking.question] = str(chosen.get("question"))
    return asked | page.set(lanes) | {page.tabs: gr.Tabs(selected="compare"), page.bar.budget: 0}


# ---- what is asked


def example(page: Page, scene: Example) -> dict:
    """An example, and the columns fresh for it."""
    asking = page.asking
    asked = {asking.picture: scene.image, asking.question: scene.question, asking.example: scene.name}
    return asked | {asking.truth: prose.truth(scene)} | afresh(page, {"path": scene.image})


def afresh(page: Page, upload) -> dict:
    """The columns for a new image: nothing answered yet; or why the image cannot be used. What was going on ends."""
    page.host.line.end(*ASKING)
    llava = page.host.llava
    try:
        image = run.opened(upload) if upload and llava else None
        ready = "only_replays" if llava is None else "invitation" if upload else "empty"
        parts, kept = run.said(say(ready)), {}
    except ValueError as error:
        image, parts = None, run.trouble(error)
        kept = {page.asking.picture: None}  # or the browser labours at what we refuse
    return kept | page.update(parts | _blank(image, llava))


def _blank(image, llava) -> run.Parts:
    parts = {board.CONDITIONS: say("side_by_side"), board.OVERLAPS: "", board.RESULT: None}
    parts |= {run.NEED_IMAGE: "", run.NEED_QUESTION: ""}
    crop, views = (picture(llava.crop(image)), llava.views(image.size)) if image else (None, None)
    for column in range(COLUMNS):
        parts |= board.blank(column, views) | {(column, "picture"): crop}
    return parts


def changing(page: Page):
    """The event of another model: the one before is unloaded first, the columns start afresh.

    It stands in the line as a run does, and is loaded to the end even where the visitor leaves.
    """

    async def change(name, upload):
        if page.host.name == name:
            yield page.shown_of({})
            return
        ended = {}

        def produce(stop):
            yield run.said(say("loading_model", name))
            told = SimpleQueue()
            loading = Thread(target=_change, args=(page, name, told), name="loading", daemon=True)
            loading.start()
            try:
                while isinstance(step := told.get(), Progress):
                    yield run.said(say(f"loading_{step.phase}", name, *_far(step)))
            finally:
                loading.join()
            ended.update(step)

        async with aclosing(run.streamed(produce, page.shown_of, page.host.job("load", LOADING))()) as updates:
            async for update in updates:
                yield update
        fresh = afresh(page, upload) if ended else {}
        yield {page.model: page.host.name} | fresh | page.update(ended | {board.STATUS: prose.status(page.host.llava)})

    return change


def _far(step: Progress) -> tuple:
    """The values of what the page says of a step."""
    bytes_ = {"files": (gib(step.done), gib(step.total), step.file), "weights": (gib(step.total),)}
    return ({"config": (), "adapter": (), "warm_up": ()} | bytes_)[step.phase]


def _change(page: Page, name: str, told: SimpleQueue):
    """Load another model; the last that is `told` is what the page says then."""
    try:
        page.host.change(name, told.put)
        told.put(run.said(say("loaded", name)))
    except Exception as error:
        told.put(run.trouble(error))


# ---- columns


def added(page: Page, *values) -> dict:
    """One more column."""
    lanes = _lanes(values)
    return page.set(lanes.having(lanes.methods[lanes.shown.index(False)]), lanes)


def removed(page: Page, at: int, *values) -> dict:
    """One column less."""
    lanes = _lanes(values)
    return page.set(Lanes([on and i != at for i, on in enumerate(lanes.shown)], lanes.methods, lanes.settings), lanes)


def unpruned(page: Page, *values) -> dict:
    """A column of Full, unless there is one."""
    lanes = _lanes(values)
    there = any(on and method == "Full" for on, method in zip(lanes.shown, lanes.methods, strict=True))
    return page.set(lanes if there else lanes.having("Full"), lanes)


def preset(page: Page, key: str) -> dict:
    """The columns of a preset, and its budget."""
    specs, budget = PRESETS[key]
    return page.set(Lanes.of(list(specs))) | {page.bar.budget: budget}


def _lanes(values) -> Lanes:
    """What the browser says of the columns. Raises ValueError where that is not four of them."""
    on, methods, settings = values[0], values[1 : COLUMNS + 1], values[COLUMNS + 1 :]
    if not isinstance(on, list) or len(on) != COLUMNS:
        raise ValueError(f"which of {COLUMNS} columns are shown must be a list, got {shown(on)}: reload the page")
    return Lanes(on, list(methods), [column or {} for column in settings])


def readings(at: int, method: str, settings: dict | None, result: board.Result | None) -> str:
    """How a column's settings count on the image it answered about."""
    try:
        reducer = chosen(method, settings)
    except ValueError:
        return ""  # Run says what is wrong with them
    record = result and result.record(at)
    if type(reducer).explain is Reducer.explain:
        return ""
    if not record or not record["curve"] or record["method"] != method:
        return prose.readings([], say("readings_run"))
    if reducer.layers_read() != make(method, **record["params"]).layers_read():
        return prose.readings([], say("readings_other"))
    return prose.readings(reducer.explain(*board.curve(record)))


# ---- files


def handed(page: Page, make_file, result: board.Result | None) -> dict:
    """A file for the visitor, or why there is none."""
    try:
        return {page.bar.download: make_file(result)}
    except ValueError as error:
        return page.update(run.trouble(error))


def replayed(page: Page, path: str, name: str = "") -> dict:
    """A report in the columns: everything as it was, nothing computed. `name` is that of a recorded run. What was going
    on ends."""
    page.host.line.end(*ASKING)
    try:
        result = export.replayed(path)
        records, crop = result.comparison.records, result.comparison.crop
        lanes = export.lanes(result.comparison)
        parts = _blank(None, None) | board.standing(result, arithmetic.Sheet())
    except ValueError as error:
        return page.update(run.trouble(error))
    for column, record in zip(result.columns, records, strict=True):
        parts |= {(column, "picture"): picture(crop), (column, "panel"): panel.view(record)}
    parts |= run.said(say("replayed", Path(path).name))
    parts |= {board.CONDITIONS: prose.recorded(result.comparison.conditions, name)}
    asked = {page.asking.question: records[0]["question"], page.asking.picture: None, page.asking.example: ""}
    return page.set(lanes) | page.update(parts) | asked | {page.asking.truth: ""}


def recorded(page: Page, name: str) -> dict:
    """A recorded run in the columns."""
    return replayed(page, str(page.recorded[name].path), name)


def recounted(page: Page, model, gpu, width, result: board.Result | None) -> dict:
    """The numbers again, the arithmetic for another model or GPU."""
    if result is None:
        return {page.asking.message: gr.skip()}
    return page.update(board.standing(result, arithmetic.Sheet(model, gpu, width)))


# ---- the address


def follow(page: Page, pairs: list[tuple[str, str]]) -> dict:
    """The page as its address asks for it."""
    asking, nothing = page.asking, {page.asking.message: gr.skip()}
    try:
        asked = link.linked(pairs, page.scenes, page.recorded)
    except ValueError as error:
        return page.update(run.trouble(ValueError(f"the link could not be followed: {error}")))
    updates = example(page, asked.scene) if asked.scene else {}
    if name := asked.recorded or _offered(page, asked):
        updates = recorded(page, name)
    if asked.question is not None:
        updates[asking.question] = asked.question
    if asked.lanes:
        updates |= page.set(asked.lanes)
    fields = page.fields()
    updates |= {fields[name]: value for name, value in asked.fields.items()}
    if asked.tab:
        updates[page.tabs] = gr.Tabs(selected=asked.tab)
    said = {} if name else {asking.message: say("linked")}  # a replay says so itself
    return updates | said if updates else nothing


def _offered(page: Page, asked: link.Linked) -> str | None:
    """The recorded run that a visitor sees at first where no model answers, unless the address asks for something."""
    plain = asked.lanes is None and asked.scene is None and asked.question is None
    return next(iter(page.recorded), None) if page.host.llava is None and plain else None
