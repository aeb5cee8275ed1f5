"""Inside the language model: `drop` entering each layer at prefill (moment 3), `evict` after each pass (moment 4).

Knows the order of things; the layers themselves, their rotary embedding and their head are the model family's.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Cache

from .cache import HeadLedger, Ledger, SlotLayer, Slots
from .reducer import Reducer
from .tokens import CacheView, Prefill, Spliced, Survivors


@dataclass
class Decoder:
    """One answer's way through the language model: its cache, its ledgers, the positions it has given up."""

    model: object  # a Llava of models/
    reducer: Reducer
    prompts: object | None = None  # a `graph.Prompts` that reads prompts at once, where it can
    prompt: int = 0
    unpruned: int = 0
    image: Spliced | None = None  # what stood in the prompt as it was read
    visual: Tensor | None = None  # [prompt + 1] bool: visual positions; the last, False, is for all others
    ledgers: list[Ledger] = field(default_factory=list)  # one a decoder layer; the same until a layer drops entries
    cache: Cache | None = None
    replayed: set[str] = field(default_factory=set)  # phases that a captured graph ran: prefill, decode
    entered: list[int] = field(default_factory=list)  # visual tokens entering each layer at prefill
    gone: list[Tensor] = field(default_factory=list)  # true positions dropped or evicted that the host has not seen yet
    noted: list[int] = field(default_factory=list)  # those that it has, oldest first
    recycled: dict[int, int] = field(default_factory=dict)  # true position -> that of the entry that speaks for it

    def __post_init__(self):
        self.moments = set(self.reducer.active())
        self.scores_with = self.reducer.scores_with if self.moments & {"drop", "evict"} else None
        self.per_head = self.scores_with in ("attention", "window")

    def prefill(self, image: Spliced, unpruned: int, new: int, clock) -> Tensor:
        """Read a prompt; returns the logits [V] after its last position.

        `unpruned`: its length had every patch stayed; `new`: tokens to come.
        """
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
            going = self._drop(i, hidden, ledger, here, last, clock) if self._drops(i) else None
            if going is not None:
                hidden = hidden.index_select(0, going.keep) if going.hidden is None else going.hidden
                angles = torch.arange(len(hidden), device=hidden.device) if going.renumber else angles[going.keep]
                shift = self.prompt - len(hidden) if going.renumber else ledger.shift
                ledger = ledger.select(going.keep, slots if i == 0 else len(hidden) + new, shift)
                self._hand_over(ledger, i)
                visual = int(self._visual(ledger.position).sum())
                rotary = self.model.rotary(hidden, angles)
                here = self.model.view(layer, hidden, rotary)
            if i == 0 and (logits := self._at_once(hidden, angles)) is not None:
                self.entered = [visual] * len(self.ledgers)
                break
            self.entered.append(visual)
            hidden = self.model.decode_layer(layer, hidden, rotary, self.cache)
            last = here.ran(self._keys(i))
            if self.per_head:
                self._score_heads(i, last, clock)
        else:
            logits = self.model.logits(hidden[-1])
        self.evict()
        if self.per_head:
            for layer in self.cache.layers:
                layer.pack(new)
        return logits

    def step(self, token: Tensor) -> Tensor:
        """Read one more token id [1]; returns the logits [V] after it."""
        logits = self.read(token)
        self.evict()
        return logits

    def read(self, token: Tensor) -> Tensor:
        """A step without what is given up after it: all of it on the device, nothing in it asks the host or waits."""
        hidden = self.model.embed(token)  # [1, D]
        rotary, masks, heads = {}, {}, self.model.heads
        for ledger in self.distinct():
            place = ledger.seen - ledger.shift
            if place not in rotary:
                rotary[place] = self.model.rotary(hidden, ledger.following - ledger.shift)
            ledger.place(hidden)
            masks[id(ledger)] = ledger.mask(heads), rotary[place]
        for i, (layer, ledger) in enumerate(zip(self.model.decoder_layers, self.ledgers, strict=True)):
            mask, wave = masks[id(ledger)]
            states, hidden = hidden, self.model.decode_layer(layer, hidden, wave, self.cache, mask)
            if self.scores_with == "attention":
                query = self.model.view(layer, states, wave).query(slice(None), True)
                ledger.receive(query, self._keys(i))
        return self.model.logits(hidden[-1])

    def evict(self):
        """What the reducer gives up after a forward pass."""
        if "evict" not in self.moments:
            return
        for ledger in self.distinct():
            slots = self.reducer.evict(self._cache_view(ledger))
            if slots is not None and slots.numel():
                positions = ledger.give_up(slots)
                if ledger is self.ledgers[-1]:
                    self.gone.append(positions)

    def fetch(self, token: Tensor) -> int:
        """A token id [1], and with it what was given up since the last, brought to the host: the one wait of a step."""
        token, *gone = torch.cat([token, *self.gone]).tolist()
        self._note(gone)
        return token

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
        """True positions that were dropped or evicted, in the order they went; where each head keeps entries of its
        own, those that no head of the last layer holds any more, ascending within a step."""
        if self.gone:
            self._note(torch.cat(self.gone).tolist())
        return tuple(self.noted)

    def distinct(self) -> list[Slots]:
        """Every ledger once."""
        return list(dict.fromkeys(self.ledgers))

    def _note(self, gone: list[int]):
        """What is gone is known on the host."""
        self.noted += sorted({position for position in gone if position >= 0}) if self.per_head else gone
        self.gone.clear()

    def _keys(self, index: int) -> Tensor:
        """Keys [H_kv, used, d] in a decoder layer's cache."""
        return self.cache.layers[index].keys[0, :, : self.ledgers[index].used].to(self.model.device)

    def _drops(self, index: int) -> bool:
        return "drop" in self.moments and self.reducer.drops(index)

    def _at_once(self, hidden: Tensor, angles: Tensor) -> Tensor | None:
        """The logits [V] behind a prompt that goes through all layers as it is, where a captured graph reads it."""
        through = not self.per_head and not any(self._drops(i) for i in range(1, len(self.ledgers)))
        if not (self.prompts and through and self.prompts.reads(len(hidden))):
            return None
        read = self.prompts.read(hidden, angles, self.ledgers[0].slots)
        if read is None:
            return None
        logits, store = read
        for layer, states in zip(self.cache.layers, store, strict=True):
            layer.hold(*states)
        self.replayed.add("prefill")
        return logits

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

    def _score_heads(self, index: int, run, clock):
        """Entries receive the attention of the prompt's queries, or of its last `window`, each head for itself."""
        clock.lap("prefill")
        layer, ledger = self.cache.layers[index], self.ledgers[index]
        window = self.reducer.window if self.scores_with == "window" else ledger.used
        rows = torch.arange(ledger.used, device=ledger.position.device)[-window:]
        received = sum(run.attention(part).sum(1) for part in rows.split(256))  # [H, T]
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
