from dataclasses import dataclass

from ..reducer import Reducer, register


@register
@dataclass(frozen=True)
class Full(Reducer):
    """Keeps every visual token: LLaVA as published, the reference for all others."""

    paper = "https://arxiv.org/abs/2310.03744"
