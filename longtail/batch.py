"""Several answers at once: several methods beside each other on one question, or many questions of any kind.

Their tokens are those they would have alone. Their times are not: each waits for the others, so an Answer from here is
`shared`, all its `seconds` are 0, and its `memory` is the peak of all of them together.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from . import merged
from .clock import Clock, Halted, Seconds
from .decoder import Decoder
from .generate import IN_TOWER, Answer, Sampling, _Run
from .graph import Graphs, Steps
from .models import memory
from .models.llava import Llava, Prompt
from .reducer import Reducer
from .seen import Seen, look

TOGETHER = "memory ran out with several answers in the making: ask fewer at once, for fewer new tokens, or one by one"


class Together(Clock):
    """The clock of answers in the making together: it knows stop and time limit, and tells no phase's time."""

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
    eager: bool = False,
) -> Iterator[list[Answer | str | None]]:
    """What each reducer lets the model say, word by word side by side: the latest Answer of each, again and again.

    The tower runs once for all that do not act inside it; each prompt is read alone, and then every step decodes one
    token of all. In a list, None stands for one not begun, a sentence (str) for why one cannot run. Arguments as of
    `compare`; `time_limit` is seconds of wall time of all together. Raises ValueError as `generate` does for what would
    stop every one of them: an image, a question, a history or an option that cannot be used.
    """
    _begin(llava, max_new_tokens)
    sampling, image = Sampling(temperature, top_p, seed), llava.open(image)
    clock = Together(llava.device, stop, time_limit)
    graphs = Graphs.of(llava, eager)
    runs = [_Run(llava, reducer, question, preface, history, sampling, clock, graphs) for reducer in reducers]
    said: list[Answer | str | None] = [None] * len(runs)
    outside = [reducer for reducer in reducers if "trim" not in reducer.active()]
    layers = tuple(sorted({layer for reducer in outside for layer in reducer.layers_read()}))
    if not outside:
        llava.prompt(image, question, history, preface)  # refuses what no method could be asked
    asked = llava, image, question, layers, clock, None, history, seen, preface, graphs and graphs.looks
    try:
        shared = memory.spared(llava.device, look, *asked, advice=lambda: IN_TOWER) if outside else None
    except Halted as halted:
        yield [_told(run, str(halted)) for run in runs]
        return
    for i, run in enumerate(runs):
        views = None if "trim" in run.reducer.active() else shared.again()
        said[i] = _take(run, merged.attempt(run.spared, run.begin, image, seen, views, max_new_tokens), max_new_tokens)
        yield list(said)
    pace = _Pace(llava, graphs is not None)
    while live := {i: runs[i] for i, answer in enumerate(said) if _goes_on(answer)}:
        for i, answer in _step(live, max_new_tokens, pace).items():
            said[i] = answer
        yield list(said)


@torch.inference_mode()
def generate_batch(
    llava: Llava,
    asked: Iterable[tuple[object, str, Reducer]],
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop=None,
    time_limit: float | None = None,
    batch: int = 8,
    eager: bool = False,
) -> Iterator[tuple[int, Answer | str]]:
    """The last Answer to each (image, question, reducer), with its number in `asked`, in the order they end.

    At most `batch` are in the making. Once half of the places are free, the next are taken up from `asked`: their
    images go through the tower as one batch (the same image once; a reducer that acts inside it alone), their prompts
    through the language model as one, and they join those being decoded. Nothing is padded. What cannot run yields the
    sentence (str) why, and stops no other. `time_limit` is seconds from when an answer is taken up, the work on those
    beside it included, what the reader does between two answers left out; once `stop` is set nothing more is taken up,
    and what was not has no answer. `eager` as of `generate`.
    Raises ValueError for an option that cannot be used.
    """
    _begin(llava, max_new_tokens, batch)
    desk, sampling = _Desk(llava, max_new_tokens), Sampling(temperature, top_p, seed)
    waiting, live, pace = enumerate(asked), {}, _Pace(llava, Graphs.of(llava, eager) is not None)
    while True:
        said, places = {}, batch - len(live)
        if 2 * places >= batch and not (stop is not None and stop.is_set()):
            clock = Together(llava.device, stop, time_limit)
            taken = {
                at: (image, _Run(llava, reducer, question, "", (), sampling, clock))
                for at, (image, question, reducer) in islice(waiting, places)
            }
            said = desk.begin(taken)
            live |= {at: run for at, (_, run) in taken.items()}
        if not live:
            return
        said |= _step({at: run for at, run in live.items() if at not in said}, max_new_tokens, pace)
        handed = time.perf_counter()
        yield from ((at, answer) for at, answer in said.items() if not _goes_on(answer))
        live = {at: run for at, run in live.items() if _goes_on(said[at])}
        for clock in {id(run.clock): run.clock for run in live.values()}.values():
            clock.began += time.perf_counter() - handed


