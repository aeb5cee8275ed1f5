"""Inside the language model: `drop` entering each layer at prefill (moment 3), `evict` after each pass (moment 4).

Knows the order of things; the layers themselves, their rotary embedding and their head are the model family's.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import Cache

from .cache import Ledger, SlotLayer
from .reducer import Reducer
from .tokens import CacheView, Prefill


@dataclass
class Decoder:
    """One answer's way through the language model: its cache, its ledgers, the positions it has given up."""

    model: object  # a Llava of models/
    reducer: Reducer
    prompt: int = 0
    unpruned: int = 0
    span: tuple[int, int] = (0, 0)  # first visual position and the one after the last
    ledgers: list[Ledger] = field(default_factory=list)  # one a decoder layer; the same until a layer drops entries
    cache: Cache | None = None
    entered: list[int] = field(default_factory=list)  # visual tokens entering each layer at prefill
    gone: list[Tensor] = field(default_factory=list)  # true positions dropped or evicted, oldest first

    def __post_init__(self):
        self.moments = set(self.reducer.active())

    def prefill(self, hidden: Tensor, span: tuple[int, int], unpruned: int, new: int, clock) -> Tensor:
        """Read the prompt `hidden` [T, D]; returns the logits [V] after its last position.

        `span`: where its visual tokens stand; `unpruned`: its length had every patch stayed; `new`: tokens to come.
        """
        self.prompt, self.unpruned, self.span = len(hidden), unpruned, span
        slots, visual = self.reducer.slots(self.prompt, unpruned, new), span[1] - span[0]
        scores_with = self.reducer.scores_with if self.moments & {"drop", "evict"} else None
        clock.lap("prefill")
        ledger = Ledger(hidden, max(slots, len(hidden)), scores_with)
        clock.lap("method")
        self.ledgers = [ledger] * len(self.model.decoder_layers)
        self.cache = Cache(layers=[SlotLayer(ledger) for ledger in self.ledgers])
        rotary = self.model.rotary(hidden, ledger.position[: ledger.used])
        for i, layer in enumerate(self.model.decoder_layers):
            clock.between()
            keep = self._drop(i, hidden, ledger, clock) if "drop" in self.moments else None
            if keep is not None:
                ledger, hidden = ledger.select(keep, slots if i == 0 else len(keep) + new), hidden[keep]
                self._hand_over(ledger, i)
                rotary = self.model.rotary(hidden, ledger.position[: ledger.used])
                visual = int(self._visual(ledger.position).sum())
            self.entered.append(visual)
            hidden = self.model.decode_layer(layer, hidden, rotary, self.cache)
        logits = self.model.logits(hidden[-1])
        self._evict()
        return logits

    def step(self, token: Tensor) -> Tensor:
        """Read one more token id [1]; returns the logits [V] after it."""
        hidden = self.model.embed(token)  # [1, D]
        ledgers = self._distinct()
        rotary = self.model.rotary(hidden, torch.tensor([ledgers[0].seen], device=hidden.device))
        for ledger in ledgers:
            ledger.place(hidden)
        masks = {id(ledger): ledger.mask() for ledger in ledgers}
        for layer, ledger in zip(self.model.decoder_layers, self.ledgers, strict=True):
            hidden = self.model.decode_layer(layer, hidden, rotary, self.cache, masks[id(ledger)])
        logits = self.model.logits(hidden[-1])
        self._evict()
        return logits

    def entries(self) -> float:
        """Live KV entries of a layer, averaged over the layers."""
        return sum(ledger.count for ledger in self.ledgers) / len(self.ledgers)

    def layer_mean(self) -> float:
        """Visual tokens entering a layer at prefill, averaged over the layers."""
        return sum(self.entered) / len(self.entered)

    def bytes(self) -> int:
        """Bytes of all live KV entries."""
        return sum(layer.ledger.count * layer.entry_bytes() for layer in self.cache.layers)

    def lost(self) -> tuple[int, ...]:
        """True positions that were dropped or evicted, in the order they went."""
        return tuple(torch.cat(self.gone).tolist()) if self.gone else ()

    def _evict(self):
        if "evict" not in self.moments:
            return
        for ledger in self._distinct():
            slots = self.reducer.evict(self._cache_view(ledger))
            if slots is not None and len(slots):
                self.gone.append(ledger.give_up(slots))

    def _distinct(self) -> list[Ledger]:
        return list(dict.fromkeys(self.ledgers))

    def _drop(self, index: int, hidden: Tensor, ledger: Ledger, clock) -> Tensor | None:
        """Positions to go on with, None for all; what goes is noted."""
        clock.lap("prefill")
        keep = self.reducer.drop(self._prefill_view(index, hidden, ledger))
        clock.lap("method")
        if keep is None or len(keep) == len(hidden):
            return None
        stays = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device).index_fill(0, keep, True)
        self.gone.append(ledger.position[: ledger.used][~stays])
        return keep

    def _hand_over(self, ledger: Ledger, start: int):
        """From layer `start` on, the entries are this ledger's."""
        for i in range(start, len(self.ledgers)):
            self.ledgers[i] = self.cache.layers[i].ledger = ledger

    def _visual(self, position: Tensor) -> Tensor:
        return (self.span[0] <= position) & (position < self.span[1])

    def _prefill_view(self, index: int, hidden: Tensor, ledger: Ledger) -> Prefill:
        position = ledger.position[: ledger.used]
        score = None if ledger.score is None else ledger.score[: ledger.used]
        layer = self.model.decoder_layers[index]

        def attention(rows):
            return self.model.attention_rows(layer, hidden, position, rows)

        return Prefill(index, hidden, self._visual(position), self.prompt, self.unpruned, score, attention)

    def _cache_view(self, ledger: Ledger) -> CacheView:
        position = ledger.position[: ledger.used]
        score = None if ledger.score is None else ledger.score[: ledger.used]
        first = self.ledgers.index(ledger)
        visual = self._visual(position)
        return CacheView(first, ledger.count, position, visual, score, ledger.seen, self.prompt, self.unpruned)
