"""What stands before the language model: prompt and views of the tower, and what a follow-up may take over of them."""

import dataclasses
from dataclasses import dataclass

import torch

from .models.llava import Llava, Prompt
from .reducer import Reducer
from .tokens import Reduced, VisualTokens

Views = list[tuple[VisualTokens, Reduced | None]]


@dataclass(frozen=True, eq=False)
class Seen:
    """A prompt, the views of the tower, what they cost, and what of them was taken over from an earlier answer.

    The tower never reads the text, so its views serve every question about one image. The KV cache does read it, and is
    not taken over: what was pruned, dropped or evicted was chosen for another question, and entries read after a
    reduction differ from those read without. A follow-up reads its whole prompt again, which is the plain reference.
    """

    llava: Llava
    prompt: Prompt
    views: Views
    trimmed_by: Reducer | None  # the reducer that acted inside the tower
    laps: dict[str, float]  # seconds by phase; one that was taken over has none
    reused: tuple[str, ...] = ()  # phases that were not run anew

    def serves(self, llava: Llava, prompt: Prompt, layers: tuple[int, ...], trimmer: Reducer | None) -> bool:
        """Whether another run of the tower would only repeat these views: the same model, pixels [views, 3, S, S] equal
        bit for bit and laid out alike, every layer to be read captured, and the same reducer, or none, inside the
        tower. Images of two sizes may give the same pixels, and differ in what of them is padding."""
        return (
            self.llava is llava
            and self.trimmed_by == trimmer
            and set(layers) <= set(self.views[0][0].layers)
            and torch.equal(self.prompt.pixels, prompt.pixels)
            and self.prompt.layout.same(prompt.layout)
        )

    @property
    def owed(self) -> float:
        """Seconds of the text that was read here and made for another method."""
        return self.prompt.question.owed + self.prompt.preamble.owed

    def again(self) -> "Seen":
        """The same for another method: tower and text run no more, their measured time stands in its own seconds."""
        asked = {"question": self.prompt.question.beside(), "preamble": self.prompt.preamble.beside()}
        prompt = dataclasses.replace(self.prompt, **asked)
        return dataclasses.replace(self, prompt=prompt, views=self.beside(prompt))

    def beside(self, prompt: Prompt) -> Views:
        """These views with the question of another prompt beside them."""
        asked = {"question": prompt.question, "preamble": prompt.preamble}
        return [(dataclasses.replace(visual, **asked), trimmed) for visual, trimmed in self.views]


@torch.inference_mode()
def look(
    llava: Llava,
    image,
    question: str,
    layers: tuple[int, ...],
    clock,
    reducer: Reducer | None = None,
    history=(),
    before: Seen | None = None,
    preface: str = "",
) -> Seen:
    """Prompt and vision tower: everything before `reduce`. Where a reducer is given, its `trim` acts inside.

    The prompt is always built. The tower does not run where `before`, of an earlier answer, serves; else it does.
    """

    def trim(tower):
        clock.lap("vision")
        reduced = reducer.trim(tower)
        clock.lap("method")
        return reduced

    prompt = llava.prompt(llava.open(image), question, history, preface)
    again = before is not None and before.serves(llava, prompt, layers, reducer)
    clock.lap("preprocess")
    if again:
        return Seen(llava, prompt, before.beside(prompt), reducer, dict(clock.laps), ("vision",))
    inside = {"trim": trim, "proportional": reducer.proportional} if reducer else {}
    views = llava.encode(prompt, layers, between=clock.between, **inside)
    clock.lap("vision")
    return Seen(llava, prompt, views, reducer, dict(clock.laps))
