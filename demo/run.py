"""The events' engine room: a place in the line, a worker of its own for each, and a sentence for every error.

What ends the event (its own end, Stop, a closed tab, an error) ends the work.
"""

import asyncio
import contextvars
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from os.path import isfile
from pathlib import Path

from gradio.utils import get_upload_folder, is_in_or_equal, is_static_file
from PIL import Image

from longtail import OutOfMemory, open_image
from longtail.models.memory import exhausted, give_back

from .line import BEAT, CLOSING, Busy, Line, Place, Turn
from .words import say

MESSAGE, TROUBLE = ("page", "message"), ("page", "trouble")
NEED_IMAGE, NEED_QUESTION = ("page", "need_image"), ("page", "need_question")  # what a field says of itself

Parts = dict[tuple, object]  # (column or "page", part) -> what it shows now
Told = Callable[[str, str, float, float, Sequence[dict]], None]  # as `Journal.ran`
log = logging.getLogger(__name__)


class Refused(Exception):
    """Work that ended with a sentence for whoever asked."""


class Left(Exception):
    """Work that ended itself, for nobody waits for it any more."""


@dataclass(frozen=True)
class Job:
    """A kind of work on the model: the line it stands in, how long it may be silent there, what is told of its end.

    `records` finds the records of answers in what was produced.
    """

    kind: str
    line: Line = field(default_factory=Line)
    patience: float = 60.0
    told: Told = lambda *end: None
    records: Callable[[object], Sequence[dict]] = lambda produced: ()

    def over(self, turn: Turn, cause: str, records: Sequence[dict] = ()):
        """Out of the line, and told."""
        self.line.leave(turn)
        waited = (turn.began or time.monotonic()) - turn.came
        worked = time.monotonic() - turn.began if turn.began else 0.0
        self.told(self.kind, cause, waited, worked, records)


async def attended(job: Job, produce: Callable[[Turn], Iterator]) -> AsyncIterator:
    """What `produce(stop)` yields, made by a worker that has the model alone; before that its Place in the line, and
    None at every beat, where Gradio finds out that whoever asked has left. Closing this stops the work.

    The worker waits until an update was taken before it goes on: drawing the page never runs beside a measured token.
    Raises Refused with the sentence of what went wrong, which is the worker's or the line's.
    """
    try:
        turn = job.line.join(job.kind, job.patience)
    except Busy as busy:
        job.told(job.kind, "busy", 0.0, 0.0, ())
        raise Refused(sentence(busy)) from None
    made, taken, worker = asyncio.Queue(), threading.Semaphore(0), None
    try:
        async for place in _places(job.line, turn):
            yield place
        if turn.began is None:
            return
        asked_by = contextvars.copy_context()  # a Space counts a visitor's share of its GPUs by Gradio's request
        work = (job, turn, produce, made, taken)
        worker = threading.Thread(target=asked_by.run, args=(_work, *work), name="comparison", daemon=True)
        worker.start()
        async for item in _made(job.line, made):
            yield item
            if item is not None:
                taken.release()
    finally:
        turn.forsake()
        taken.release()
        if worker is None:
            job.over(turn, _ending(turn))
        await asyncio.shield(asyncio.to_thread(turn.over.wait, 5))


async def _places(line: Line, turn: Turn) -> AsyncIterator[Place]:
    try:
        async for place in line.places(turn):
            yield place
    except Busy as busy:
        raise Refused(sentence(busy)) from None


async def _made(line: Line, made: asyncio.Queue) -> AsyncIterator:
    """What the worker makes, None at every beat, until it is done. Raises Refused."""
    while True:
        try:
            item = await asyncio.wait_for(made.get(), BEAT)
        except asyncio.TimeoutError:
            if reason := line.stuck():
                raise Refused(sentence(Busy(reason))) from None
            item = None
        if isinstance(item, Refused):
            raise item
        if item is DONE:
            return
        yield item


