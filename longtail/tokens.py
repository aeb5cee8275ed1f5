"""What reducers see and what they return. Plain tensors of one image view and one prompt; no model, no batch axis.

Shapes: N patches on a grid in raster order, M survivors, D channels, H heads, T positions, L question tokens.
Bookkeeping (`keep`, `source`, `role`) lives on the host, features stay on the model's device.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

SIMILARITIES = ("attention", "attention_heads", "hidden", "cosine")
ROLES = ("kept", "recovered", "merged", "dropped")


@dataclass(frozen=True, eq=False)
class TowerLayer:
    """What a layer of the vision tower reads (`hidden`, CLS first) and the CLS query and all keys it makes of it."""

    hidden: Tensor  # [1+N, D]
    query: Tensor  # [1, D], after the layer's first norm, bias included, unscaled, heads concatenated
    key: Tensor  # [1+N, D]
    heads: int

    def similarity(self, kind: str) -> Tensor:
        """CLS-to-patch similarity [N], float32.

        `attention` (main paper, eq. 1): softmax over the 1+N keys at full width, CLS column cut, not renormalised;
        `attention_heads`: the same per head, averaged; `hidden`: softmax of the dot products of the states; `cosine`.
        Raises ValueError for any other kind.
        """
        if kind not in SIMILARITIES:
            raise ValueError(f"similarity must be one of {', '.join(SIMILARITIES)}, got {kind!r}")
        if kind.startswith("attention"):
            return self._attention(1 if kind == "attention" else self.heads)
        hidden = self.hidden.float()
        if kind == "cosine":
            return functional.cosine_similarity(hidden[:1], hidden[1:], dim=-1)
        return (hidden[1:] @ hidden[0] / hidden.shape[-1] ** 0.5).softmax(-1)

    def _attention(self, heads: int) -> Tensor:
        query = self.query.float().view(heads, 1, -1)  # [H, 1, D/H]
        key = self.key.float().view(len(self.key), heads, -1).permute(1, 2, 0)  # [H, D/H, 1+N]
        return (query @ key / query.shape[-1] ** 0.5).softmax(-1).mean(0)[0, 1:]


@dataclass(frozen=True, eq=False)
class Question:
    """The question beside the image: token ids [L], embeddings [L, D_llm] and, with a CLIP text tower, its view."""

    ids: Tensor
    embeddings: Tensor
    clip: Callable[["VisualTokens"], Tensor] | None = None

    def relevance(self, visual: "VisualTokens") -> Tensor:
        """CLIP cosine of the question and each patch [N], raw sign. Raises ValueError without a CLIP text tower."""
        if self.clip is None:
            raise ValueError(
                "this model has no CLIP text tower, so text-guided methods cannot run: "
                "use the bundled model (tiny) or a model folder with a clip/ folder inside"
            )
        return self.clip(visual)


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """What the vision tower made of one image view: the features [N, D] that the projector reads, CLS removed."""

    features: Tensor  # [N, D]
    cls: Tensor  # [D]
    grid: tuple[int, int]  # rows, columns
    layers: Mapping[int, TowerLayer] = field(default_factory=dict)
    project: Callable[[Tensor], Tensor] = lambda x: x  # vision space -> language space
    question: Question | None = None
    preamble: Question | None = None  # the text before the image, which never holds the question
    box: tuple[float, float, float, float] = (0, 0, 1, 1)  # left, top, width, height of this view in the model's crop
    region: tuple[float, float, float, float] = (0, 0, 1, 1)  # of the image that this view shows
    tile: tuple[int, int] = (0, 0)  # its number, from 1, among how many tiles; 0: the whole image
    views: tuple[int, ...] = ()  # patches of every view of the image
    first: int = 0  # its first patch, counted through all views
    whole: "VisualTokens | None" = None  # the view of the whole image, where this is a tile of it

    def layer(self, index: int) -> TowerLayer:
        """Tower layer `index`, counted as in a 24-layer tower. Raises ValueError unless `layers_read()` named it."""
        if index not in self.layers:
            read = ", ".join(map(str, sorted(self.layers))) or "none"
            raise ValueError(f"tower layer {index} was not captured (captured: {read}): name it in layers_read()")
        return self.layers[index]

    def relevance(self) -> Tensor:
        """CLIP cosine of the question and each patch [N], raw sign. Raises ValueError where no question was asked."""
        if self.question is None:
            raise ValueError("this method is guided by the question, and none came with these visual tokens")
        return self.question.relevance(self)


@dataclass(frozen=True, eq=False)
class Curve:
    """Descending similarities d [n], objective f [n-1], knee i* (1-based; main paper, eq. 2-3), and the count kept."""

    order: np.ndarray  # patch of each rank
    similarity: np.ndarray  # float64
    objective: np.ndarray  # float64; f(i) is objective[i - 1]
    knee: int
    kept: int

    def record(self) -> dict:
        """Plain JSON values."""
        return {"knee": self.knee, "kept": self.kept, "similarity": self.similarity.tolist()}

    @property
    def keep(self) -> Tensor:
        """The patches [kept] of the highest similarity, most similar first."""
        return torch.from_numpy(self.order[: self.kept])


@dataclass(frozen=True, eq=False)
class Reduced:
    """What became of the patches: the survivors and who speaks for each patch. Every picture is drawn from this."""

    features: Tensor  # [M, D]
    keep: Tensor  # [M] patch each token stands on, -1 for a token that stands on none
    source: Tensor  # [N] index into M of the token that speaks for the patch, -1 where it was dropped
    role: np.ndarray  # [N] of ROLES
    curve: Curve | None = None

    @classmethod
    def select(cls, visual: VisualTokens, keep: Tensor, curve: Curve | None = None) -> "Reduced":
        """Pure pruning: `keep` holds patch indices in any order; the survivors come back in raster order."""
        stays = np.sort(keep.detach().to("cpu", torch.long).numpy())
        source = np.full(len(visual.features), -1)
        source[stays] = np.arange(len(stays))
        role = np.where(source < 0, "dropped", "kept")
        keep, source = torch.from_numpy(stays), torch.from_numpy(source)
        here = keep.to(visual.features.device, non_blocking=True)  # the host has waited once already
        return cls(visual.features.index_select(0, here), keep, source, role, curve)

    @classmethod
    def merging(cls, features: Tensor, keep: Tensor, source: Tensor, curve: Curve | None = None) -> "Reduced":
        """Tokens [M, D] that speak for others too: patches of `keep` are kept, others with a `source` merged."""
        keep, source = keep.detach().to("cpu", torch.long), source.detach().to("cpu", torch.long)
        role = np.where(source.numpy() < 0, "dropped", "merged")
        role[keep[keep >= 0].numpy()] = "kept"
        return cls(features, keep, source, role, curve)

    def size(self) -> Tensor:
        """How many patches each token [M] speaks for, float32; 1 for one that speaks for none."""
        spoken = self.source[self.source >= 0]
        return torch.bincount(spoken, minlength=len(self.keep)).clamp_min(1).float()

    def then(self, later: "Reduced") -> "Reduced":
        """This reduction followed by `later`, which acted on these M tokens: told over the original N patches."""
        keep = torch.where(later.keep < 0, -1, self.keep[later.keep.clamp_min(0)])
        gone = self.source < 0
        token = self.source.clamp_min(0)
        source = torch.where(gone, -1, later.source[token])
        role = np.where(gone.numpy() | (later.role[token] == "kept"), self.role, later.role[token])
        return Reduced(later.features, keep, source, role, later.curve or self.curve)


@dataclass(frozen=True, eq=False)
class TowerView:
    """Moment 1: the tokens inside the vision tower, entering a layer or between its attention and its MLP."""

    index: int  # 0-based layer of this tower
    depth: int  # layers of this tower
    place: str  # "entering" or "between"
    visual: VisualTokens  # features: the states [N, D] here, CLS apart
    read: Callable[[], TowerLayer]  # the layer's CLS query and keys, computed when asked for
    value: Callable[[], Tensor]  # the layer's values [1+N, D], heads concatenated
    attention: Callable[[Tensor], Tensor]  # rows [R] (0: CLS) -> the layer's attention weights [H, R, 1+N], float32
    running: int  # layers that run, up to the one whose output LLaVA reads
    before: Reduced | None = None  # what became of the patches so far

    def entering(self, layer: int) -> bool:
        """Whether this is the door of the layer that a 24-layer tower counts as `layer`."""
        return self.place == "entering" and self.index == tower_layer(layer, self.depth)

    def between(self, *layers: int) -> int | None:
        """Which of `layers`, counted of 24, this is (the last of equals), between attention and MLP; else None."""
        here = [i for i, n in enumerate(layers) if tower_layer(n, self.depth) == self.index]
        return here[-1] if here and self.place == "between" else None

    @property
    def last(self) -> bool:
        """Whether no layer that LLaVA reads runs after this one."""
        return self.index == self.running - 1

    def size(self) -> Tensor:
        """How many patches each token [N] speaks for; 1 for one that speaks for none."""
        like = self.visual.features
        if self.before is None:
            return torch.ones(len(like), device=like.device)
        return self.before.size().to(like.device)


def tower_layer(layer: int, depth: int) -> int:
    """Index of `layer` of a 24-layer tower in a tower of `depth` layers: first stays first, the layer LLaVA reads (22)
    stays the last but one, the last (23) stays last; 24 is what would read the last one's output."""
    return depth if layer == 24 else layer * (depth - 1) // 23


