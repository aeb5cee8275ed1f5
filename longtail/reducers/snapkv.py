from dataclasses import dataclass

import torch
from torch.nn import functional

from ..reducer import Reducer, param, register
from ..tokens import lowest


@register
@dataclass(frozen=True)
class SnapKV(Reducer):
    """Compresses the prompt's KV cache once to what its last tokens look at, smoothed over neighbours, head by head.

    SnapKV (NeurIPS 2024). In every layer and head the attention of the prompt's last `window` queries is summed over
    the keys before the window and pooled (kernel 5); the best capacity - window of them stay, and the window.
    Positions stay true; nothing is evicted while decoding. The paper pools by maximum or mean depending on the task,
    the released default is the mean. Heads that share keys share the mean of their queries' weights, where the
    released code repeats keys and stores them once a query head. Released capacities (320, 2048) exceed LLaVA-1.5's
    prompt; 192 and a window of 32 are ours. A budget counts the visual tokens' worth, as in H2O.
    """

    paper = "https://arxiv.org/abs/2404.14469"
    scores_with = "window"
    window: int = param(32, 1, 256, 1, "last tokens of the prompt that vote and stay")
    capacity: int = param(192, 1, 4096, 1, "entries of each head that stay, the window counted")
    kernel: int = param(5, 1, 31, 2, "neighbours that a vote is pooled over, an odd number")
    pooling: str = param("mean", choices=("mean", "max"), help="how votes are pooled")
    budget: int = param(0, 0, 576, 1, "entries left beside those of the text; 0: the capacity decides")

    def _checked(self, parameter, value):
        value = super()._checked(parameter, value)
        if parameter.name == "kernel" and value % 2 == 0:
            raise ValueError(f"SnapKV.kernel must be an odd number, got {value}")
        return value

    def evict(self, cache):
        capacity = cache.across(self.budget) + cache.text if self.budget else self.capacity
        if cache.seen > cache.prompt or cache.count <= capacity:
            return None
        window = min(self.window, capacity)
        vote = cache.score[:, : cache.prompt - window]
        pool = functional.avg_pool1d if self.pooling == "mean" else functional.max_pool1d
        vote = pool(vote[None], self.kernel, stride=1, padding=self.kernel // 2)[0]
        settled, position = torch.ones_like(vote, dtype=torch.bool), -cache.position[:, : vote.shape[1]]
        return lowest(vote, settled, position, cache.count - capacity)
