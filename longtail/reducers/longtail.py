from dataclasses import dataclass
from math import floor

import torch

from ..reducer import Reducer, param, register
from ..similarity import READINGS, kept, long_tail
from ..tokens import SIMILARITIES, Reduced, lowest


@register
@dataclass(frozen=True)
class LongTail(Reducer):
    """Cuts the long tail of CLS similarity at its knee, then holds the KV cache at a heavy + recent budget.

    Sparsity Meets Similarity. Stage 1 (section 3.2): the CLS-to-patch similarities of tower layer 16, sorted, are split
    at i* = argmax (n-i)(d1-di)/(d1-dn). The paper prints alpha i* as what is kept, at most 70 of 576 on a convex curve;
    its own counts (about 134) come out of floor(alpha (n - i*)), the default `reading`. It does not say whether tokens
    leave inside the tower or after it: `cut` has both, and gathers afterwards by default. Raster order is ours.

    Stage 2 (section 3.3): heavy + recent entries, frozen at the prompt's length, stay in the cache. The score of an
    entry is the embedding similarity it received from later tokens; the lowest outside the recent part leaves every
    layer. At 0.5 + 0.5 nothing of an even prompt is dropped, one entry of an odd one; each decoded token then evicts
    one. Positions stay true.
    """

    paper = "https://arxiv.org/abs/2409.01162"
    scores_with = "embeddings"

    alpha: float = param(0.24, 0.01, 1, 0.01, "scales what is kept (for the reading head it may exceed 1)")
    reading: str = param("tail", choices=READINGS, help="what alpha multiplies: n - i*, i*, or the similarity at i*")
    similarity: str = param("attention", choices=SIMILARITIES, help="how CLS and a patch are compared")
    layer: int = param(16, 0, 23, 1, "tower layer that scores, of 24")
    cut: str = param("gather", choices=("gather", "in_tower"), help="prune after the tower, or entering the layer")
    visual_stage: bool = param(True, help="stage 1: prune visual tokens by the curve")
    text_stage: bool = param(True, help="stage 2: hold the KV cache at heavy + recent entries")
    heavy: float = param(0.5, 0, 1, 0.05, "share of the budget for entries that received most similarity")
    recent: float = param(0.5, 0, 1, 0.05, "share of the budget for the newest entries")
    budget_of: str = param("prompt", choices=("prompt", "unpruned"), help="length that heavy and recent multiply")
    protect_first: bool = param(False, help="never give up the first entry (attention sink)")
    budget: int = param(0, 0, 576, 1, "visual tokens kept, whatever alpha says; 0: alpha and the knee decide")

    @classmethod
    def limits(cls, name, **values):
        return (0.01, 1000) if name == "alpha" and values.get("reading") == "head" else super().limits(name)

    def explain(self, similarity, knee):
        n, a = len(similarity), f"{self.alpha:g}"
        formulas = {
            "tail": ("the long tail, as the paper counts", f"floor({a} x ({n} - {knee}))"),
            "head": ("the head, as the formula is printed", f"ceil({a} x {knee})"),
            "threshold": ("every patch similar enough", f"d >= {a} x {similarity[knee - 1]:.3g}"),
        }
        return [
            (
                f"{reading}{' (set)' * (reading == self.reading)}: {words}",
                formula,
                kept(similarity, knee, self.alpha, reading),
            )
            for reading, (words, formula) in formulas.items()
        ]

    def active(self):
        first = ("trim",) if self.cut == "in_tower" else ("reduce",)
        return (first if self.visual_stage else ()) + (("drop", "evict") if self.text_stage else ())

    def layers_read(self):
        return (self.layer,) if "reduce" in self.active() else ()

    def trim(self, tower):
        if "trim" in self.active() and tower.entering(self.layer):
            return self._cut(tower.visual, tower.read())

    def reduce(self, visual):
        if "reduce" not in self.active():
            return super().reduce(visual)
        return self._cut(visual, visual.layer(self.layer))

    def drops(self, layer):
        return layer == 0

    def drop(self, prefill):
        heavy, recent = self._budgets(prefill.prompt, prefill.unpruned)
        surplus = prefill.prompt - heavy - recent
        if not self.text_stage or prefill.layer > 0 or surplus <= 0:
            return None
        position = torch.arange(prefill.prompt, device=prefill.hidden.device)
        settled = position < prefill.prompt - recent
        stay = torch.ones_like(settled)
        stay[lowest(prefill.score, self._open(settled, position), position, surplus)] = False
        return stay.nonzero().flatten()

    def evict(self, cache):
        heavy, recent = self._budgets(cache.prompt, cache.unpruned)
        surplus = cache.count - heavy - recent
        if not self.text_stage or surplus <= 0:
            return None
        settled = (cache.position >= 0) & ~cache.recent(recent)
        return cache.lowest(surplus, self._open(settled, cache.position))

    def slots(self, prompt, unpruned, new):
        budget = sum(self._budgets(prompt, unpruned)) + 1  # + 1: the newcomer is seen before one leaves
        return min(prompt + new, budget) if self.text_stage else prompt + new

    def _cut(self, visual, layer):
        curve = long_tail(layer.similarity(self.similarity), self.alpha, self.reading, self.budget)
        return Reduced.select(visual, curve.keep, curve)

    def _budgets(self, prompt, unpruned):
        """Heavy and recent entries; at least the protected first one and the token being read."""
        length = prompt if self.budget_of == "prompt" else unpruned
        return max(floor(self.heavy * length), int(self.protect_first)), max(floor(self.recent * length), 1)

    def _open(self, settled, position):
        """The entries that may go: the settled ones, less the first where it is protected."""
        return settled & (position > 0) if self.protect_first else settled
