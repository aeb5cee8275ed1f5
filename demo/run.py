"""A comparison as it happens: one column after another, each measured alone, all of them in the one model lane.

What ends the event (its own end, Stop, a closed tab, an error) ends the work; what went wrong becomes a sentence.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from longtail import Answer, Reducer, generate, open_image

from . import draw, figures, numbers

LANE = threading.Lock()  # one run at a time on the model; taken by a worker only, never held across a yield to Gradio
DONE = object()
MESSAGE, TROUBLE = ("page", "message"), ("page", "trouble")
CONDITIONS = ("page", "conditions")
UPDATE_EVERY, PICTURE_EVERY = 0.08, 0.4  # seconds; the last of a column always shows

SIDE_BY_SIDE = "two to four methods, the same image and question, one after another"

Parts = dict[tuple, object]  # (column or "page", part) -> what it shows now
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """What one press of Run asks for."""

    image: Image.Image
    question: str
    columns: dict[int, Reducer]  # in the order shown
    max_new_tokens: int
    temperature: float
    seed: int
    time_limit: float


def opened(upload: dict | None) -> Image.Image:
    """The picture that was uploaded. Raises ValueError with a sentence where there is none or it cannot be used."""
    path = upload and upload.get("path")
    if not path:
        raise ValueError("there is no image yet: drop one in, paste one, or pick an example scene")
    if not Path(path).is_file():
        raise ValueError("the image is no longer on this server, which deletes uploads after an hour: drop it in again")
    return open_image(path)


def whole(value, name: str, least: int) -> int:
    """A field's whole number. Raises ValueError with a sentence where it holds none."""
    if not isinstance(value, int | float) or value != int(value) or value < least:
        raise ValueError(f"{name} must be a whole number, {least} or more, got {value!r}")
    return int(value)


def streamed(produce: Callable[..., Iterator[Parts]], show: Callable[[Parts], object] = dict):
    """Turn a generator `produce(stop, *inputs)` into an async event that runs it in a worker of its own.

    `show` makes what Gradio reads of what was produced, or of what went wrong.

    The worker waits until an update was taken before it goes on: drawing the page never runs beside a measured token.
    """

    async def event(*inputs):
        loop, items = asyncio.get_running_loop(), asyncio.Queue()
        stop, taken = threading.Event(), threading.Semaphore(0)

        def post(item):
            loop.call_soon_threadsafe(items.put_nowait, item)

        def work():
            try:
                with LANE, closing(produce(stop, *inputs)) as updates:
                    for update in updates:
                        if stop.is_set():
                            break
                        post(update)
                        taken.acquire()
            except Exception as error:
                post(trouble(error))
            finally:
                post(DONE)

        worker = threading.Thread(target=work, name="comparison", daemon=True)
        worker.start()
        try:
            while (item := await items.get()) is not DONE:
                yield show(item)
                taken.release()
        finally:
            stop.set()
            taken.release()
            await asyncio.shield(asyncio.to_thread(worker.join, 5))

    return event


def compare(stop: threading.Event, llava, asked: Asked) -> Iterator[Parts]:
    """Ask every column's reducer in turn; yields what changed on the page."""
    with torch.inference_mode():
        llava.prompt(asked.image, asked.question)  # what no method could answer is refused here, once
    crop = llava.crop(asked.image)
    start = {CONDITIONS: SIDE_BY_SIDE}
    for column in asked.columns:
        start |= blank(column, crop, llava.grid)
    yield start
    done: dict[int, Answer] = {}
    for place, (column, reducer) in enumerate(asked.columns.items(), 1):
        yield said(f"{type(reducer).__name__} is answering, {place} of {len(asked.columns)} …")
        try:
            for parts, answer in _column(stop, llava, asked, column, crop):
                yield parts | _numbers(done | {column: answer})
        except ValueError as error:  # this method's own: the others still answer
            yield _refused(column, reducer, error)
            continue
        done[column] = answer
        if answer.finished == "stopped":
            return
    yield _ending(asked, list(done.values()))


