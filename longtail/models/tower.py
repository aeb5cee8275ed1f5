"""CLIP's vision tower, layer by layer, up to the one LLaVA reads: what is captured on the way, and what is trimmed."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..tokens import Reduced, TowerLayer, TowerView, VisualTokens, tower_layer


@dataclass(frozen=True, eq=False)
class Passed:
    """What the tower made of one view: the states [1+N, D] that LLaVA reads, CLS first, and the layers captured."""

    states: Tensor
    layers: dict[int, TowerLayer]
    trimmed: Reduced | None = None


class Tower:
    """A CLIP vision model; `feature_layer` is the layer whose input LLaVA reads."""

    def __init__(self, model, feature_layer: int):
        self.model, self.blocks, self.feature_layer = model, model.encoder.layers, feature_layer

    def run(
        self, pixels: Tensor, standing: list[Tensor], layers: tuple[int, ...], between: Callable | None, looks=None
    ) -> list[Passed]:
        """Views [V, 3, S, S] in one batch; of each, the patches `standing` [N] are told. `between` runs before each
        layer. Patches that do not stand take part in attention as ever, and are seen by nobody else. `looks`, a
        `graph.Looks`, passes through all layers at once where it can."""
        wanted = tuple(sorted({self.feature_layer, *(tower_layer(layer, len(self.blocks)) for layer in layers)}))
        entering = looks and looks.through(pixels, wanted)
        states = dict(zip(wanted, entering or self.through(pixels, wanted, between), strict=True))
        return [self._passed({i: _only(states[i][v], told) for i in wanted}, layers) for v, told in enumerate(standing)]

    def _passed(self, states: dict[int, Tensor], layers: tuple[int, ...]) -> Passed:
        """Of one view: the states [1+N, D] entering each layer that somebody reads."""
        captured = {n: self._capture(i, here[None]) for i, here in states.items() for n in self._named(i, layers)}
        return Passed(states[self.feature_layer], captured)

    def through(self, pixels: Tensor, wanted: tuple[int, ...], between: Callable | None = None) -> list[Tensor]:
        """The states [V, 1+N, D] entering each of the layers `wanted`, ascending; the last of them is never run."""
        hidden, entering = self._embed(pixels), []
        for i in range(wanted[-1] + 1):
            if i in wanted:
                entering.append(hidden)
            if i < wanted[-1]:
                if between:
                    between()
                hidden = self.blocks[i](hidden, attention_mask=None)
        return entering

    def trim(
        self,
        pixels: Tensor,
        standing: Tensor,
        grid: tuple[int, int],
        layers: tuple[int, ...],
        between: Callable | None,
        trim: Callable,
        proportional: bool,
    ) -> Passed:
        """One view [1, 3, S, S] with `trim` entering each layer and between its attention and its MLP, `proportional`
        attention to what it merged. It meets the patches `standing` [N] alone; the others go along behind them."""
        hidden, captured = self._embed(pixels), {}
        if spare := hidden.shape[1] - 1 - len(standing):
            others = torch.ones(hidden.shape[1], dtype=torch.bool)
            others[torch.cat([standing.new_zeros(1), standing + 1])] = False
            hidden = hidden[:, torch.cat([standing.new_zeros(1), standing + 1, others.nonzero().flatten()])]
        meeting = _Trim(self, trim, proportional, grid, spare)
        for i in range(self._last(layers) + 1):
            captured |= {n: self._capture(i, meeting.met(hidden)) for n in self._named(i, layers)}
            if i == self.feature_layer:
                read = meeting.met(hidden)[0]
            if i < self._last(layers):
                if between:
                    between()
                acts = i < self.feature_layer
                hidden = meeting.block(i, hidden) if acts else self.blocks[i](hidden, attention_mask=None)
        return Passed(read, captured, meeting.reduced)

    def _embed(self, pixels) -> Tensor:
        return self.model.pre_layrnorm(self.model.embeddings(pixels))  # [V, 1+N, D]

    def _last(self, layers) -> int:
        return max([self.feature_layer, *(tower_layer(layer, len(self.blocks)) for layer in layers)])

    def _named(self, i, layers) -> list[int]:
        """Which of `layers`, counted of 24, are layer `i`."""
        return [n for n in layers if tower_layer(n, len(self.blocks)) == i]

    def _capture(self, i, hidden) -> TowerLayer:
        """What layer `i` reads and makes of it; behind the last layer, its output alone."""
        if i == len(self.blocks):
            return TowerLayer(hidden[0], hidden[0, :0], hidden[0, :0], self.blocks[-1].self_attn.num_heads)
        attention, normed = self.blocks[i].self_attn, self.blocks[i].layer_norm1(hidden)
        query, key = attention.q_proj(normed[:, :1])[0], attention.k_proj(normed)[0]
        return TowerLayer(hidden[0], query, key, attention.num_heads)


@dataclass
class _Trim:
    """One view's meetings with a reducer's `trim`; `reduced` is what became of its patches so far."""

    tower: Tower
    trim: Callable
    proportional: bool
    grid: tuple[int, int]
    spare: int  # patches behind the others, which it does not meet
    reduced: Reduced | None = None

    def met(self, hidden: Tensor) -> Tensor:
        """The states without those behind."""
        return hidden[:, : hidden.shape[1] - self.spare]

    def block(self, i: int, hidden: Tensor) -> Tensor:
        """One layer, with `trim` entering it and between its attention and its MLP."""
        block = self.tower.blocks[i]
        entered = self._meet("entering", i, hidden, hidden, None)
        bias = self._log_size(entered) if self.proportional and self.reduced else None
        hidden = entered + block.self_attn(block.layer_norm1(entered), attention_mask=bias)[0]
        hidden = self._meet("between", i, hidden, entered, bias)
        return hidden + block.mlp(block.layer_norm2(hidden))

    def _meet(self, place: str, i: int, hidden: Tensor, read: Tensor, bias: Tensor | None) -> Tensor:
        """What `trim` makes of the states `hidden`, in or before the layer that reads `read`."""
        block, met = self.tower.blocks[i], self.met(hidden)
        view = TowerView(
            index=i,
            depth=len(self.tower.blocks),
            running=self.tower.feature_layer,
            place=place,
            visual=VisualTokens(met[0, 1:], met[0, 0], self.grid),
            read=lambda: self.tower._capture(i, self.met(read)),
            value=lambda: block.self_attn.v_proj(block.layer_norm1(self.met(read)))[0],
            attention=lambda rows: _attention(block, read, rows, bias)[..., : self.met(read).shape[1]],
            before=self.reduced,
        )
        reduced = self.trim(view)
        if reduced is None:
            return hidden
        self.reduced = reduced if self.reduced is None else self.reduced.then(reduced)
        return torch.cat([hidden[:, :1], reduced.features[None], hidden[:, met.shape[1] :]], dim=1)

    def _log_size(self, hidden: Tensor) -> Tensor:
        """Additive attention bias [1, 1, 1, 1+N]: log of the patches each token speaks for; CLS and others are one."""
        size = functional.pad(self.reduced.size(), (1, self.spare), value=1.0)
        return size.log().to(hidden)[None, None, None]


def _only(states: Tensor, patches: Tensor) -> Tensor:
    """CLS and those patches of the states [1+N, D]."""
    if len(patches) == len(states) - 1:
        return states
    return states[torch.cat([patches.new_zeros(1), patches + 1]).to(states.device)]


def _attention(block, hidden: Tensor, rows: Tensor, bias: Tensor | None) -> Tensor:
    """Attention weights [H, R, 1+N] of a tower layer's query rows, float32, recomputed for those rows only."""
    attention, normed = block.self_attn, block.layer_norm1(hidden)[0]
    query = attention.q_proj(normed[rows]).view(len(rows), attention.num_heads, -1).transpose(0, 1)
    key = attention.k_proj(normed).view(len(normed), attention.num_heads, -1).permute(1, 2, 0)
    logits = (query @ key).float() * attention.scale
    return (logits if bias is None else logits + bias[0].float()).softmax(-1)
