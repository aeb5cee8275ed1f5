"""The KV cache with a fixed number of slots: a newcomer overwrites an entry that was given up, nothing is ever moved.

A `Ledger` knows which entry lies in which slot, the same for all heads and for all layers that share it; a `HeadLedger`
knows it head by head for one layer; a `SlotLayer` holds one decoder layer's keys and values in those slots.
"""

import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import CacheLayerMixin

from .similarity import received


class Slots:
    """How many slots there are, how far they are written, how many were given up: counted on the host alone."""

    def __init__(self, used: int, slots: int, seen: int, shift: int, following: Tensor):
        self.used, self.slots, self.seen = used, slots, seen  # slots ever written, slots in all, tokens ever read
        self.free = 0  # slots given up and not yet overwritten
        self.shift = shift  # how far rotary positions lie behind true ones
        self.still = False  # whether shapes stay as they are from token to token
        self.following = following  # [1] true position of the next token: `seen`, where the device can read it
        self.slot: Tensor | None = None  # where the newcomer lies: [1], or [H_kv, 1]

    @property
    def count(self) -> int:
        """Live entries (of each head)."""
        return self.used - self.free

    def hold_still(self):
        """From now on no shape changes from token to token: slots never written count as given up ones, and there is
        always a mask. What a step does on the device is then the same whatever was read before it."""
        self.free += self.slots - self.used
        self.used, self.still = self.slots, True

    def read_on(self):
        """Count one more token that a captured step has placed."""
        self.free -= 1
        self.seen += 1


class Ledger(Slots):
    """Slots of the decoder layers that share the same entries: true position of each entry and what it has received."""

    def __init__(self, hidden: Tensor, slots: int, scores_with: str | None):
        """All T entries of `hidden` [T, D] in order; `slots` >= T."""
        used = len(hidden)
        super().__init__(used, slots, used, 0, torch.full((1,), used, device=hidden.device))
        self.position = torch.full((slots,), -1, device=hidden.device)
        self.position[:used] = torch.arange(used, device=hidden.device)
        self.embedding = self.score = None
        if scores_with == "embeddings":
            spare = slots - used
            self.score = functional.pad(received(hidden), (0, spare))
            self.embedding = functional.pad(hidden.float() / hidden.shape[-1] ** 0.5, (0, 0, 0, spare))

    def select(self, keep: Tensor, slots: int, shift: int) -> "Ledger":
        """A ledger of the entries `keep` [<= T] alone, packed into the first slots; scores are carried over."""
        chosen = Ledger.__new__(Ledger)
        Slots.__init__(chosen, len(keep), slots, self.seen, shift, self.following.clone())
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
            self.slot = self.position.new_full((1,), self.used)
            self.used += 1
        self.position.index_copy_(0, self.slot, self.following)
        self.following += 1
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

    def mask(self, heads: int) -> Tensor | None:
        """Which written slots are live [1, 1, 1, used], True = seen; None where all are and more may come."""
        return (self.position[: self.used] >= 0)[None, None, None] if self.free or self.still else None

    def write(self, store: Tensor, states: Tensor):
        """Put the newcomer's `states` [1, H_kv, 1, width] into its slot of `store`."""
        store.index_copy_(2, self.slot.to(store.device), states)


