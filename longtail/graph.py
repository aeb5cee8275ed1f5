"""Prompts and decode steps captured as CUDA graphs: hundreds of launches become one, the device does the same work.

At one image a large GPU waits for launches more than it computes, so that without this no pruning would show. Where a
model is `capturable`, prompts of up to `LONGEST` tokens are read by a graph of their length, kept with the model, and
the steps of each answer by one of its own. What cannot be captured is launched op by op, as on a CPU.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

WARM_UPS = 2  # steps of an answer that run launch by launch before one is captured
LONGEST, BUCKET, MOST = 704, 16, 24  # tokens of a prompt; lengths are rounded up to a multiple; graphs kept
log = logging.getLogger("longtail")


class Steps:
    """The decode steps of one answer; the first ones are launched op by op, warm the device up, and count all the same.

    `step` does what `Decoder.step` does. The cache holds still from now on (`Slots.hold_still`), so that every step
    does the same work on the same memory. What a reducer gives up is decided outside of the graph, after each replay:
    those few launches hide behind the step's work. Capturing takes about as long as a step that is launched; a shorter
    answer is over before.
    """

    def __init__(self, decoder):
        self.decoder, self.token = decoder, torch.zeros(1, dtype=torch.long, device=decoder.model.device)
        self.launched, self.replay, self.logits, self.refused = 0, None, None, False
        for ledger in decoder.distinct():
            ledger.hold_still()

    def step(self, token: Tensor) -> Tensor:
        """Read one more token id [1]; returns the logits [V] after it, which the next step overwrites."""
        self.token.copy_(token)
        if self.replay:
            for ledger in self.decoder.distinct():
                ledger.read_on()
            self.replay()
        elif self.refused:
            self.logits = self._read()
        elif self.launched < WARM_UPS:
            self.launched, self.logits = self.launched + 1, aside(self._read)
        else:
            self._capture()
        self.decoder.evict()
        return self.logits

    def _read(self) -> Tensor:
        return self.decoder.read(self.token)

    def _capture(self):
        """Capture this step and run it; where that cannot be, launch it and all that follow."""
        before = [(ledger, ledger.free, ledger.seen) for ledger in self.decoder.distinct()]
        try:
            self.replay, self.logits = capture(self._read)
            self.replay()
            self.decoder.replayed.add("decode")
        except RuntimeError as error:
            told("decode steps", error)
            for ledger, free, seen in before:  # nothing has run, so nothing has come
                ledger.free, ledger.seen = free, seen
            self.replay, self.refused, self.logits = None, True, self._read()


class Prompts:
    """Prompts read by captured graphs, one for each length in steps of `BUCKET`.

    A prompt is padded behind its end, where causal attention never looks. The first one of a length is launched op by
    op and warms the device up; the second is captured. All graphs write their keys and values into one place, from
    where they are copied into the slots of an answer's own cache, so that one prompt is read at a time.
    """

    def __init__(self, llava):
        self.llava, self.one_at_a_time = llava, threading.Lock()
        self.kept: OrderedDict[int, tuple | None] = OrderedDict()  # by length: what replays it; None: met once
        self.refused, self.states = False, None

    def reads(self, length: int) -> bool:
        """Whether a prompt of that many tokens would be replayed or captured now; notes that this length was met."""
        if self.refused or length > LONGEST:
            return False
        bucket, met = _bucket(length), _bucket(length) in self.kept
        self.kept[bucket] = self.kept.get(bucket)
        self.kept.move_to_end(bucket)
        if len(self.kept) > MOST:
            self.kept.popitem(last=False)
        return met

    def read(self, hidden: Tensor, angles: Tensor, slots: int) -> tuple[Tensor, Tensor] | None:
        """Logits [V] behind a prompt's embeddings [T, D] at rotary positions `angles` [T], and the keys and values
        [L, 2, 1, H_kv, slots, d] of all layers in the first T of so many slots; None where it could not be captured."""
        with self.one_at_a_time:
            self._lay_out(hidden, angles)
            bucket = _bucket(len(hidden))
            try:
                replay, logits = self.kept[bucket] or self._capture(bucket)
                replay()
            except RuntimeError as error:
                told("prompts", error)
                self.refused = True
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

    def _capture(self, bucket: int) -> tuple[Callable[[], None], Tensor]:
        self.kept[bucket] = capture(lambda: self._prefill(bucket))
        return self.kept[bucket]

    def _prefill(self, bucket: int) -> Tensor:
        hidden = self.hidden[:bucket]
        rotary = self.llava.rotary(hidden, self.angles[:bucket])
        cache = Cache(layers=[Into(*states) for states in self.states])
        for layer in self.llava.decoder_layers:
            hidden = self.llava.decode_layer(layer, hidden, rotary, cache)
        return self.llava.logits(hidden.index_select(0, self.last)[0])


def prompts(llava) -> Prompts:
    """A model's captured prompts."""
    llava.prompts = llava.prompts or Prompts(llava)
    return llava.prompts


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


def told(what: str, error: RuntimeError):
    """Say that something is launched op by op, and why."""
    log.warning("%s cannot be captured as a CUDA graph and are launched op by op: %s", what, str(error).split("\n")[0])
