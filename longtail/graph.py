"""Decode steps captured as a CUDA graph: the launches of a step become one, the work on the device stays the same.

The cache holds still first (`Slots.hold_still`), so that every step does the same work on the same memory. What a
reducer gives up is decided outside of the graph, after each replay: those few launches hide behind the step's work.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .decoder import Decoder

WARM_UPS = 2  # steps of an answer that run launch by launch before one is captured


class Captured:
    """The decode steps of one answer; the first ones run launch by launch, warm the device up, and count all the same.

    `step` does what `Decoder.step` does. Capturing takes about as long as a step that is launched; a shorter answer is
    over before. Whether a model's steps can be captured its `capturable` tells.
    """

    def __init__(self, decoder: Decoder):
        self.decoder, self.token = decoder, torch.zeros(1, dtype=torch.long, device=decoder.model.device)
        self.launched, self.replay, self.logits = 0, None, None
        for ledger in decoder.distinct():
            ledger.hold_still()

    def step(self, token: Tensor) -> Tensor:
        """Read one more token id [1]; returns the logits [V] after it, which the next step overwrites."""
        self.token.copy_(token)
        if self.replay:
            for ledger in self.decoder.distinct():
                ledger.read_on()
            self.replay()
        elif self.launched < WARM_UPS:
            self.launched, self.logits = self.launched + 1, aside(self._read)
        else:
            self.replay, self.logits = capture(self._read)
            self.replay()
        self.decoder.evict()
        return self.logits

    def _read(self) -> Tensor:
        return self.decoder.read(self.token)


def aside(work: Callable[[], Tensor]) -> Tensor:
    """Run `work` on a stream of its own, as what is to be captured later must be warmed up."""
    stream, main = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(main)
    with torch.cuda.stream(stream):
        made = work()
    main.wait_stream(stream)
    made.record_stream(main)
    return made


def capture(work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """What launches `work` again in one go, and where its result then lies; nothing has run when this returns.

    Other threads may go on using the device. Raises RuntimeError, of CUDA, for work that waits for the host.
    """
    graph, stream, main = torch.cuda.CUDAGraph(), torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(main)
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            made = work()
        finally:
            graph.capture_end()
    main.wait_stream(stream)
    return graph.replay, made
