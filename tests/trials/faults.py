"""Memory that runs out where it is told to: what an allocator raises, at any moment of an answer."""

import time
from contextlib import contextmanager

import torch

from longtail.reducers.longtail import LongTail

BALLAST = 64 * 2**20  # bytes that the failing step holds: whoever keeps its frame keeps them
ERRORS = {  # as torch and Python raise them
    "cuda": lambda: torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.77 GiB of which 1.12 GiB is "
        "free. Process 1234 has 14.65 GiB memory in use."
    ),
    "cpu": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 34359738368 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "python": lambda: MemoryError(),
}
PLACES = {  # of an answer, and what of the model is asked there
    "tower": ("encode",),
    "method": (),
    "prefill": ("decode_layer",),
    "decode": ("decode_layer", "decode_together"),
}


@contextmanager
def no_memory(llava, place: str, error: str):
    """While it lasts, every answer fails with that error at that place; yields the moments when that was, one each."""
    failed = []

    def fail():
        failed.append(time.perf_counter())
        ballast = torch.ones(BALLAST // 4)
        assert len(ballast)
        raise ERRORS[error]()

    if place == "method":
        held, kept = LongTail, {"reduce": LongTail.reduce}
    else:
        held, kept = llava, {name: getattr(llava, name) for name in PLACES[place]}

    def failing(original):
        def step(*asked, **options):
            rows = len(asked[1]) if place in ("prefill", "decode") else 0
            if (place == "prefill" and rows < 8) or (place == "decode" and rows >= 8):
                return original(*asked, **options)
            return fail()

        return step

    for name, original in kept.items():
        setattr(held, name, failing(original))
    try:
        yield failed
    finally:
        for name, original in kept.items():
            setattr(held, name, original)
