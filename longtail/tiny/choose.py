"""Which patches the language model gets to see while it learns, and while it is measured."""

import math

import torch

from .world import GRID

CHOOSERS = ("cls", "random", "grid", "oracle")


def choose(owner, seen, count: int, generator: torch.Generator | None = None):
    """Training: `count` patches a picture in raster order, each picture by another of four ways, [B, count]."""
    batch, tokens = owner.shape
    if count == tokens:
        return torch.arange(tokens, device=owner.device).expand(batch, -1)
    noise = torch.rand(batch, tokens, generator=generator).to(owner.device)
    start = torch.rand(batch, 1, generator=generator).to(owner.device)
    even = -((torch.arange(tokens, device=owner.device) + start * tokens) * count / tokens % 1)
    ways = torch.stack([noise, (owner > 0) + noise * 0.5, seen + 0.5 * noise, even + 0.01 * noise])
    way = torch.multinomial(torch.tensor([0.3, 0.2, 0.35, 0.15]), batch, True, generator=generator).to(owner.device)
    scores = ways.gather(0, way[None, :, None].expand(1, -1, tokens))[0]
    return scores.topk(count, 1)[1].sort(1)[0]


def pick(chooser: str, owner, seen, count: int, seed: int = 0):
    """Measuring: the same way for every picture, [B, count] of all 576 patches in raster order."""
    noise = torch.rand(owner.shape, generator=torch.Generator().manual_seed(seed)).to(owner.device)
    if chooser == "grid":
        return torch.tensor(even_grid(count), device=owner.device).expand(len(owner), -1)
    scores = {"cls": seen, "random": noise, "oracle": (owner > 0) + 0.5 * noise}[chooser]
    return scores.topk(count, 1)[1].sort(1)[0]


def even_grid(count: int) -> list[int]:
    """About `count` patches on a square lattice."""
    side = math.ceil(math.sqrt(count))
    lines = [int((k + 0.5) * GRID / side) for k in range(side)]
    patches = [row * GRID + column for row in lines for column in lines]
    return [patches[int(k * len(patches) / count)] for k in range(count)]
