"""The events' engine room: a worker thread for each, one at a time on the model, and a sentence for every error.

What ends the event (its own end, Stop, a closed tab, an error) ends the work.
"""

import asyncio
import contextvars
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from gradio.context import LocalContext
from PIL import Image

from longtail import open_image

LANE = threading.Lock()  # one run at a time on the model; taken by a worker only, never held across a yield to Gradio
DONE = object()
MESSAGE, TROUBLE = ("page", "message"), ("page", "trouble")
NEED_IMAGE, NEED_QUESTION = ("page", "need_image"), ("page", "need_question")  # what a field says of itself

Parts = dict[tuple, object]  # (column or "page", part) -> what it shows now
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Work:
    """A worker, whose it is, and what stops it."""

    visitor: str | None
    stop: threading.Event
    worker: threading.Thread


class Going(set[Work]):
    """What goes on now, for every visitor. Gradio loses a cancellation that comes right after the event began, and the
    run goes on under a page that says it was stopped: what ends one here is told by the server too."""

    def end(self) -> list[Work]:
        """Tell this visitor's work to stop; returns it."""
        mine = [work for work in self.copy() if work.visitor == _visitor()]
        for work in mine:
            work.stop.set()
        return mine

    async def halt(self):
        """Tell this visitor's work to stop, and wait until it has."""
        for work in self.end():
            await asyncio.to_thread(work.worker.join, 5)


def _visitor() -> str | None:
    request = LocalContext.request.get(None)
    return request and request.session_hash


def streamed(
    produce: Callable[..., Iterator[Parts]], show: Callable[[Parts], object] = dict, going: Going | None = None
):
    """Turn a generator `produce(stop, *inputs)` into an async event that runs it in a worker of its own.

    `show` makes what Gradio reads of what was produced, or of what went wrong; `going` knows it while it goes on.

    The worker waits until an update was taken before it goes on: drawing the page never runs beside a measured token.
    """

    going = Going() if going is None else going

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

        asked_by = contextvars.copy_context()  # a Space counts a visitor's share of its GPUs by Gradio's request
        worker = threading.Thread(target=asked_by.run, args=(work,), name="comparison", daemon=True)
        going.add(this := Work(_visitor(), stop, worker))
        worker.start()
        try:
            while (item := await items.get()) is not DONE:
                yield show(item)
                taken.release()
        finally:
            stop.set()
            taken.release()
            going.discard(this)
            await asyncio.shield(asyncio.to_thread(worker.join, 5))

    return event


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
