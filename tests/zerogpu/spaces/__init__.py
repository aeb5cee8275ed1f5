"""A stand-in for Hugging Face's package of this name: it wraps a generator as the real one (0.51) does on ZeroGPU.

Arguments and results are pickled through pipes to and from a forked process; a reader who leaves sets an event that is
looked at between two results; of an error only its class comes back. No GPU is lent, and no process is used twice.
"""

import inspect
import multiprocessing
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps
from multiprocessing.reduction import ForkingPickler

if os.environ.get("SPACES_ZERO_GPU") == "true" and "torch" in sys.modules:
    raise RuntimeError("torch was there before `spaces`")

FORK = multiprocessing.get_context("fork")
END, VALUE, FAILED = "end", "value", "failed"
durations, arguments, results = [], [], []  # what was asked for, and what went through the pipes, as bytes


def GPU(task=None, *, duration=None):
    """The decorator, off ZeroGPU without effect."""
    if not callable(task):
        return partial(GPU, duration=duration)
    return lending(task, duration) if os.environ.get("SPACES_ZERO_GPU") == "true" else task


def lending(task, duration):
    """A generator function whose generator runs in a process of its own."""
    assert inspect.isgeneratorfunction(task), "ZeroGPU takes plain generators only"

    @wraps(task)
    def handler(*given):
        durations.append(duration(*given) if callable(duration) else duration)
        asked, said, stop = FORK.SimpleQueue(), FORK.SimpleQueue(), FORK.Event()
        worker = FORK.Process(target=_work, args=(task, asked, said, stop), daemon=True)
        worker.start()
        arguments.append(bytes(ForkingPickler.dumps(given)))
        asked.put(given)
        kind = None
        try:
            while kind != END:
                kind, value = said.get()
                if kind == FAILED:
                    raise _error(value)
                if kind == VALUE:
                    results.append(value)
                    yield value
        finally:
            stop.set()
            while kind != END:
                kind, _ = said.get()
            worker.join()

    return handler


def _work(task, asked, said, stop):
    def iterate(given):
        for value in (generator := task(*given)):
            if stop.is_set():
                generator.close()
                return
            said.put((VALUE, value))

    with ThreadPoolExecutor() as threads:
        error = threads.submit(iterate, asked.get()).exception()
    if error:
        said.put((FAILED, type(error).__name__))
    said.put((END, None))


def _error(name: str):
    import gradio as gr

    return gr.Error(name, title="ZeroGPU worker error", print_exception=False)
