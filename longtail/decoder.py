"""Inside the language model: `drop` entering each layer at prefill (moment 3), `evict` after each pass (moment 4).

Knows the order of things; the layers themselves, their rotary embedding and their head are the model family's.
"""

from collections.abc import Generator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Cache

from .cache import HeadLedger, Ledger, SlotLayer
from .reducer import Reducer
from .tokens import CacheView, Prefill, Spliced, Survivors


@dataclass
class Decoder:
    """One answer's way through the language model: its cache, its ledgers, the positions it has given up."""

    model: object  # a Llava of models/
    reducer: Reducer
    prompt: int = 0
    unpruned: int = 0
    image: Spliced | None = None  # what stood in the prompt as it was read
    visual: Tensor | None = None  # [prompt + 1] bool: visual positions; the last, False, is for all others
    ledgers: list[Ledger] = field(default_factory=list)  # one a decoder layer; the same until a layer drops entries
    cache: Cache | None = None
    entered: list[int] = field(default_factory=list)  # visual tokens entering each layer at prefill
    gone: list[Tensor] = field(default_factory=list)  # true positions dropped or evicted, oldest first
    recycled: dict[int, int] = field(default_factory=dict)  # true position -> that of the entry that speaks for it

    def __post_init__(self):
        self.moments = set(self.reducer.active())
        self.scores_with = self.reducer.scores_with if self.moments & {"drop", "evict"} else None
        self.per_head = self.scores_with in ("attention", "window")

    def prefill(self, image: Spliced, unpruned: int, new: int, clock) -> Tensor:
        """Read a prompt; returns the logits [V] after its last position.

        `unpruned`: its length had every patch stayed; `new`: tokens to come.
        """
        way, states = self.prefilling(image, unpruned, new, clock), None
        for layer in self.model.decoder_layers:
            hidden, rotary = way.send(states)
            states = self.model.decode_layer(layer, hidden, rotary, self.cache)
        try:
            way.send(states)
        except StopIteration as read:
            return read.value

    def prefilling(self, image: Spliced, unpruned: int, new: int, clock) -> Generator:
        """`prefill` layer by layer: yields the states [T, D] that enter each, with their rotary embedding, and takes
        the states that come out; returns the logits [V]."""
        hidden, self.image, self.visual = image.embeddings, image, functional.pad(image.visual, (0, 1))
        self.prompt, self.unpruned = len(hidden), unpruned
        slots = self.reducer.slots(self.prompt, unpruned, new)
        clock.lap("prefill")
        ledger = Ledger(hidden, max(slots, len(hidden)), "embeddings" if self.scores_with == "embeddings" else None)
        clock.lap("method")
        self.ledgers = [ledger] * len(self.model.decoder_layers)
        self.cache = Cache(layers=[SlotLayer(ledger) for ledger in self.ledgers])
        angles, visual, last = ledger.position[: ledger.used], image.count, None
        rotary = self.model.rotary(hidden, angles)
        for i, layer in enumerate(self.model.decoder_layers):
            clock.between()
            here = self.model.view(layer, hidden, rotary)
            going = self._drop(i, hidden, ledger, here, last, clock) if "drop" in self.moments else None
            if going is not None:
                hidden = hidden[going.keep] if going.hidden is None else going.hidden
                angles = torch.arange(len(hidden), device=hidden.device) if going.renumber else angles[going.keep]
                shift = self.prompt - len(hidden) if going.renumber else ledger.shift
                ledger = ledger.select(going.keep, slots if i == 0 else len(hidden) + new, shift)
                self._hand_over(ledger, i)
                visual = int(self._visual(ledger.position).sum())
                rotary = self.model.rotary(hidden, angles)
                here = self.model.view(layer, hidden, rotary)
            self.entered.append(visual)
            hidden = yield hidden, rotary
            if self.per_head:
                self._score_heads(i, here, clock)
            last = here
        logits = self.model.logits(hidden[-1])
        self.evict()
        if self.per_head:
            for layer in self.cache.layers:
                layer.pack(new)
        return logits

    def step(self, token: Tensor) -> Tensor:
        """Read one more token id [1]; returns the logits [V] after it."""
        hidden = self.model.embed(token)  # [1, D]
        rotary, masks, heads = {}, {}, self.model.heads
        for ledger in self._distinct():
            place = ledger.seen - ledger.shift
            if place not in rotary:
                rotary[place] = self.model.rotary(hidden, torch.tensor([place], device=hidden.device))
            ledger.place(hidden)
            masks[id(ledger)] = ledger.mask(heads), rotary[place]
        for i, (layer, ledger) in enumerate(zip(self.model.decoder_layers, self.ledgers, strict=True)):
            mask, wave = masks[id(ledger)]
            read, hidden = hidden, self.model.decode_layer(layer, hidden, wave, self.cache, mask)
            if self.scores_with == "attention":
                query = self.model.view(layer, read, wave).query(slice(None), True)
                ledger.receive(query, self.cache.layers[i].keys[0, :, : ledger.used].to(query.device))
        logits = self.model.logits(hidden[-1])
        self.evict()
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
        if self.per_head:  # noted when asked for: a position is lost once no head of the last layer holds it
            lost = self.ledgers[-1].lost()
            self.gone.append(lost[~torch.isin(lost, torch.cat([lost[:0], *self.gone]))])
        return tuple(torch.cat(self.gone).tolist()) if self.gone else ()

    def evict(self):
        """After a pass: the slots that the reducer gives up are free."""
        if "evict" not in self.moments:
            return
        for ledger in self._distinct():
            slots = self.reducer.evict(self._cache_view(ledger))
            if slots is not None and slots.numel():
                positions = ledger.give_up(slots)
                if not self.per_head and ledger is self.ledgers[-1]:
                    self.gone.append(positions)

    def _distinct(self) -> list[Ledger]:
        return list(dict.fromkeys(self.ledgers))

    def _drop(self, index: int, hidden: Tensor, ledger: Ledger, here, last, clock) -> Survivors | None:
        """What goes on, None for all as they are; what goes is noted."""
        clock.lap("prefill")
        going = self.reducer.drop(self._prefill_view(index, hidden, ledger, here, last))
        clock.lap("method")
        if isinstance(going, Tensor):
            going = None if len(going) == len(hidden) else Survivors(going)
        if going is None:
            return None
        position = ledger.position[: ledger.used]
        stays = torch.zeros(len(position), dtype=torch.bool, device=position.device).index_fill(0, going.keep, True)
        if going.speaks is None:
            self.gone.append(position[~stays])
            merged = {}
        else:
            told = ~stays & (going.speaks >= 0)
            stands = position[going.keep][going.speaks.clamp_min(0)]
            self.gone.append(position[~stays & ~told])
            merged = dict(torch.stack([position, stands], dim=1)[told].tolist())
        if merged or self.recycled:
            self._retell(merged)
        return going

    def _retell(self, merged: dict[int, int]):
        """Note what is now spoken for by which entry, and what was and went with its speaker."""
        left = set(self.gone[-1].tolist())
        lost = [position for position, speaker in self.recycled.items() if speaker in left]
        self.gone.append(self.gone[-1].new_tensor(lost))
        told = {position: merged.get(speaker, speaker) for position, speaker in self.recycled.items()}
        self.recycled = {p: speaker for p, speaker in told.items() if p not in lost} | merged

    def _score_heads(self, index: int, here, clock):
        """Entries receive the attention of the prompt's queries, or of its last `window`, each head for itself."""
        clock.lap("prefill")
        layer, ledger = self.cache.layers[index], self.ledgers[index]
        window = self.reducer.window if self.scores_with == "window" else ledger.used
        rows = torch.arange(ledger.used, device=ledger.position.device)[-window:]
        received = sum(here.attention(part).sum(1) for part in rows.split(256))  # [H, T]
        grouped = received.view(layer.keys.shape[1], -1, ledger.used).mean(1)
        self.ledgers[index] = layer.ledger = HeadLedger(ledger, grouped)
        clock.lap("method")

    def _hand_over(self, ledger: Ledger, start: int):
        """From layer `start` on, the entries are this ledger's."""
        for i in range(start, len(self.ledgers)):
            self.ledgers[i] = self.cache.layers[i].ledger = ledger

    def _visual(self, position: Tensor) -> Tensor:
        """Which true positions are visual; -1, of a free slot, is none."""
        return self.visual[position.clamp_max(self.prompt)]

    def _prefill_view(self, index: int, hidden: Tensor, ledger: Ledger, here, last) -> Prefill:
        position = ledger.position[: ledger.used]
        return Prefill(
            layer=index,
            depth=len(self.ledgers),
            hidden=hidden,
            visual=self._visual(position),
            prompt=self.prompt,
            unpruned=self.unpruned,
            text=self._text(),
            embeddings=self.image.embeddings,
            span=self.image.span,
            views=self.image.views,
            raster=self.image.raster[position],
            score=None if ledger.score is None else ledger.score[: ledger.used],
            this=here,
            last=last,
            norm=self.model.norm,
        )

    def _cache_view(self, ledger) -> CacheView:
        position = ledger.position[..., : ledger.used]
        return CacheView(
            layer=self.ledgers.index(ledger),
            count=ledger.count,
            position=position,
            visual=self._visual(position),
            score=None if ledger.score is None else ledger.score[..., : ledger.used],
            seen=ledger.seen,
            prompt=self.prompt,
            unpruned=self.unpruned,
            text=self._text(),
            views=self.image.views,
        )

    def _text(self) -> int:
        return self.prompt - self.image.count
