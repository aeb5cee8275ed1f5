"""Tower, prompts and decode steps as CUDA graphs: hundreds of launches become one, the device does the same work.

At one image a large GPU waits for launches more than it computes, so that without this no pruning would show. Where a
model is `capturable`, a pass through its tower is a graph, prompts of up to `LONGEST` tokens are read by one of their
length, both kept with the model, and the steps of each answer are one of its own. What cannot be captured is launched
op by op, as on a CPU.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

WARM_UPS = 2  # steps of an answer that run launch by launch before one is captured
LONGEST, BUCKET, MOST = 704, 16, 24  # tokens of a prompt; lengths are rounded up to a multiple; graphs kept
log = logging.getLogger("longtail")


class Steps:
    """Decode steps of one answer, or of several together as long as they are the same ones; the first are launched op
    by op, warm the device up, and count all the same.

    The caches hold still from now on (`Slots.hold_still`), so that every step does the same work on the same memory.
    What a reducer gives up is decided outside of the graph, after each replay: those few launches hide behind the
    step's work. Capturing takes about as long as a step that is launched; a shorter answer is over before.
    """

    def __init__(self, *rows, read: Callable[[Tensor], Tensor] | None = None):
        """`rows`: their decoders. `read`: what reads a token id of each [B] and returns logits; that of the one row."""
        self.rows, self.work = rows, read or rows[0].read
        self.token = torch.zeros(len(rows), dtype=torch.long, device=rows[0].model.device)
        self.launched, self.replay, self.logits, self.refused = 0, None, None, False
        for ledger in self._ledgers():
            ledger.hold_still()

    def step(self, token: Tensor) -> Tensor:
        """As `Decoder.step`: read one more token id [1]; returns the logits [V], which the next step overwrites."""
        logits = self.read(token)
        for row in self.rows:
            row.evict()
        return logits

    def read(self, token: Tensor) -> Tensor:
        """As `Decoder.read`, of each row one more token id [B]."""
        self.token.copy_(token)
        if self.replay:
            for ledger in self._ledgers():
                ledger.read_on()
            self.replay()
        elif self.refused:
            self.logits = self._read()
        elif self.launched < WARM_UPS:
            self.launched, self.logits = self.launched + 1, aside(self._read)
        else:
            self._capture()
        return self.logits

    def _read(self) -> Tensor:
        return self.work(self.token)

    def _ledgers(self) -> list:
        return [ledger for row in self.rows for ledger in row.distinct()]

    def _capture(self):
        """Capture this step and run it; where that cannot be, launch it and all that follow."""
        before = [(ledger, ledger.free, ledger.seen) for ledger in self._ledgers()]
        try:
            self.replay, self.logits = capture(self._read)
            self.replay()
        except RuntimeError as error:
            told("decode steps", error)
            for ledger, free, seen in before:  # nothing has run, so nothing has come
                ledger.free, ledger.seen = free, seen
            self.replay, self.refused, self.logits = None, True, self._read()
        else:
            for row in self.rows:
                row.replayed = tuple(dict.fromkeys((*row.replayed, "decode")))


class Kept:
    """Graphs of a model's work by what shapes it, the `MOST` last used. What is met first is launched op by op and
    warms the device up; met again it is captured. One runs at a time, as they share the memory they read and write."""

    what = "work"  # in the plural, for the log

    def __init__(self, llava):
        self.llava, self.one_at_a_time = llava, threading.Lock()
        self.refused, self.replays = False, 0
        self.kept: OrderedDict[Hashable, tuple | None] = OrderedDict()  # what replays and what it makes; None: met once

    def met(self, key: Hashable) -> bool:
        """Whether work of this shape would be captured or replayed now; notes that it was met."""
        known = key in self.kept
        self.kept[key] = self.kept.get(key)
        self.kept.move_to_end(key)
        if len(self.kept) > MOST:
            self.kept.popitem(last=False)
        return known and not self.refused

    def replayed(self, key: Hashable, work: Callable):
        """What `work` makes, in memory that the next replay overwrites; None where it could not be captured."""
        try:
            self.kept[key] = replay, made = self.kept.get(key) or capture(work)
            replay()
        except RuntimeError as error:
            told(self.what, error)
            self.refused = True
            return None
        self.replays += 1
        return made


class Prompts(Kept):
    """Prompts, read by one graph for each length in steps of `BUCKET`.

    A prompt is padded behind its end, where causal attention never looks. All graphs write their keys and values into
    one place, from where they are copied into the slots of an answer's own cache.
    """

    what = "prompts"
    states: Tensor | None = None  # [L, 2, 1, H_kv, LONGEST, d]

    def reads(self, length: int) -> bool:
        """Whether a prompt of that many tokens would be replayed or captured now; notes that its length was met."""
        return length <= LONGEST and self.met(_bucket(length))

    def read(self, hidden: Tensor, angles: Tensor, slots: int) -> tuple[Tensor, Tensor] | None:
        """Logits [V] behind a prompt's embeddings [T, D] at rotary positions `angles` [T], and the keys and values
        [L, 2, 1, H_kv, slots, d] of all layers in the first T of so many slots; None where it could not be captured."""
        with self.one_at_a_time:
            self._lay_out(hidden, angles)
            bucket = _bucket(len(hidden))
            logits = self.replayed(bucket, lambda: self._prefill(bucket))
            if logits is None:
                return None
            layers, two, one, heads, _, width = self.states.shape
            store = self.states.new_zeros(layers, two, one, heads, slots, width)
            store[..., : len(hidden), :] = self.states[..., : len(hidden), :]
            return logits.clone(), store

    def _lay_out(self, hidden: Tensor, angles: Tensor):
        """Put a prompt where the graphs read it: memory at addresses that stay."""
        if self.states is None:
            layers, heads, width = self.llava.states
            self.states = hidden.new_zeros(layers, 2, 1, heads, LONGEST, width)
            self.hidden, self.angles = hidden.new_zeros(LONGEST, hidden.shape[-1]), angles.new_zeros(LONGEST)
            self.last = angles.new_zeros(1)
        self.hidden[: len(hidden)], self.angles[: len(angles)] = hidden, angles
        self.last.fill_(len(hidden) - 1)

    def _prefill(self, bucket: int) -> Tensor:
        hidden = self.hidden[:bucket]
        rotary = self.llava.rotary(hidden, self.angles[:bucket])
        cache = Cache(layers=[Into(*states) for states in self.states])
        for layer in self.llava.decoder_layers:
            hidden = self.llava.decode_layer(layer, hidden, rotary, cache)
        return self.llava.logits(hidden.index_select(0, self.last)[0])


class Looks(Kept):
    """Passes through the vision tower, a graph for each shape of pixels and set of layers whose states are wanted."""

    what = "passes through the vision tower"

    def __init__(self, llava):
        super().__init__(llava)
        self.pixels: dict[torch.Size, Tensor] = {}  # at addresses that stay

    def through(self, pixels: Tensor, wanted: tuple[int, ...]) -> list[Tensor] | None:
        """The states [V, 1+N, D] entering each of those layers; None where op by op is the way."""
        key = pixels.shape, wanted
        with self.one_at_a_time:
            if not self.met(key):
                return None
            buffer = self.pixels.setdefault(pixels.shape, torch.empty_like(pixels))
            buffer.copy_(pixels)
            states = self.replayed(key, lambda: self.llava.vision.through(buffer, wanted))
            return states and [layer.clone() for layer in states]


class Graphs:
    """All that is captured of one model."""

    def __init__(self, llava):
        self.looks, self.prompts = Looks(llava), Prompts(llava)

    @classmethod
    def of(cls, llava, eager: bool = False) -> "Graphs | None":
        """The model's own, made on first need; None where it is not `capturable`, or should run op by op."""
        if eager or not llava.capturable:
            return None
        llava.graphs = llava.graphs or cls(llava)
        return llava.graphs


