"""The engine: one generator from image and question to words, read by page, command line, evaluation and tests."""

import dataclasses
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from .clock import Clock, Halted, Seconds
from .decoder import Decoder
from .graph import Graphs, Steps
from .models import memory
from .models.llava import Llava
from .reducer import Reducer
from .reducers.full import Full
from .seen import Seen, look
from .tokens import Curve, Reduced, Spliced, VisualTokens

IN_TOWER = (
    "memory ran out in the vision tower: take a smaller image, or a method that captures fewer layers; if it stays so, "
    "load the model in a smaller dtype"
)


@dataclass(frozen=True)
class Tokens:
    """Counts. `prompt`: text and visual tokens that enter the language model; `generated`: ids produced, the end
    token included; `kv_entries`: live entries of a layer (mean over layers); `kv_bytes`: bytes of all live entries;
    `layers`: visual tokens entering each decoder layer at prefill; `layer_mean`: their mean; `newlines`: that stand
    between rows of LLaVA-1.6's tiles, among the text of `prompt`."""

    patches: int
    visual: int
    prompt: int
    generated: int
    kv_entries: float
    kv_bytes: int
    layer_mean: float
    layers: tuple[int, ...] = ()
    newlines: int = 0


@dataclass(frozen=True, eq=False)
class Answer:
    """All that is known after a token. `finished` is None while more may come, then eos, length, stopped or time."""

    model: str
    device: str
    dtype: str
    pixels: str  # how they were made of the image: exact or fast
    reducer: Reducer
    question: str
    preface: str  # text before the image
    history: tuple[tuple[str, str], ...]  # the questions before this one, each with its answer
    text: str
    token_ids: tuple[int, ...]
    tokens: Tokens
    seconds: Seconds
    memory: int  # peak bytes: allocated on a GPU since the start of this answer; resident in this process on a CPU
    visual: tuple[VisualTokens, ...]
    reduced: tuple[Reduced, ...]
    visual_span: tuple[int, int]  # the image's first position in the prompt and the one after its last
    positions: tuple[int, ...]  # of the visual tokens in the prompt, in the order of `keep`
    lost: tuple[int, ...]  # true positions the language model gave up, oldest first
    recycled: tuple[tuple[int, int], ...]  # true positions it merged, each with that of the entry that speaks for it
    steps: tuple[tuple[int, int], ...]  # after each token: characters of the text, entries of `lost` that were gone
    first_logits: Tensor | None  # [V] float32, on the host
    finished: str | None
    seed: int
    reused: tuple[str, ...]  # phases taken over from an earlier answer: theirs are 0 seconds here
    graphs: tuple[str, ...]  # phases that ran as captured CUDA graphs: vision, prefill, decode; others ran op by op
    seen: Seen | None  # for `generate(seen=)` of a follow-up; None where it was halted before the tower was through
    shared: bool = False  # it was decoded beside others: none of its times is a latency, so all are 0; see `batch`

    @property
    def turns(self) -> tuple[tuple[str, str], ...]:
        """The `history` of a follow-up: the turns before this question, and this one."""
        return (*self.history, (self.question, self.text))

    @property
    def method(self) -> str:
        """Name of the reducer."""
        return type(self.reducer).__name__

    @property
    def curve(self) -> Curve | None:
        """The similarity curve of the first view, where the reducer has one."""
        return self.reduced[0].curve if self.reduced else None

    def record(self) -> dict:
        """This answer as plain JSON values. `keep` and `source` count patches and tokens through all `views`; `curve`
        and `order` are the first view's, `tile_curves` those of the others."""
        curve, views = self.curve, self.reduced
        return {
            "model": self.model,
            "method": self.method,
            "params": dataclasses.asdict(self.reducer),
            "preface": self.preface,
            "history": [list(turn) for turn in self.history],
            "question": self.question,
            "answer": self.text,
            "finished": self.finished,
            "tokens": dataclasses.asdict(self.tokens) | {"layers": list(self.tokens.layers)},
            "seconds": dataclasses.asdict(self.seconds),
            "reused": list(self.reused),
            "memory": self.memory,
            "curve": curve and curve.record(),
            "order": curve and curve.order.tolist(),
            "tile_curves": [
                view.curve and view.curve.record() | {"order": view.curve.order.tolist()} for view in views[1:]
            ],
            "views": [{"grid": list(view.grid), "box": list(view.box)} for view in self.visual],
            "keep": _through([view.keep for view in views], [len(view.source) for view in views]),
            "source": _through([view.source for view in views], [len(view.keep) for view in views]),
            "role": [role for view in views for role in view.role.tolist()],
            "visual_span": list(self.visual_span),
            "positions": list(self.positions),
            "lost": list(self.lost),
            "recycled": [list(pair) for pair in self.recycled],
            "steps": [list(step) for step in self.steps],
            "device": self.device,
            "dtype": self.dtype,
            "graphs": list(self.graphs),
            "pixels": self.pixels,
            "seed": self.seed,
        } | ({"shared": True} if self.shared else {})


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: greedy at temperature 0."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if not 0 <= self.temperature <= 5:
            raise ValueError(f"temperature must be between 0 and 5, got {self.temperature!r}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p!r}")

    def choose(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """The next token's id [1], on the device of `logits` [V]."""
        if self.temperature == 0:
            return logits.argmax(-1, keepdim=True)
        chance, order = (logits.float().cpu() / self.temperature).softmax(-1).sort(descending=True)
        chance[chance.cumsum(-1) - chance >= self.top_p] = 0
        return order[torch.multinomial(chance, 1, generator=generator)].to(logits.device)


@torch.inference_mode()
def generate(
    llava: Llava,
    image,
    question: str,
    reducer: Reducer | None = None,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop=None,
    time_limit: float | None = None,
    history: Sequence[tuple[str, str]] = (),
    seen: Seen | None = None,
    shared: Seen | None = None,
    preface: str = "",
    eager: bool = False,
) -> Iterator[Answer]:
    """An Answer after every token; the last one has `finished` set.

    `image` is a path, bytes or a PIL image; `stop` has is_set(), as threading.Event; `time_limit` is seconds on the
    wall's clock; `preface` is text before the image.
    A follow-up takes `history` (`Answer.turns`), which the model reads before the question, and `seen` (`Answer.seen`):
    the tower does not run again where that serves, and the answer says so in `reused`; where it does not (another
    image or model, a layer that was not captured, another reducer inside the tower) it runs. The KV cache is never
    taken over: see `Seen`. `shared` is what `look` made for this very question, taken as it is, its times included.
    Where the model is `capturable`, prompts and steps are replayed as CUDA graphs unless `eager`; the tokens are the
    same.
    Raises ValueError for an image, a question, a history or an option that cannot be used, `memory.OutOfMemory` with
    what to ask less of where memory runs out: all that the answer held is let go of, and the next one may fit.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    reducer, sampling = reducer or Full(), Sampling(temperature, top_p, seed)
    graphs = Graphs.of(llava, eager)
    run = _Run(llava, reducer, question, preface, history, sampling, Clock(llava.device, stop, time_limit), graphs)
    if llava.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(llava.device)
    try:
        logits = run.spared(run.begin, image, seen, shared, max_new_tokens)
    except Halted as halted:
        yield run.answer(str(halted))
        return
    while True:
        finished = run.take(logits, max_new_tokens)
        yield run.answer(finished)
        run.clock.restart()
        if finished:
            return
        if reason := run.clock.halted():
            yield run.answer(reason)
            return
        logits = run.spared(run.step)


def answer(llava: Llava, image, question: str, reducer: Reducer | None = None, **options) -> Answer:
    """The last answer of `generate`, same arguments."""
    return deque(generate(llava, image, question, reducer, **options), maxlen=1)[0]


def compare(
    llava: Llava,
    image,
    question: str,
    reducers: list[Reducer],
    history: Sequence[tuple[str, str]] = (),
    seen: Seen | None = None,
    preface: str = "",
    **options,
) -> list[Answer]:
    """The last answer of each reducer, same arguments. The tower runs once for all that do not act inside it, not at
    all where `seen` serves them; its one measured time then stands in each of their `seconds`. So does, in `method`,
    that of CLIP's text tower for each that reads it: it too runs once."""
    outside = [reducer for reducer in reducers if "trim" not in reducer.active()]
    layers = tuple(sorted({layer for reducer in outside for layer in reducer.layers_read()}))
    clock, options = Clock(llava.device), options | {"history": history, "seen": seen, "preface": preface}
    graphs = Graphs.of(llava, options.get("eager", False))
    asked = llava, image, question, layers, clock, None, history, seen, preface, graphs and graphs.looks
    shared = memory.spared(llava.device, look, *asked, advice=lambda: IN_TOWER) if outside else None
    ways = [None if "trim" in reducer.active() else shared.again() for reducer in reducers]
    return [
        answer(llava, image, question, reducer, shared=way, **options)
        for reducer, way in zip(reducers, ways, strict=True)
    ]


@dataclass
class _Run:
    """One answer in the making."""

    llava: Llava
    reducer: Reducer
    question: str
    preface: str
    history: Sequence[tuple[str, str]]
    sampling: Sampling
    clock: Clock
    graphs: Graphs | None = None  # where tower, prompt and steps may be captured
    seen: Seen | None = None
    decoder: Decoder | None = None
    stepper: Decoder | Steps | None = None  # the same, or its captured graph
    visual: tuple[VisualTokens, ...] = ()
    reduced: tuple[Reduced, ...] = ()
    ids: list[int] = field(default_factory=list)
    text: str = ""
    steps: list[tuple[int, int]] = field(default_factory=list)
    first_logits: Tensor | None = None
    memory: int = 0

    def begin(self, image, before: Seen | None, shared: Seen | None, new: int) -> Tensor:
        """Everything up to the logits of the first token."""
        spliced = self.prepare(image, before, shared, new)
        logits = self.decoder.prefill(spliced, len(self.seen.prompt.ids), new, self.clock)
        self.stepper = Steps(self.decoder) if self.graphs else self.decoder
        return logits

    def step(self) -> Tensor:
        """The logits behind the newest token."""
        return self.stepper.step(torch.full((1,), self.ids[-1], device=self.llava.device))

    def spared(self, work: Callable, *arguments):
        """What comes of it. Raises OutOfMemory where memory runs out."""
        return memory.spared(self.llava.device, work, *arguments, advice=self.let_go)

    def let_go(self) -> str:
        """Drop all that this answer holds; where it was, and what to ask less of."""
        said, spliced, looked = len(self.ids), self.decoder is not None, self.seen is not None
        self.seen = self.decoder = self.stepper = self.first_logits = None
        self.visual, self.reduced = (), ()
        if said:
            return f"memory ran out after {said} new tokens: ask for fewer new tokens, or keep fewer visual ones"
        if spliced:
            return "memory ran out while the prompt was read: keep fewer visual tokens, or ask a shorter question"
        if looked:
            return f"memory ran out in {type(self.reducer).__name__}: give it a smaller budget, or take another method"
        return IN_TOWER

    def prepare(self, image, before: Seen | None, shared: Seen | None, new: int) -> Spliced:
        """Everything up to the language model: the prompt as it is to be read."""
        self.seen = seen = shared or self._look(image, before)
        self.clock.passed |= seen.laps
        self.clock.restart()
        self.visual = tuple(visual for visual, _ in seen.views)
        self.reduced = tuple(self._reduce(visual, trimmed) for visual, trimmed in seen.views)
        self.clock.lap("method")
        self.clock.laps["method"] += seen.owed
        spliced = self.llava.splice(seen.prompt, self.reduced)
        length = len(spliced.embeddings)
        if length + new > self.llava.room():
            remedy = "ask with fewer turns before it" if self.history else "ask a shorter question"
            raise ValueError(
                f"{length} prompt tokens and {new} new ones are more than the {self.llava.room()} positions of "
                f"{self.llava.name}: {remedy} or lower max_new_tokens"
            )
        self.decoder = Decoder(self.llava, self.reducer, self.graphs and self.graphs.prompts)
        return spliced

    def take(self, logits: Tensor, limit: int) -> str | None:
        """Choose the next token; why it was the last one, if it was."""
        if not self.ids:
            self.first_logits = logits.float().cpu()
        self.ids.append(self.decoder.fetch(self.sampling.choose(logits, self._generator())))
        self.text = self.llava.decode_text(self.ids)
        self.clock.lap("prefill" if len(self.ids) == 1 else "decode")
        if self.ids[-1] in self.llava.ends:
            return "eos"
        return "length" if len(self.ids) == limit else None

    def answer(self, finished: str | None) -> Answer:
        read = self.decoder is not None and self.first_logits is not None
        lost = self.decoder.lost() if read else ()
        self.steps[len(self.ids) - 1 :] = [(len(self.text), len(lost))] if self.ids else []
        if finished or len(self.ids) == 1:  # asking a GPU takes a while, and the peak is the prefill's
            self.memory = _peak_memory(self.llava.device)
        return Answer(
            model=self.llava.name,
            device=str(self.llava.device),
            dtype=str(self.llava.dtype).removeprefix("torch."),
            pixels=self.llava.pixels,
            reducer=self.reducer,
            question=self.question,
            preface=self.preface,
            history=tuple(map(tuple, self.history)),
            text=self.text,
            token_ids=tuple(self.ids),
            tokens=self._tokens(read),
            seconds=self.clock.seconds(),
            memory=self.memory,
            visual=self.visual,
            reduced=self.reduced,
            visual_span=self.decoder.image.span if read else (0, 0),
            positions=tuple(self.decoder.image.positions.tolist()) if read else (),
            lost=lost,
            recycled=tuple(sorted(self.decoder.recycled.items())) if read else (),
            steps=tuple(self.steps),
            first_logits=self.first_logits,
            finished=finished,
            seed=self.sampling.seed,
            reused=self.seen.reused if self.seen else (),
            graphs=(*self.seen.graphs, *(self.decoder.replayed if self.decoder else ())) if self.seen else (),
            seen=self.seen,
        )

    def _look(self, image, before: Seen | None) -> Seen:
        inside = self.reducer if "trim" in self.reducer.active() else None
        asked = self.llava, image, self.question, self.reducer.layers_read()
        looks = self.graphs and self.graphs.looks
        return look(*asked, self.clock, inside, self.history, before, self.preface, looks)

    def _reduce(self, visual: VisualTokens, trimmed: Reduced | None) -> Reduced:
        reduced = self.reducer.reduce(visual)
        return reduced if trimmed is None else trimmed.then(reduced)

    def _generator(self) -> torch.Generator:
        """Draws depend on the seed and on how many tokens came before, on nothing else."""
        return torch.Generator().manual_seed(self.sampling.seed + 1_000_003 * len(self.ids))

    def _tokens(self, read: bool) -> Tokens:
        patches = sum(len(view.source) for view in self.reduced)
        visual = sum(len(view.features) for view in self.reduced)
        if not read:
            return Tokens(patches, visual, 0, 0, 0, 0, visual)
        d = self.decoder
        first, after = d.image.span
        counts = d.prompt, len(self.ids), d.entries(), d.bytes(), d.layer_mean(), tuple(d.entered)
        return Tokens(patches, visual, *counts, after - first - d.image.count)


def _through(indices: list[Tensor], sizes: list[int]) -> list[int]:
    """Indices into each view, counted on through all views; -1 stays."""
    starts = accumulate(sizes, initial=0)
    return [n + at if n >= 0 else n for view, at in zip(indices, starts, strict=False) for n in view.tolist()]


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows; the peak of the process, which never falls

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
