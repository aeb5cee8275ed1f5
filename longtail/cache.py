"""The KV cache with a fixed number of slots: a newcomer overwrites an entry that was given up, nothing is ever moved.

A `Ledger` knows which entry lies in which slot; a `SlotLayer` holds one decoder layer's keys and values in those slots.
"""

import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import CacheLayerMixin

from .similarity import received


class Ledger:
    """Slots of the decoder layers that share the same entries: true position of each entry and what it has received."""

    def __init__(self, hidden: Tensor, slots: int, scores_with: str | None):
        """All T entries of `hidden` [T, D] in order; `slots` >= T."""
        self.used = self.seen = len(hidden)  # slots ever written; tokens ever read
        self.slots, self.free = slots, 0  # free: slots given up and not yet overwritten
        self.position = torch.full((slots,), -1, device=hidden.device)
        self.position[: self.used] = torch.arange(self.used, device=hidden.device)
        self.slot: Tensor | None = None  # [1] where the newcomer lies
        self.embedding = self.score = None
        if scores_with == "embeddings":
            spare = slots - self.used
            self.score = functional.pad(received(hidden), (0, spare))
            self.embedding = functional.pad(hidden.float() / hidden.shape[-1] ** 0.5, (0, 0, 0, spare))

    @property
    def count(self) -> int:
        """Live entries."""
        return self.used - self.free

    def select(self, keep: Tensor, slots: int) -> "Ledger":
        """A ledger of the entries `keep` [<= T] alone, packed into the first slots; scores are carried over."""
        chosen = Ledger.__new__(Ledger)
        chosen.used, chosen.seen, chosen.slots, chosen.free, chosen.slot = len(keep), self.seen, slots, 0, None
        spare = max(slots, len(keep)) - len(keep)
        chosen.position = functional.pad(self.position[keep], (0, spare), value=-1)
        chosen.score = None if self.score is None else functional.pad(self.score[keep], (0, spare))
        chosen.embedding = None if self.score is None else functional.pad(self.embedding[keep], (0, 0, 0, spare))
        return chosen

    def place(self, hidden: Tensor):
        """Give the newcomer `hidden` [1, D] a slot; live entries, itself included, receive its similarity to them."""
        if self.free:
            self.slot = (self.position[: self.used] < 0).int().argmax(0, keepdim=True)
            self.free -= 1
        else:
            self.slot = torch.tensor([self.used], device=hidden.device)
            self.used += 1
        self.position.index_fill_(0, self.slot, self.seen)
        self.seen += 1
        if self.score is not None:
            x = hidden.float()
            self.embedding.index_copy_(0, self.slot, x / x.shape[-1] ** 0.5)
            self.score.index_fill_(0, self.slot, 0)
            similarity = (x @ self.embedding[: self.used].T)[0]
            gone = self.position[: self.used] < 0
            self.score[: self.used] += similarity.masked_fill(gone, -torch.inf).softmax(-1)

    def give_up(self, slots: Tensor) -> Tensor:
        """Free these slots; returns the true positions of the entries that lay there."""
        positions = self.position[slots]
        self.position.index_fill_(0, slots, -1)
        self.free += len(slots)
        return positions

    def mask(self) -> Tensor | None:
        """Which written slots are live [1, 1, 1, used], True = seen; None where all are."""
        return (self.position[: self.used] >= 0)[None, None, None] if self.free else None


class SlotLayer(CacheLayerMixin):
    """Keys and values [1, heads, slots, width] of one decoder layer, allocated once."""

    def __init__(self, ledger: Ledger):
        super().__init__()
        self.ledger = ledger

    def lazy_initialization(self, key_states, value_states):
        shape = (*key_states.shape[:2], self.ledger.slots, key_states.shape[-1])
        self.keys, self.values = key_states.new_empty(shape), value_states.new_empty(shape)
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True

    def update(self, key_states, value_states, *args, **kwargs):
        """Prefill: the prompt goes into the first slots. Decode: the newcomer into its own. Returns written slots."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys[:, :, : self.ledger.used], self.values[:, :, : self.ledger.used] = key_states, value_states
            return key_states, value_states
        self.keys.index_copy_(2, self.ledger.slot, key_states)
        self.values.index_copy_(2, self.ledger.slot, value_states)
        return self.keys[:, :, : self.ledger.used], self.values[:, :, : self.ledger.used]

    def entry_bytes(self) -> int:
        """Bytes of one entry, keys and values."""
        return 2 * self.keys[0, :, 0].numel() * self.keys.element_size()

    def get_mask_sizes(self, query_length):
        return self.ledger.used, 0

    def get_seq_length(self):
        return self.ledger.used if self.is_initialized else 0

    def get_max_length(self):
        return -1  # never reported as bounded, or generate() would plan for a static cache
