from dataclasses import dataclass

import torch

from ..reducer import Reducer, param, register
from ..tokens import Reduced


@register
@dataclass(frozen=True)
class Random(Reducer):
    """Keeps patches drawn at random, by a generator seeded anew for each image: the control every pruner must beat."""

    paper = "https://arxiv.org/abs/2409.01162"
    budget: int = param(144, 1, 576, 1, "visual tokens kept")
    seed: int = param(0, 0, 2**31 - 1, 1, "seed of the draw")

    def reduce(self, visual):
        generator = torch.Generator().manual_seed(self.seed)
        return Reduced.select(visual, torch.randperm(len(visual.features), generator=generator)[: self.budget])
