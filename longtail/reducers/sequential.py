from dataclasses import dataclass

import torch

from ..reducer import Reducer, param, register
from ..tokens import Reduced


@register
@dataclass(frozen=True)
class Sequential(Reducer):
    """Keeps the first patches in raster order, the top rows of the image: PruMerge's sequential control (table 4)."""

    paper = "https://arxiv.org/abs/2403.15388"
    budget: int = param(144, 1, 576, 1, "visual tokens kept")

    def reduce(self, visual):
        return Reduced.select(visual, torch.arange(min(self.budget, len(visual.features))))
