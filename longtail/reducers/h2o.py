from dataclasses import dataclass
from math import floor

from ..reducer import Reducer, param, register


@register
@dataclass(frozen=True)
class H2O(Reducer):
    """Holds each head's KV cache at the entries that received most attention and the most recent ones.

    Heavy-Hitter Oracle (NeurIPS 2023). In every layer and head an entry's score is the sum of the attention weights
    that all queries so far gave it, in float32. Behind the prompt, and again behind each token, the lowest outside the
    last `recent` leave until heavy + recent remain. The budgets are shares of the prompt's length, both 0.1, as in the
    released masks (`utils_hh`), but entries are really dropped, after they were attended to, as in its
    `utils_real_drop`, and positions stay true. The paper's greedy oracle is the same rule, step by step. Heads that
    share keys share the mean of their weights. A budget counts the visual tokens' worth: as many entries as a prompt
    with that many visual tokens would have; the prompt itself is read whole, so `tokens.layer_mean` stays at all
    patches.
    """

    paper = "https://arxiv.org/abs/2306.14048"
    scores_with = "attention"
    heavy: float = param(0.1, 0, 1, 0.05, "share of the prompt's length for entries that received most attention")
    recent: float = param(0.1, 0, 1, 0.05, "share of the prompt's length for the newest entries")
    budget: int = param(0, 0, 576, 1, "entries left beside those of the text, split evenly; 0: the shares decide")

    def evict(self, cache):
        heavy, recent = self._budgets(cache)
        surplus = cache.count - heavy - recent
        if surplus <= 0:
            return None
        return cache.lowest(surplus, (cache.position >= 0) & ~cache.recent(recent))

    def _budgets(self, cache):
        """Heavy and recent entries of each head; at least the token being read."""
        if self.budget:
            whole = min(cache.across(self.budget) + cache.text, cache.prompt)
            return whole // 2, whole - whole // 2
        return floor(self.heavy * cache.prompt), max(floor(self.recent * cache.prompt), 1)
