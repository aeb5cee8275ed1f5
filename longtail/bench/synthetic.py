"""What stands in for an image: seeded tensors of one, and the prompts that a drawn model makes of them."""

import torch
from torch import Tensor

from ..models.drawn import Drawn
from ..similarity import above_fence
from ..tokens import Question, Reduced, Spliced, TowerLayer, VisualTokens


class Inputs:
    """Seeded tensors of one image: log-normal CLS attention with outliers, features in clusters."""

    def __init__(self, patches: int, width: int, seed: int, device: str, dtype: torch.dtype, heads: int):
        self.n, self.device, self.dtype = patches, device, dtype
        self.generator, self.outliers = torch.Generator().manual_seed(seed), 0
        while not 0 < self.outliers <= self.n // 3:  # outside of it PruMerge+'s code stops with an error
            self.query, self.key = self.draw(1 + self.n, width), self.draw(1 + self.n, width)
            self.layer = TowerLayer(self.key, self.query[:1], self.key, heads)
            self.outliers = above_fence(self.layer.similarity("attention"))
        kind = torch.randint(12, (1 + self.n,), generator=self.generator).to(self.device)
        self.hidden = self.draw(12, width)[kind] + self.draw(1 + self.n, width) / 2

    def draw(self, *shape: int) -> Tensor:
        """Standard normal values."""
        return torch.randn(*shape, generator=self.generator).to(self.device, self.dtype)

    def share(self, of_576: int) -> int:
        """The same share of the patches as this count of 576 is, at least 2."""
        return max(of_576 * self.n // 576, 2)

    def visual(self, cosine: Tensor | None = None, grid: tuple[int, int] | None = None) -> VisualTokens:
        """What a reducer sees, in a row or on that grid; `cosine`: of the text and each patch."""
        text = Question(torch.zeros(0), torch.zeros(0), lambda visual: cosine)
        layers = dict.fromkeys((16, 22, 23, 24), self.layer)
        return VisualTokens(self.hidden[1:], self.hidden[0], grid or (1, self.n), layers, question=text, preamble=text)


class Quiet:
    """A clock that never waits for the device: the whole is timed, not its parts."""

    def lap(self, name: str):
        """Nothing."""

    def between(self):
        """Nothing."""


class Prompts:
    """Prompts of one drawn image of clustered features under one text, pruned as asked."""

    def __init__(self, llava: Drawn, seed: int):
        vision = llava.model.config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        inputs = Inputs(patches, vision.hidden_size, seed, str(llava.device), llava.dtype, vision.num_attention_heads)
        self.llava, self.unpruned = llava, patches + len(llava.drawn.ids) - len(llava.drawn.layout)
        self.visual: VisualTokens = inputs.visual(grid=llava.grid)

    def of(self, count: int) -> Spliced:
        """With the first `count` visual tokens."""
        return self.spliced(Reduced.select(self.visual, torch.arange(count)))

    def spliced(self, reduced: Reduced) -> Spliced:
        """With these."""
        return self.llava.splice(self.llava.drawn, (reduced,))