def _work(job: Job, turn: Turn, produce: Callable, made: asyncio.Queue, taken: threading.Semaphore):
    """The worker: it has the model until the last line."""
    cause, records, last = "done", (), DONE
    try:
        with closing(produce(turn)) as updates:
            for update in updates:
                records = job.records(update) or records
                if turn.is_set():
                    break
                _post(turn, made, update)
                taken.acquire()
        cause = _ending(turn, records)
        if cause == "stopped" and job.line.closed:
            last = Refused(sentence(Busy(CLOSING)))
    except Left:
        cause = _ending(turn)
    except Exception as error:
        cause, last = cause_of(error), Refused(sentence(error))
    if cause == "memory":
        give_back()  # here, where no traceback holds a tensor any more
    try:
        job.over(turn, cause, records)
    finally:
        _post(turn, made, last)


def _post(turn: Turn, made: asyncio.Queue, item):
    if not turn.loop.is_closed():
        turn.loop.call_soon_threadsafe(made.put_nowait, item)


def _ending(turn: Turn, records: Sequence[dict] = ()) -> str:
    """How work ended that raised nothing."""
    if turn.stopped.is_set():
        return "left" if turn.left else "stopped"
    return "time" if any(record.get("finished") == "time" for record in records) else "done"


DONE = object()


def streamed(produce: Callable[..., Iterator[Parts]], show: Callable[[Parts], object] = dict, job: Job | None = None):
    """Turn a generator `produce(stop, *inputs)` into an async event of the page that runs it in a worker of its own.

    `show` makes what Gradio reads of what was produced, of the place in the line, or of what went wrong.
    """
    job = job or Job("run")

    async def event(*inputs):
        try:
            async with aclosing(attended(job, lambda turn: produce(turn, *inputs))) as updates:
                async for update in updates:
                    yield show(in_line(update) if isinstance(update, Place) else update or {})
        except Refused as refused:
            yield show({MESSAGE: "", TROUBLE: str(refused)})

    return event


def opened(upload) -> Image.Image:
    """The picture of an upload, or of an example, as Gradio tells of it. Raises ValueError with a sentence where there
    is none or it cannot be used; any other file, which an event posted by hand may name, is told as one that is not
    there."""
    path = upload.get("path") if isinstance(upload, dict) else None
    if not path or not isinstance(path, str):
        raise ValueError("there is no image yet: drop one in, paste one, or pick an example scene")
    ours = "\0" not in path and (is_in_or_equal(path, get_upload_folder()) or is_static_file(Path(path)))
    if not ours or not isfile(path):
        raise ValueError("the image is no longer on this server, which deletes uploads after an hour: drop it in again")
    return open_image(path)


def said(text: str) -> Parts:
    """What the message line says now; an ellipsis at its end means that more is to come."""
    return {MESSAGE: text, TROUBLE: ""}


def in_line(place: Place) -> Parts:
    """What a visitor is told who waits."""
    return said(say("in_line" if place.known else "in_line_most", place.ahead, place.time))


def trouble(error: Exception) -> Parts:
    """The sentence of an error, where the page shows it."""
    return {MESSAGE: "", TROUBLE: sentence(error)}


def cause_of(error: Exception) -> str:
    """What kind of end an error is: refused, busy, memory, or failed."""
    if isinstance(error, ValueError):
        return "busy" if isinstance(error, Busy) else "refused"
    return "memory" if exhausted(error) else "failed"


def sentence(error: Exception) -> str:
    """An error in a sentence for whoever asked; what is not theirs to repair goes to the log in full."""
    if isinstance(error, ValueError | OutOfMemory):
        words = f"{error}."
    elif exhausted(error):
        words = "memory ran out: take a smaller image, ask a shorter question, or for fewer new tokens."
    else:
        words = f"the model failed with {type(error).__name__}; the server's log has the cause. Try again."
        log.error("a run failed", exc_info=error)
    named = "." in words.split(" ")[0]  # a file or a parameter begins it, and keeps its case
    return words if named else words[:1].upper() + words[1:]