@dataclass
class _Desk:
    """Takes questions up, a handful at a time: up to the first token of each."""

    llava: Llava
    limit: int  # new tokens
    known: dict[tuple, Seen] = field(default_factory=dict)  # by picture: the handful before may have had the same

    def begin(self, taken: dict[int, tuple[object, _Run]]) -> dict[int, Answer | str]:
        """The first token of each run about its image, or why there is none."""
        met = self._look({at: asked for at, asked in taken.items() if "trim" not in asked[1].reducer.active()})
        for at, (image, run) in taken.items():
            if not isinstance(met.get(at), Exception):
                met[at] = merged.attempt(run.spared, run.prepare, image, None, met.get(at), self.limit)
        runs = {at: run for at, (_, run) in taken.items() if not isinstance(met[at], Exception)}
        ways = [
            run.decoder.prefilling(met[at], len(run.seen.prompt.ids), self.limit, run.clock) for at, run in runs.items()
        ]
        rows = [run.decoder for run in runs.values()]
        read = memory.spared(self.llava.device, merged.prefill, self.llava, rows, ways, advice=lambda: TOGETHER)
        met |= dict(zip(runs, read, strict=True))
        return {at: _take(run, met[at], self.limit) for at, (_, run) in taken.items()}

    def _look(self, taken: dict[int, tuple[object, _Run]]) -> dict[int, Seen | ValueError | Halted]:
        """Prompt and tower of each; the tower sees each picture once, all of them as one batch."""
        met, pictures, prompts = {}, {}, {}
        for at, (image, run) in taken.items():
            met[at] = merged.attempt(self._prompt, image, run.question, prompts)
            if not isinstance(met[at], Exception):
                pictures[at], met[at] = met[at]
        self.known = {picture: seen for picture, seen in self.known.items() if picture in pictures.values()}
        read = {layer for at in pictures for layer in taken[at][1].reducer.layers_read()}
        layers = tuple(sorted(read.union(*(seen.views[0][0].layers for seen in self.known.values()))))
        new = {
            picture: met[at]
            for at, picture in pictures.items()
            if picture not in self.known or not read <= set(self.known[picture].views[0][0].layers)
        }
        if new:
            between = next(iter(taken.values()))[1].clock.between
            towers = partial(memory.spared, self.llava.device, self.llava.encode_together, advice=lambda: IN_TOWER)
            views = merged.attempt(towers, list(new.values()), layers, between)
            if isinstance(views, Exception):
                return met | dict.fromkeys(pictures, views)
            for (picture, prompt), own in zip(new.items(), views, strict=True):
                self.known[picture] = Seen(self.llava, prompt, own, None, {})
        seen = {at: self.known[picture].beside(met[at]) for at, picture in pictures.items()}
        return met | {at: Seen(self.llava, met[at], views, None, {}).again() for at, views in seen.items()}

    def _prompt(self, image, question: str, made: dict[tuple, Prompt]) -> tuple[tuple, Prompt]:
        """What tells a picture from any other, and the prompt, which is made once for all methods."""
        picture = self.llava.open(image)
        key = picture.size, picture.image.size, picture.image.tobytes()
        if (key, question) not in made:
            made[key, question] = self.llava.prompt(picture, question)
        return key, made[key, question]


@dataclass
class _Pace:
    """How steps are read: op by op, or, as long as the same answers go on, as a captured graph."""

    llava: Llava
    graphs: bool
    steps: Steps | None = None

    def step(self, rows: list[Decoder], tokens: Tensor) -> list[merged.Result]:
        """One more token id of each [B]."""
        if not self.graphs:
            return merged.step(self.llava, rows, tokens)
        if self.steps is None or self.steps.rows != tuple(rows):
            self.steps = Steps(*rows, read=partial(merged.read, self.llava, rows))
        return merged.evicted(rows, self.steps.read(tokens))


def _step(runs: dict[int, _Run], limit: int, pace: _Pace) -> dict[int, Answer | str]:
    """One token more of each, or why there is none."""
    said = {at: _told(run, reason) for at, run in runs.items() if (reason := run.clock.halted())}
    going = {at: run for at, run in runs.items() if at not in said}
    if going:
        newest = torch.tensor([run.ids[-1] for run in going.values()], device=pace.llava.device)
        rows = [run.decoder for run in going.values()]
        read = memory.spared(pace.llava.device, pace.step, rows, newest, advice=lambda: TOGETHER)
        said |= {at: _take(run, result, limit) for (at, run), result in zip(going.items(), read, strict=True)}
    return said


def _take(run: _Run, result: merged.Result, limit: int) -> Answer | str:
    """What came of a pass through the language model: a token more, or the sentence that ended it."""
    match result:
        case ValueError() | memory.OutOfMemory():
            return str(result)
        case Halted():
            return _told(run, str(result))
    return _told(run, run.take(result, limit))


def _told(run: _Run, finished: str | None) -> Answer:
    return replace(run.answer(finished), shared=True)


def _goes_on(said: Answer | str) -> bool:
    return not isinstance(said, str) and said.finished is None


def _begin(llava: Llava, new: int, batch: int = 1):
    """Refuse what cannot be asked for; the peak of memory is counted from here."""
    if new < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {new}")
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    if llava.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(llava.device)