class HeadLedger(Slots):
    """Slots of one decoder layer where each key head keeps entries of its own, scored by the attention they receive."""

    def __init__(self, shared: Ledger, score: Tensor):
        """The entries of `shared`, in every head; `score` [H_kv, T]: what they have received so far."""
        super().__init__(shared.used, shared.slots, shared.seen, shared.shift, shared.following.clone())
        self.position = shared.position.repeat(len(score), 1)
        self.score = functional.pad(score, (0, self.slots - self.used))

    def place(self, hidden: Tensor):
        """Give the newcomer a slot in each head."""
        if self.free:
            self.slot = (self.position[:, : self.used] < 0).int().argmax(1, keepdim=True)
            self.free -= 1
        else:
            self.slot = self.position.new_full((len(self.position), 1), self.used)
            self.used += 1
        self.position.scatter_(1, self.slot, self.following.expand_as(self.slot))
        self.following += 1
        self.score.scatter_(1, self.slot, 0.0)
        self.seen += 1

    def receive(self, query: Tensor, keys: Tensor):
        """Entries receive the attention that the newcomer's `query` [H, 1, d] gives to `keys` [H_kv, used, d]."""
        grouped = query.view(len(keys), -1, query.shape[-1])  # queries that share a key head
        logits = (grouped @ keys.transpose(1, 2)).float() * query.shape[-1] ** -0.5
        gone = self.position[:, None, : self.used] < 0
        self.score[:, : self.used] += logits.masked_fill(gone, -torch.inf).softmax(-1).mean(1)

    def give_up(self, slots: Tensor) -> Tensor:
        """Free these slots [H_kv, E]; returns the true positions [H_kv * E] that lay there, -1 for those that another
        head still holds."""
        positions = self.position.gather(1, slots).flatten()
        self.position.scatter_(1, slots, -1)
        self.free += slots.shape[1]
        held = torch.zeros(self.seen + 1, dtype=torch.bool, device=positions.device)
        held.index_fill_(0, self.position[:, : self.used].flatten() % len(held), True)  # a free slot's -1: the last one
        return torch.where(held[positions], -1, positions)

    def pack(self, spare: int) -> Tensor:
        """Move the live entries of each head to the first slots, with `spare` behind; returns where they lay."""
        live = (self.position[:, : self.used] >= 0).int().argsort(dim=1, descending=True, stable=True)[:, : self.count]
        self.position = functional.pad(self.position.gather(1, live), (0, spare), value=-1)
        self.score = functional.pad(self.score.gather(1, live), (0, spare))
        self.used, self.free, self.slots = live.shape[1], 0, live.shape[1] + spare
        return live

    def mask(self, heads: int) -> Tensor | None:
        """Which written slots are live [1, heads, 1, used], True = seen; None where all are and shapes may change."""
        if not (self.free or self.still):
            return None
        live = self.position[:, : self.used] >= 0
        return live.repeat_interleave(heads // len(live), dim=0)[None, :, None]

    def write(self, store: Tensor, states: Tensor):
        """Put the newcomer's `states` [1, H_kv, 1, width] into each head's slot of `store`."""
        store[0].scatter_(1, self.slot[..., None].expand(-1, -1, states.shape[-1]).to(store.device), states[0])


class SlotLayer(CacheLayerMixin):
    """Keys and values [1, heads, slots, width] of one decoder layer, allocated once."""

    def __init__(self, ledger: Ledger):
        super().__init__()
        self.ledger = ledger

    def lazy_initialization(self, key_states, value_states):
        shape = (*key_states.shape[:2], self.ledger.slots, key_states.shape[-1])
        self.hold(key_states.new_zeros(shape), value_states.new_zeros(shape))

    def hold(self, keys: Tensor, values: Tensor):
        """Take these as the slots [1, heads, slots, width], whatever is written in them."""
        self.keys, self.values = keys, values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(self, key_states, value_states, *args, **kwargs):
        """Prefill: the prompt goes into the first slots. Decode: the newcomer into its own. Returns written slots."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys[:, :, : self.ledger.used], self.values[:, :, : self.ledger.used] = key_states, value_states
            return key_states, value_states
        self.ledger.write(self.keys, key_states)
        self.ledger.write(self.values, value_states)
        return self.keys[:, :, : self.ledger.used], self.values[:, :, : self.ledger.used]

    def pack(self, spare: int):
        """Give the memory of entries that were given up back; `spare` slots stay for newcomers."""
        live = self.ledger.pack(spare)[None, ..., None].expand(-1, -1, -1, self.keys.shape[-1]).to(self.keys.device)
        self.keys = functional.pad(self.keys.gather(2, live), (0, 0, 0, spare))
        self.values = functional.pad(self.values.gather(2, live), (0, 0, 0, spare))

    def entry_bytes(self) -> int:
        """Bytes of one entry, keys and values."""
        return 2 * self.keys[0, :, 0].numel() * self.keys.element_size()

    def get_mask_sizes(self, query_length):
        return self.ledger.used, 0

    def get_seq_length(self):
        return self.ledger.used if self.is_initialized else 0

    def get_max_length(self):
        return -1  # never reported as bounded, or generate() would plan for a static cache