class Into(CacheLayerMixin):
    """One layer's place for the keys and values of a prompt, [1, H_kv, LONGEST, d] each."""

    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self.keys, self.values, self.is_initialized = keys, values, True

    def lazy_initialization(self, key_states, value_states):
        """Nothing to do: the place is there."""

    def update(self, key_states, value_states, *args, **kwargs):
        """Write them down; the prompt attends to what it was handed."""
        length = key_states.shape[2]
        self.keys[:, :, :length], self.values[:, :, :length] = key_states, value_states
        return key_states, value_states

    def get_mask_sizes(self, query_length):
        return query_length, 0

    def get_seq_length(self):
        return 0

    def get_max_length(self):
        return -1


def _bucket(length: int) -> int:
    return -(-length // BUCKET) * BUCKET


# ---- CUDA's part


def aside(work: Callable[[], Tensor]) -> Tensor:
    """Run `work` on a stream of its own, as what is to be captured later must be warmed up."""
    stream, main = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(main)
    with torch.cuda.stream(stream):
        made = work()
    main.wait_stream(stream)
    made.record_stream(main)
    return made


def capture(work: Callable) -> tuple[Callable[[], None], Tensor | list[Tensor]]:
    """What launches `work` again in one go, and what it then makes, where; nothing has run when this returns.

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


def told(what: str, error: RuntimeError):
    """Say that something is launched op by op, and why."""
    log.warning("%s cannot be captured as a CUDA graph and are launched op by op: %s", what, str(error).split("\n")[0])
