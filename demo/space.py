"""A Hugging Face Space: which model it starts with, and how the engine runs in the process that ZeroGPU lends a GPU to.

Import it before torch. ZeroGPU forks: arguments and results are pickled, and it is told to stop between two results.
"""

try:
    import spaces  # replaces what torch knows of CUDA, so it comes first
except ImportError:
    spaces = None

import io
import math
import os
import pickle
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from html import escape

import gradio as gr
import torch

from longtail.models.memory import OutOfMemory
from longtail.seen import Seen
from longtail.tokens import Reduced, VisualTokens

from .words import say

WANTED, MINIATURE = "llava-1.5-7b", "tiny"
PLACING, PROMPT, TOKEN = 10, 1.0, 0.05  # seconds: weights onto the GPU; an answer's first token; each later one
MOST = 120  # seconds; the smallest allowance of a day, an anonymous visitor's, as the platform's pages state it
BEAT = 0.1  # seconds between two results at most: only there can ZeroGPU stop the work
TOLD = (ValueError, OutOfMemory, torch.OutOfMemoryError)  # what is said to the visitor as it is
GPU = spaces.GPU if spaces else lambda duration: lambda task: task
NOTHING = torch.zeros(0)

Task = Callable[..., Iterator]  # (llava, *asked, stop=...), what is asked and yielded being plain values


# ---- where this is


def place() -> str:
    """What this runs on: zero, gpu or cpu for a Space of that hardware; nothing off Spaces."""
    if os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true"):
        return "zero"
    if not os.environ.get("SPACE_ID"):
        return ""
    return "gpu" if torch.cuda.is_available() else "cpu"


def wanted() -> str:
    """The model to start with where nobody names one."""
    return WANTED if place() else MINIATURE


def start(name: str, load: Callable, miniature: Callable) -> tuple[str, object, str]:
    """The model that is started with: its name, what `load(name)` gave, and on a Space why it is another.

    A Space without a GPU, and one that cannot have the model, has `miniature()`. Off Spaces a refusal is raised.
    """
    if not place():
        return name, load(name), ""
    if place() == "cpu" and name not in (MINIATURE, "none"):
        return MINIATURE, miniature(), say("space_cpu", escape(name))
    try:
        return name, load(name), ""
    except (ValueError, OSError, MemoryError, torch.OutOfMemoryError) as error:
        if name == MINIATURE:
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return MINIATURE, miniature(), say("space_refused", escape(name), escape(reason, quote=False))


# ---- where the engine runs


def seconds(answers: int, max_new_tokens: int) -> int:
    """For how long a GPU is asked for: weights are placed once, then every answer reads its prompt and decodes.

    An estimate for a 7B model in bfloat16, generous since the work ends when the time is up: one later token reads
    14 GB of weights, 8 ms at 1.8 TB/s, times six for kernels launched one by one. A shorter wish is served earlier.
    """
    return min(MOST, math.ceil(PLACING + answers * (PROMPT + TOKEN * max_new_tokens)))


def placed(model: Callable) -> Callable[..., Iterator]:
    """`run(task, seconds, stop, *asked)`: what `task(llava, *asked, stop=stop)` yields, where `model()` can compute.

    That is this thread; on ZeroGPU it is another process, asked for `seconds`, and `stop` is polled from here.
    """
    if place() != "zero":
        return lambda task, seconds, stop, *asked: task(model(), *asked, stop=stop)

    @GPU(duration=lambda seconds, task, *asked: seconds)
    def lent(seconds: int, task: Task, *asked) -> Iterator[bytes]:
        yield from beating(lambda stop: task(model(), *asked, stop=stop), seconds - PLACING)

    return lambda task, seconds, stop, *asked: received(lent, stop, seconds, task, *asked)


def beating(produce: Callable[[threading.Event], Iterator], limit: float) -> Iterator[bytes]:
    """What `produce(stop)` yields, packed; nothing at every beat until then. Closing it sets `stop`.

    Past `limit` seconds, and where `produce` refuses, the last of it says so; any other error is raised.
    """
    stop, made, end = threading.Event(), queue.SimpleQueue(), time.monotonic() + limit

    def work():
        try:
            with closing(produce(stop)) as values:
                for value in values:
                    made.put(packed((None, value)))
            made.put(None)
        except TOLD as error:
            made.put(packed((next(kind for kind in TOLD if isinstance(error, kind)), str(error))))
            made.put(None)
        except Exception as error:
            made.put(error)

    worker = threading.Thread(target=work, name="lent", daemon=True)
    worker.start()
    try:
        while (item := _next(made)) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
            if time.monotonic() > end:
                yield packed((ValueError, f"the GPU was lent for {limit:g} seconds: ask for fewer runs or new tokens"))
                return
    finally:
        stop.set()
        worker.join()


def _next(made: queue.SimpleQueue):
    try:
        return made.get(timeout=BEAT)
    except queue.Empty:
        return b""


def received(lent: Callable[..., Iterator[bytes]], stop, *asked) -> Iterator:
    """What came out of the lent process, until `stop` is set. Raises what was refused there, ValueError where no GPU
    could be had, RuntimeError where that process failed."""
    try:
        with closing(lent(*asked)) as packets:
            for packet in packets:
                if stop.is_set():
                    return
                if not packet:
                    continue
                refusal, value = pickle.loads(packet)
                if refusal:
                    raise refusal(value)
                yield value
    except gr.Error as error:
        said = " ".join(re.sub("<[^>]*>", "", str(error.message)).split()).rstrip(".")
        if error.title == "ZeroGPU worker error":
            raise RuntimeError(f"{error.title}: {said}") from error
        raise ValueError(f"no GPU could be had: {said}") from error


# ---- what may leave a process


class Packer(pickle.Pickler):
    """Pickles by value. Features and all that refers to the model stay behind; other tensors arrive on the host."""

    def reducer_override(self, value):
        if isinstance(value, torch.nn.Module):
            raise pickle.PicklingError("a part of the model was about to leave its process")
        kind = type(value)
        if kind is torch.Tensor:
            return torch.from_numpy, (value.numpy(force=True),)
        if kind is Seen:
            return _nothing, ()
        if kind in LEFT:
            return _made, (kind, vars(value) | LEFT[kind])
        return NotImplemented


LEFT = {
    VisualTokens: {"features": NOTHING, "cls": NOTHING, "layers": {}, "project": None}
    | dict.fromkeys(("question", "preamble")),
    Reduced: {"features": NOTHING},
}


def packed(value) -> bytes:
    """A value as bytes, nothing of the model in it."""
    file = io.BytesIO()
    Packer(file, pickle.HIGHEST_PROTOCOL).dump(value)
    return file.getvalue()


def _nothing():
    return None


def _made(kind: type, fields: dict):
    return kind(**fields)
