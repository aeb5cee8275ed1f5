from dataclasses import dataclass

import torch

from ..reducer import Reducer, param, register
from .pyramiddrop import steps


@register
@dataclass(frozen=True)
class Feather(Reducer):
    """Drops visual tokens twice by attention without its bias towards the bottom rows, and keeps a coarse grid at
    first.

    Feather the Throttle (ICCV 2025). The last text token's query meets the image's keys of the layer just run without
    rotary embedding, softmax over the image alone, mean over heads. Entering layer 8 of 32, int(n (1 - R)) of the best
    stay together with every `stride`-th patch of every `stride`-th row; entering layer 16, int(n' (1 - R)^2) of the n'
    left, no grid. Positions stay true. Paper and released code agree; both were run on a model of 729 patches, where
    the grid is 81, here it is 64 of 576. A budget is what the second stage leaves.
    """

    paper = "https://arxiv.org/abs/2412.13180"
    ratio: float = param(0.7, 0, 1, 0.05, "share dropped at the first stage (R); the second keeps (1 - R) squared")
    stride: int = param(3, 1, 24, 1, "step of the grid that the first stage keeps")
    budget: int = param(0, 0, 576, 1, "visual tokens left by the second stage; 0: the ratio decides")

    def drop(self, prefill):
        stage = prefill.entering(8, 16)
        if stage is None:
            return None
        here = int(prefill.visual.sum())
        share = (1 - self.ratio) ** (stage + 1)
        count = steps(prefill.entered, prefill.across(self.budget), 3)[2 * stage] if self.budget else int(here * share)
        logits = prefill.last.logits(prefill.newest(), rotated=False).masked_fill(~prefill.visual, -torch.inf)
        keep = prefill.best(logits.softmax(-1).mean((0, 1)), max(count, 1))
        return keep if stage else torch.cat([keep, self._grid(prefill)]).unique()

    def _grid(self, prefill):
        """Positions of the grid's patches, in every view."""
        on = (prefill.raster % self.stride == 0).all(1)
        return (prefill.visual & on).nonzero().flatten()
