"""Several answers at once: several methods beside each other on one question, or many questions of any kind.

Their tokens are those they would have alone. Their times are not: each waits for the others, so an Answer from here is
`shared`, all its `seconds` are 0, and its `memory` is the peak of all of them together.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from . import merged
from .clock import Clock, Halted, Seconds
from .generate import Answer, Sampling, _Run
from .image import open_image
from .models.llava import Llava
from .reducer import Reducer
from .seen import Seen, look


@dataclass
class Together(Clock):
    """The clock of answers in the making together: it knows stop and time limit, and of no phase how long it took."""

    def lap(self, name: str):
        """Work was done: whose, and in what phase, is not told, nor is the device waited for."""
        now = time.perf_counter()
        self.steps[:] = [sum(self.steps) + now - self.last]
        self.last = now

    def seconds(self) -> Seconds:
        """All 0: nothing that is no latency stands where one is read."""
        return Seconds()


@torch.inference_mode()
def preview(
    llava: Llava,
    image,
    question: str,
    reducers: list[Reducer],
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop=None,
    time_limit: float | None = None,
    preface: str = "",
    history: Sequence[tuple[str, str]] = (),
    seen: Seen | None = None,
) -> Iterator[list[Answer | str | None]]:
    """What each reducer lets the model say, word by word side by side: the latest Answer of each, again and again.

    The tower runs once for all that do not act inside it; each prompt is read alone, and then every step decodes one
    token of all. In a list, None stands for one not begun, a sentence (str) for why one cannot run. Arguments as of
    `compare`; `time_limit` is seconds of work of all together. Raises ValueError as `generate` does for what would
    stop every one of them: an image, a question, a history or an option that cannot be used.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    sampling, image = Sampling(temperature, top_p, seed), open_image(image)
    clock = Together(llava.device, stop, time_limit)
    runs = [_Run(llava, reducer, question, preface, history, sampling, clock) for reducer in reducers]
    said: list[Answer | str | None] = [None] * len(runs)
    outside = [reducer for reducer in reducers if "trim" not in reducer.active()]
    layers = tuple(sorted({layer for reducer in outside for layer in reducer.layers_read()}))
    if not outside:
        llava.prompt(image, question, history, preface)  # refuses what no method could be asked
    try:
        shared = look(llava, image, question, layers, clock, None, history, seen, preface) if outside else None
    except Halted as halted:
        yield [_told(run, str(halted)) for run in runs]
        return
    for i, run in enumerate(runs):
        try:
            logits = run.begin(image, seen, None if "trim" in run.reducer.active() else shared, max_new_tokens)
            said[i] = _take(run, logits, max_new_tokens)
        except ValueError as reason:
            said[i] = str(reason)
        except Halted as halted:
            said[i] = _told(run, str(halted))
        yield list(said)
        clock.restart()
    live = [i for i, answer in enumerate(said) if _goes_on(answer)]
    while live:
        if reason := clock.halted():
            for i in live:
                said[i] = _told(runs[i], reason)
            yield said
            return
        for i, answer in zip(live, _step([runs[i] for i in live], max_new_tokens), strict=True):
            said[i] = answer
        yield list(said)
        clock.restart()
        live = [i for i in live if _goes_on(said[i])]


def _step(runs: list[_Run], limit: int) -> list[Answer | str]:
    """One token more of each, or why there can be none."""
    newest = torch.tensor([run.ids[-1] for run in runs], device=runs[0].llava.device)
    results = merged.step([run.decoder for run in runs], newest)
    return [_take(run, result, limit) for run, result in zip(runs, results, strict=True)]


def _take(run: _Run, result: merged.Result, limit: int) -> Answer | str:
    """What came of a pass through the language model: a token more, or the sentence that ended it."""
    match result:
        case ValueError():
            return str(result)
        case Halted():
            return _told(run, str(result))
    return _told(run, run.take(result, limit))


def _told(run: _Run, finished: str | None) -> Answer:
    return replace(run.answer(finished), shared=True)


def _goes_on(said: Answer | str) -> bool:
    return not isinstance(said, str) and said.finished is None
