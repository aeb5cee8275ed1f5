"""What `bench` races: our forms against the plain ones of `published`, from the same seeded tensors."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle

import torch
from torch import Tensor
from torch.nn import functional

from ..cache import HeadLedger, Ledger, SlotLayer
from ..reducers.divprune import farthest
from ..reducers.fastv import rank
from ..reducers.h2o import H2O
from ..reducers.longtail import LongTail
from ..reducers.prumerge import PruMerge
from ..reducers.prumergeplus import PruMergePlus
from ..reducers.recoverable import PROJECTION, Recoverable
from ..reducers.tome import ToMe
from ..reducers.visionzip import VisionZip
from ..similarity import cosines, top
from ..tokens import CacheView, TowerView
from . import published
from .race import HEADS, Conditions, Race
from .synthetic import Inputs

LLM_HEADS, HEAD_WIDTH, TEXT = 32, 128, 60  # of the language model; text tokens of a prompt
TOWER = "queries, keys and features of the tower"
OWN = {"cpu": {"ms": 0.2}, "cuda": {"ms": 0.15, "kernels": 20, "synchronisations": 1}}  # what our selector may take
STEPS = 150  # decoded tokens over which the two caches must agree


def selectors(conditions: Conditions) -> list[Race]:
    """`bench selectors`: every selection whose released code has a plain form."""
    c = conditions
    inputs = Inputs(c.patches, c.width, c.seed, c.device, torch.float32, HEADS)
    return [
        race(inputs)
        for race in (
            _longtail,
            _prumerge,
            _prumerge_plus,
            _recoverable,
            _fastv,
            _h2o,
            _h2o_attending,
            _divprune,
            _visionzip,
            _tome,
        )
    ]


def _longtail(inputs: Inputs) -> Race:
    visual, reducer = inputs.visual(), LongTail()

    def plain():
        return published.longtail(inputs.query, inputs.key, visual.features, reducer.alpha)

    given = f"{TOWER}; ours: one row of weights; plain, for nothing was released: the whole map, the knee in a loop"
    ours = lambda: reducer.reduce(visual).features  # noqa: E731
    return Race("LongTail stage 1", None, given, _tokens(plain), plain, ours, most=OWN)


def _prumerge(inputs: Inputs) -> Race:
    visual = inputs.visual()

    def plain():
        return published.prumerge(inputs.query, inputs.key, visual.features)

    return Race("PruMerge", 10, TOWER, _tokens(plain), plain, lambda: PruMerge().reduce(visual).features)


def _prumerge_plus(inputs: Inputs) -> Race:
    visual = inputs.visual()

    def plain():
        return published.prumerge_plus(inputs.query, inputs.key, visual.features)

    return Race("PruMergePlus", 20, TOWER, _tokens(plain), plain, lambda: PruMergePlus().reduce(visual).features)


def _recoverable(inputs: Inputs) -> Race:
    cosine = (0.2 + inputs.draw(inputs.n) ** 3 / 100).clamp(-1, 1)  # long tails: some stand out
    visual, reducer = inputs.visual(cosine), Recoverable(variant="released")

    def plain():
        return published.recoverable(inputs.query, inputs.key, visual.features, cosine / PROJECTION)

    given = f"{TOWER}, text similarities"
    return Race("Recoverable", 5, given, _tokens(plain), plain, lambda: reducer.reduce(visual).features)


def _fastv(inputs: Inputs) -> Race:
    length, first, count = inputs.n + TEXT, TEXT // 2, inputs.n // 2
    attention = inputs.draw(LLM_HEADS, length, length).softmax(-1)
    last = torch.tensor([length - 1], device=inputs.device)
    layer = Given(lambda rows: attention[:, rows])

    def ours():
        return top(rank(layer, last)[first : first + inputs.n], count)

    def plain():
        return published.fastv(attention, first, inputs.n, count)

    return Race("FastV rank", 8, "a layer's attention maps", f"{count} tokens", plain, ours)


@dataclass(frozen=True)
class Given:
    """A decoder layer whose attention is there already."""

    attention: Callable[[Tensor], Tensor]


def _h2o(inputs: Inputs) -> Race:
    plain, ours, stream, size = _caches(inputs)

    def published_step():
        _, key, value = next(stream[0])
        plain.enter(key, value)
        plain.leave(plain.key[:, :, None, :, 0].abs())

    def our_step():
        _, key, value = next(stream[1])
        keys, _ = ours.enter(key, value)
        ours.ledger.score[:, : ours.ledger.used] += keys[0, :, :, 0].abs()
        ours.leave()

    given = "one layer's cache and a newcomer; weights given, as the keys' first channel: enter, score, leave"
    return Race("H2O step", 4.5, given, size, published_step, our_step, STEPS, (plain.held, ours.held))


def _h2o_attending(inputs: Inputs) -> Race:
    plain, ours, stream, size = _caches(inputs)

    def published_step():
        query, key, value = next(stream[0])
        plain.enter(key, value)
        weights, seen = plain.attend(query)
        plain.leave(weights)
        return seen

    def our_step():
        query, key, value = next(stream[1])
        keys, values = ours.enter(key, value)
        seen = functional.scaled_dot_product_attention(query, keys, values, attn_mask=ours.mask)
        ours.ledger.receive(query[0], keys[0])
        ours.leave()
        return seen

    given = "the same; one whole step: enter, attend (ours: SDPA, and one row of weights again), score, leave"
    return Race("H2O step, attending", None, given, size, published_step, our_step, STEPS)


def _caches(inputs: Inputs):
    """The same full cache in both forms, the same tokens to come for each, and how much it holds."""
    budget = inputs.share(127)
    entries, size = budget + TEXT, f"{budget + TEXT} entries a head"
    key, value = (inputs.draw(1, LLM_HEADS, entries, HEAD_WIDTH) for _ in range(2))
    score, tokens = inputs.draw(LLM_HEADS, entries).abs(), inputs.draw(64, 3, 1, LLM_HEADS, 1, HEAD_WIDTH)
    plain = published.H2O(key, value, score, entries // 2, entries - entries // 2)
    ours = Slots(H2O(budget=budget), key, value, score, inputs.n + TEXT)
    return plain, ours, (cycle(tokens), cycle(tokens)), size


class Slots:
    """One decoder layer's cache as `decoder` runs it: a newcomer overwrites the slot that was given up."""

    def __init__(self, reducer: H2O, key: Tensor, value: Tensor, score: Tensor, prompt: int):
        shared = Ledger(key[0, 0], key.shape[2] + 1, None)
        self.reducer, self.prompt, self.ledger = reducer, prompt, HeadLedger(shared, score)
        self.layer, self.mask = SlotLayer(self.ledger), None
        self.layer.update(key, value)

    def enter(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """A newcomer [1, H, 1, d]; returns all keys and values."""
        self.ledger.place(key)
        self.mask = self.ledger.mask(LLM_HEADS)
        return self.layer.update(key, value)

    def leave(self):
        """The reducer's choice goes."""
        ledger = self.ledger
        position, score = ledger.position[:, : ledger.used], ledger.score[:, : ledger.used]
        lengths = {"seen": ledger.seen, "prompt": self.prompt, "unpruned": self.prompt, "text": TEXT}
        lengths["views"] = (self.prompt - TEXT,)
        ledger.give_up(self.reducer.evict(CacheView(0, ledger.count, position, position, score, **lengths)))

    def held(self) -> Tensor:
        """What is in the cache, in order of arrival."""
        order = self.ledger.position.argsort(dim=1)[:, -self.ledger.count :, None].expand(-1, -1, HEAD_WIDTH)
        return torch.stack([self.layer.keys[0].gather(1, order), self.layer.values[0].gather(1, order)])


def _divprune(inputs: Inputs) -> Race:
    distance, count = 1 - cosines(inputs.hidden[1:]), inputs.share(127)

    def plain():
        return published.divprune(distance, count)

    def ours():
        return torch.from_numpy(farthest(distance.cpu().numpy(), count)).to(distance.device)

    return Race("DivPrune selection", 4, "distances of all patches", f"{count} tokens", plain, ours)


def _visionzip(inputs: Inputs) -> Race:
    dominant, contextual = inputs.share(108), inputs.share(20)
    visual, reducer = inputs.visual(), VisionZip(dominant=dominant, contextual=contextual)
    query, key = (x.view(1 + inputs.n, HEADS, -1).transpose(0, 1) for x in (inputs.query, inputs.key))
    maps = (query @ key.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(-1)

    def plain():
        return published.visionzip(maps, inputs.hidden, inputs.key, dominant, contextual)

    given = "states and keys; the published form also has the attention maps, ours the CLS query"
    return Race("VisionZip", 3, given, _tokens(plain), plain, lambda: reducer.reduce(visual).features)


def _tome(inputs: Inputs) -> Race:
    r, visual = inputs.n // 2, inputs.visual()
    reducer, nothing = ToMe(r=r), torch.zeros(0)
    tower = TowerView(0, 24, "between", visual, lambda: inputs.layer, lambda: nothing, lambda rows: nothing, 23)

    def plain():
        return published.tome(inputs.hidden, inputs.key, HEADS, r)[1:]  # CLS apart

    given = "states and keys of a tower layer"
    return Race("ToMe", 1.3, given, _tokens(plain), plain, lambda: reducer.trim(tower).features)


def _tokens(form: Callable[[], Tensor]) -> str:
    return f"{len(form())} tokens"
