"""Several answers through the language model at once: one matrix for the weights, each answer's own slots to attend to.

The positions of all answers stand one behind another, so every projection reads its weights once for all of them;
attention alone goes answer by answer, over the keys that answer holds. Nothing is padded, at prefill or in decode, and
nothing is copied together: an answer joins or leaves between two steps, its cache and its ledgers are its own.
"""

from collections.abc import Callable, Generator

import torch
from torch import Tensor

from .clock import Halted
from .decoder import Decoder
from .models.memory import OutOfMemory

Result = Tensor | ValueError | Halted | OutOfMemory


def attempt(work: Callable, *arguments):
    """What comes of it, or the ValueError, Halted or OutOfMemory that ended it."""
    try:
        return work(*arguments)
    except (ValueError, Halted, OutOfMemory) as reason:
        return reason


def prefill(model, rows: list[Decoder], ways: list[Generator]) -> list[Result]:
    """Read the prompts of several answers, `ways` their `Decoder.prefilling`: the logits [V] of each, or what ended it.

    A reducer that drops entries inside the language model drops its own; the others never see it.
    """
    states, ended = dict.fromkeys(range(len(rows))), {}
    for index in range(len(model.decoder_layers)):
        entering = {row: attempt(ways[row].send, hidden) for row, hidden in states.items()}
        ended |= {row: reason for row, reason in entering.items() if isinstance(reason, Exception)}
        entering = {row: way for row, way in entering.items() if row not in ended}
        states = _prefill_layer(model, index, [rows[row] for row in entering], entering) if entering else {}
    ended |= {row: attempt(_end, ways[row], hidden) for row, hidden in states.items()}
    return [ended[row] for row in range(len(rows))]


def _end(way: Generator, hidden: Tensor) -> Tensor:
    """The logits that a prefill returns once it has the states behind the last layer."""
    try:
        way.send(hidden)
    except StopIteration as read:
        return read.value


def step(model, rows: list[Decoder], tokens: Tensor) -> list[Result]:
    """Read one more token id of each answer [B]: the logits [V] of each, or what ended it."""
    return evicted(rows, read(model, rows, tokens))


def evicted(rows: list[Decoder], logits: Tensor) -> list[Result]:
    """What each reducer gives up behind a step: the answers' own logits [V], or what ended one."""
    return [attempt(row.evict) or own for row, own in zip(rows, logits, strict=True)]


def read(model, rows: list[Decoder], tokens: Tensor) -> Tensor:
    """A step without what is given up after it, logits [B, V]: nothing in it asks the host or waits."""
    hidden, waves = model.embed(tokens), {}  # [B, D]
    placed = [_place(row, newcomer) for row, newcomer in zip(rows, hidden.split(1), strict=True)]
    for index in range(len(model.decoder_layers)):
        own = [told[id(row.ledgers[index])] for row, told in zip(rows, placed, strict=True)]
        places, angles, masks = zip(*own, strict=True)
        if places not in waves:
            waves[places] = model.rotary(hidden, torch.cat(angles))
        hidden = _decode_layer(model, index, rows, hidden, waves[places], masks)
    return model.logits(hidden)


def _prefill_layer(model, index: int, rows: list[Decoder], entering: dict) -> dict[int, Tensor]:
    """What comes out of a decoder layer, by row: `entering` holds the layer, the states [T, D] of each and their rotary
    embedding.

    A prompt stands first in its cache, so no mask means causal, as it is alone.
    """
    _, hidden, waves = zip(*entering.values(), strict=True)
    sizes = [len(states) for states in hidden]
    rotary = [torch.cat(wave, dim=1) for wave in zip(*waves, strict=True)]

    def attend(*states):
        return _attend(model, index, rows, [None] * len(rows), sizes, states)

    out = model.decode_together(model.decoder_layers[index], torch.cat(hidden), rotary, attend)
    return dict(zip(entering, out.split(sizes), strict=True))


def _decode_layer(model, index: int, rows: list[Decoder], hidden: Tensor, rotary, masks) -> Tensor:
    """One decoder layer over the newcomers [B, D]; entries that are scored with attention receive theirs."""

    def attend(*states):
        read = _attend(model, index, rows, masks, [1] * len(rows), states)
        for row, query in zip(rows, states[0].split(1, dim=2), strict=True):
            if row.scores_with == "attention":
                ledger = row.ledgers[index]
                keys = row.cache.layers[index].keys[0, :, : ledger.used]
                ledger.receive(query[0].to(model.device), keys.to(model.device))
        return read

    return model.decode_together(model.decoder_layers[index], hidden, rotary, attend)


def _attend(model, index: int, rows: list[Decoder], masks, sizes: list[int], states: tuple[Tensor, ...]) -> Tensor:
    """Attention [1, N, H, d] of `states` (queries, keys, values), `sizes` of them each answer's, to its own entries."""
    read = []
    for row, mask, query, *newcomers in zip(rows, masks, *(each.split(sizes, 2) for each in states), strict=True):
        keys, values = row.cache.update(*newcomers, index)
        mask = mask if mask is None else mask.to(query.device)
        read.append(model.attention(model.decoder_layers[index], query, keys, values, mask))
    return torch.cat(read, dim=1)


def _place(row: Decoder, hidden: Tensor) -> dict[int, tuple[int, Tensor, Tensor | None]]:
    """Give the newcomer [1, D] a slot in each of an answer's ledgers: its rotary position there, known to the host and
    on the device [1], and the mask."""
    told = {}
    for ledger in row.distinct():
        place = ledger.seen - ledger.shift, ledger.following - ledger.shift
        ledger.place(hidden)
        told[id(ledger)] = *place, ledger.mask(row.model.heads)
    return told
