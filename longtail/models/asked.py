"""A text of the prompt as methods may read it: ids, embeddings, CLIP's words; made when first asked for, and once."""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from ..clock import Clock
from ..tokens import Question, VisualTokens


class Once:
    """A tensor that is made when it is first asked for, and the seconds that took, the device waited for."""

    def __init__(self, make: Callable[[], Tensor], device: torch.device):
        self.make, self.device, self.made, self.seconds = make, device, None, 0.0

    def __call__(self) -> Tensor:
        if self.made is None:
            clock = Clock(self.device)
            clock.lap("before")
            self.made = self.make()
            clock.lap("text")
            self.seconds = clock.laps["text"]
        return self.made


class Asked(Question):
    """A question, or the text before the image, whose parts are made when they are first read.

    `words` is CLIP's embedding of the text [K, P], one for all views, and for all methods that stand beside each other;
    `match` compares it to a view's patches. `owed` are the seconds of words that were read here and made for another.
    """

    def __init__(
        self,
        ids: Callable[[], Tensor],
        embed: Callable[[Tensor], Tensor],
        words: Once | None,
        match: Callable[[Tensor, VisualTokens], Tensor],
    ):
        self._ids, self._embed, self._words, self._match = ids, embed, words, match
        self._read, self.owed = False, 0.0

    @cached_property
    def ids(self) -> Tensor:
        """Token ids [L]."""
        return self._ids()

    @cached_property
    def embeddings(self) -> Tensor:
        """Their embeddings [L, D_llm]."""
        with torch.inference_mode():
            return self._embed(self.ids)

    @property
    def clip(self) -> Callable[[VisualTokens], Tensor] | None:
        """Cosine [N] of the text and each patch of a view, where there is a CLIP text tower."""
        return self._relevance if self._words else None

    def beside(self) -> "Asked":
        """The same text for another method: what CLIP made of it is shared, and owed anew by whoever reads it."""
        return Asked(self._ids, self._embed, self._words, self._match)

    def anew(self) -> "Asked":
        """The same text as nobody has read it yet."""
        return Asked(self._ids, self._embed, self._words and Once(self._words.make, self._words.device), self._match)

    def _relevance(self, visual: VisualTokens) -> Tensor:
        if not self._read and self._words.made is not None:
            self.owed = self._words.seconds
        self._read = True
        return self._match(self._words(), visual)