def _ending(asked: Asked, answers: list[Answer]) -> Parts:
    """What is said when every column had its turn."""
    refused = len(asked.columns) - len(answers)
    words = "Done. Change anything and run again."
    if refused:
        words = f"Done, but {refused} of {len(asked.columns)} could not run: the column says why."
    if not answers:
        return said(words)
    return said(words) | {CONDITIONS: numbers.conditions(answers, asked.max_new_tokens, asked.temperature, asked.seed)}


def _refused(column: int, reducer: Reducer, error: ValueError) -> Parts:
    """A column whose method cannot run here, and why."""
    return {
        (column, "by"): f"{type(reducer).__name__} · could not run",
        (column, "answer"): "",
        (column, "refusal"): trouble(error)[TROUBLE],
        (column, "no_curve"): "",
    }


def blank(column: int, crop: Image.Image | None, grid: tuple[int, int]) -> Parts:
    """A column before its answer: the square the model sees, cut into its patches, and dashes."""
    patches = grid[0] * grid[1]
    return {
        (column, "by"): "answer",
        (column, "answer"): "",
        (column, "refusal"): "",
        (column, "picture"): crop and draw.gridded(crop, grid),
        (column, "legend"): f"What the model sees, in {patches} patches." if crop else "",
        (column, "numbers"): numbers.table(None),
        (column, "curve"): None,
        (column, "no_curve"): "The similarity curve is drawn here.",
    }


def said(text: str) -> Parts:
    """What the message line says now; an ellipsis at its end means that more is to come."""
    return {MESSAGE: text, TROUBLE: ""}


def trouble(error: Exception) -> Parts:
    """The cause of an error, in a sentence for the visitor; what is not theirs to repair goes to the log in full."""
    if isinstance(error, ValueError):
        sentence = f"{error}."
    elif isinstance(error, torch.OutOfMemoryError):
        sentence = "the model ran out of memory: ask a shorter question, or for fewer new tokens."
    else:
        sentence = f"the model failed with {type(error).__name__}; the server's log has the cause. Try again."
        log.error("a comparison failed", exc_info=error)
    named = "." in sentence.split(" ")[0]  # a file or a parameter begins it, and keeps its case
    return {MESSAGE: "", TROUBLE: sentence if named else sentence[:1].upper() + sentence[1:]}


def _column(stop, llava, asked: Asked, column: int, crop: Image.Image) -> Iterator[tuple[Parts, Answer]]:
    """What changes in one column, with the answer so far; at most every so often, and at the end."""
    shown = drawn = -PICTURE_EVERY
    lost = None  # as in the picture drawn last
    answers = generate(
        llava,
        asked.image,
        asked.question,
        asked.columns[column],
        max_new_tokens=asked.max_new_tokens,
        temperature=asked.temperature,
        seed=asked.seed,
        stop=stop,
        time_limit=asked.time_limit,
    )
    with closing(answers):
        for answer in answers:
            now, first = time.monotonic(), lost is None
            if not (answer.finished or first or now - shown > UPDATE_EVERY):
                continue
            parts = {(column, "by"): numbers.heading(answer), (column, "answer"): answer.text}
            if first:
                parts |= _curve(column, answer)
            if answer.lost != lost and (answer.finished or now - drawn > PICTURE_EVERY):
                drawn, lost = now, answer.lost
                parts |= _picture(column, answer, crop)
            yield parts, answer
            shown = time.monotonic()  # what the page took to show it does not count


def _picture(column: int, answer: Answer, crop: Image.Image) -> Parts:
    if not answer.reduced:  # halted before the tower was through
        return {}
    later = draw.given_up(answer.lost, answer.recycled, answer.visual_span)
    states, grid = draw.patch_states(answer.reduced[0], *later), answer.visual[0].grid
    return {(column, "picture"): draw.masked(crop, grid, states), (column, "legend"): numbers.legend(states)}


def _curve(column: int, answer: Answer) -> Parts:
    if answer.curve is None:
        return {(column, "curve"): None, (column, "no_curve"): f"{answer.method} sorts no similarity curve."}
    return {(column, "curve"): figures.similarity_curve(answer.curve)}


def _numbers(answers: dict[int, Answer]) -> Parts:
    """Every column's table: a longer answer rescales the bars of those before it."""
    longest = max(answer.seconds.total for answer in answers.values())
    return {(column, "numbers"): numbers.table(answer, longest) for column, answer in answers.items()}