@dataclass(frozen=True, eq=False)
class DecoderLayer:
    """A decoder layer over the T entries it reads: queries and keys, head by head, computed when asked for."""

    query: Callable[[Tensor, bool], Tensor]  # rows [R], rotated -> [H, R, d]
    key: Callable[[bool], Tensor]  # rotated -> [H_kv, T, d]

    def ran(self, keys: Tensor) -> "DecoderLayer":
        """This layer once it has run: its rotated `keys` [H_kv, T, d] are at hand."""
        return DecoderLayer(self.query, lambda rotated: keys if rotated else self.key(False))

    def logits(self, rows: Tensor, rotated: bool = True) -> Tensor:
        """Scaled q.k of those rows [H, R, T], float32, no mask; grouped queries share keys."""
        query, key = self.query(rows, rotated), self.key(rotated)
        key = key.repeat_interleave(query.shape[0] // key.shape[0], dim=0)
        return (query @ key.transpose(1, 2)).float() * query.shape[-1] ** -0.5

    def attention(self, rows: Tensor) -> Tensor:
        """Causal attention weights [H, R, T] of those rows, float32."""
        logits = self.logits(rows)
        later = torch.arange(logits.shape[-1], device=logits.device) > rows.to(logits.device)[:, None]
        return logits.masked_fill(later, -torch.inf).softmax(-1)


@dataclass(frozen=True, eq=False)
class Spliced:
    """A prompt as the language model reads it: text, and between it what stands for the image."""

    embeddings: Tensor  # [T, D]
    span: tuple[int, int]  # the image's first position and the one after its last, newlines between rows included
    positions: Tensor  # [M] of each visual token, view after view; on the host
    visual: Tensor  # [T] bool; newlines are none
    raster: Tensor  # [T, 2] row and column, in its view, of the patch each position stands on; -1 for none
    views: tuple[int, ...]  # patches of each view

    @property
    def count(self) -> int:
        """Visual tokens."""
        return len(self.positions)


@dataclass(frozen=True, eq=False)
class Prefill:
    """Moment 3: the prompt entering decoder layer `layer`."""

    layer: int  # 0-based
    depth: int  # layers of the language model
    hidden: Tensor  # [T, D]
    visual: Tensor  # [T] bool
    prompt: int  # length of the prompt that entered layer 0, before anything was dropped
    unpruned: int  # its length had every patch stayed
    text: int  # text tokens in it
    embeddings: Tensor  # [prompt, D] what entered layer 0
    span: tuple[int, int]  # where the image stood in it, newlines between rows included, which count as text
    views: tuple[int, ...]  # patches of each view of the image
    raster: Tensor  # [T, 2] row and column, in its view, of the patch each entry stands on; -1 for none
    score: Tensor | None  # [T] what each entry has received of what the reducer scores with
    this: DecoderLayer  # the layer entered
    last: DecoderLayer | None  # the layer just run, over the same T entries
    norm: Callable[[Tensor], Tensor]  # the language model's final norm

    def attention(self, rows: Tensor) -> Tensor:
        """Attention weights [H, R, T] of the layer entered, recomputed for those query rows [R] only."""
        return self.this.attention(rows)

    @property
    def entered(self) -> int:
        """Visual tokens that entered layer 0."""
        return self.prompt - self.text

    def across(self, budget: int) -> int:
        """Visual tokens of all views together where each may keep `budget`."""
        return across(self.views, budget)

    def behind(self) -> Tensor:
        """Rows (of the T here) of the text behind the image."""
        return torch.arange(len(self.hidden) - self.prompt + self.span[1], len(self.hidden), device=self.visual.device)

    def entering(self, *layers: int) -> int | None:
        """Which of `layers`, counted as in a 32-layer language model, this is the door of; None for none of them.

        Another depth answers with the layer at the same fraction, never the first, each later than the one before;
        where there are too few layers, the last door is that of the last of `layers`.
        """
        doors = [0]
        for layer in layers:
            doors.append(min(max(layer * self.depth // 32, doors[-1] + 1), self.depth - 1))
        here = [i for i, door in enumerate(doors[1:]) if door == self.layer]
        return here[-1] if here else None

    def best(self, score: Tensor, count: int) -> Tensor:
        """Positions, ascending, of all text and of the `count` visual entries of highest `score` [T]; ties: first."""
        visual = self.visual.nonzero().flatten()
        stay = ~self.visual
        stay[visual[score[visual].argsort(descending=True, stable=True)[:count]]] = True
        return stay.nonzero().flatten()

    def newest(self) -> Tensor:
        """The last row [1], the token whose next one is to be predicted."""
        return torch.tensor([len(self.hidden) - 1], device=self.hidden.device)


@dataclass(frozen=True, eq=False)
class Survivors:
    """What `drop` may return beside positions: entries that speak for others, or that are numbered anew."""

    keep: Tensor  # [T'] position (of the T that entered) on which each entry stands, in the order they go on
    hidden: Tensor | None = None  # [T', D] their states, where they are not those of `keep`
    speaks: Tensor | None = None  # [T] index into T' of the entry that speaks for each, -1 where it was dropped
    renumber: bool = False  # rotary positions start again from 0 without gaps; else they stay true


@dataclass(frozen=True, eq=False)
class CacheView:
    """Moment 4: the KV cache after a forward pass, slot by slot (S slots written so far).

    Where a reducer scores with attention there is one view a layer, and tensors are [H_kv, S]: each head its own.
    """

    layer: int  # first decoder layer of those that share these entries
    count: int  # live entries (of each head)
    position: Tensor  # [S] true position of the entry in each slot, -1 where the slot is free
    visual: Tensor  # [S] bool
    score: Tensor | None  # [S] received so far
    seen: int  # tokens read so far: the next one stands at this position
    prompt: int  # as in Prefill
    unpruned: int
    text: int
    views: tuple[int, ...]

    def across(self, budget: int) -> int:
        """As in Prefill."""
        return across(self.views, budget)

    def recent(self, count: int) -> Tensor:
        """Which slots [S] hold one of the last `count` tokens read."""
        return self.position >= self.seen - count

    def lowest(self, count: int, settled: Tensor) -> Tensor:
        """The `count` slots of the lowest score among the `settled` ones [S], the oldest first where scores tie."""
        return lowest(self.score, settled, self.position, count)


def across(views: tuple[int, ...], budget: int) -> int:
    """Tokens of all views of so many patches together, where each may keep `budget`."""
    return sum(min(budget, patches) for patches in views)


def lowest(score: Tensor, settled: Tensor, position: Tensor, count: int) -> Tensor:
    """Indices [..., count] of the lowest `score` [..., S] where `settled`; the earliest `position` first in a tie."""
    if count == 1:  # of each step of decoding: no need to sort
        score = score.masked_fill(~settled, torch.inf)
        tied = (score == score.amin(-1, keepdim=True)) & settled
        return position.masked_fill(~tied, torch.iinfo(position.dtype).max).argmin(-1, keepdim=True)
    age = position.argsort(dim=-1, stable=True)  # slots are not in order of arrival
    aged = score.masked_fill(~settled, torch.inf).gather(-1, age)
    return age.gather(-1, aged.argsort(dim=-1, stable=True)[..., :count])
