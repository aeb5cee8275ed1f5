"""What `bench prefill` times: a prompt read by the engine's decoder, whole, stage by stage, or captured."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .. import graph as graphs
from .. import merged
from ..clock import Clock
from ..decoder import Decoder
from ..graph import Prompts as Captured
from ..models.drawn import Drawn
from ..reducer import Reducer, make
from ..reducers.full import Full
from ..tokens import Spliced
from .protocol import rounded
from .synthetic import Prompts, Quiet

CONTROLS = ("Random", "Sequential", "TopK", "LongTail")


@dataclass(frozen=True)
class Form:
    """One thing that is timed; `what` names it where it is not a count of the table."""

    visual: int
    batch: int
    mode: str  # eager, graph
    run: Callable
    what: str = ""


def forms(llava: Drawn, prompts: Prompts, counts: Sequence[int], batches: Sequence[int], graph: bool) -> Iterator[Form]:
    """Every count by batch, launched op by op and, where `graph`, as captured for one prompt; the first count twice."""
    for batch in batches:
        for mode in ("eager", "graph")[: 1 + (graph and batch == 1)]:
            captured = graphs.Graphs.of(llava).prompts if mode == "graph" else None
            for count in counts:
                run = reading(llava, prompts, prompts.of(count), batch, captured)
                yield from (Form(count, batch, mode, run, what) for what in ("", "again")[: 1 + (count == counts[0])])


def reading(llava: Drawn, prompts: Prompts, spliced: Spliced, batch: int, captured: Captured | None) -> Callable:
    """The prefill of equal prompts: one as in an answer, through the captured ones where they are given, several as in
    `generate_batch`."""
    if batch == 1:
        return lambda: Decoder(llava, Full(), captured).prefill(spliced, prompts.unpruned, 1, Quiet())
    return lambda: together(llava, prompts, spliced, [Decoder(llava, Full()) for _ in range(batch)], 1)


def together(llava: Drawn, prompts: Prompts, spliced: Spliced, rows: list[Decoder], new: int) -> torch.Tensor:
    """Logits [B, V] behind the prompt of several answers that are read together."""
    ways = [row.prefilling(spliced, prompts.unpruned, new, Quiet()) for row in rows]
    return torch.stack(merged.prefill(llava, rows, ways))


def held(decoder: Decoder) -> int:
    """Bytes of the slots of an answer's cache, written or not."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in decoder.cache.layers)


class Staged:
    """One method from features to first logits, its stages lapped; `laps` holds those of every run."""

    STAGES = ("select", "project", "prefill")

    def __init__(self, llava: Drawn, prompts: Prompts, reducer: Reducer):
        self.llava, self.prompts, self.reducer, self.laps = llava, prompts, reducer, []

    def __call__(self):
        clock = Clock(self.llava.device)
        reduced = self.reducer.reduce(self.prompts.visual)
        clock.lap("select")
        spliced = self.prompts.spliced(reduced)
        clock.lap("project")
        Decoder(self.llava, self.reducer).prefill(spliced, self.prompts.unpruned, 1, clock)
        clock.lap("prefill")
        self.laps.append(dict(clock.laps))

    def stages(self, last: int) -> dict[str, float]:
        """Median milliseconds of each stage over the last runs; stage 2's scores are `score`."""
        runs = [dict(lap) for lap in self.laps[-last:]]
        named = {"score": "method"} | {name: name for name in self.STAGES}
        return {
            f"{stage}_ms": rounded(1e3 * np.median([run.get(lap, 0.0) for run in runs])) for stage, lap in named.items()
        }


def staged(llava: Drawn, prompts: Prompts, budget: int) -> dict[str, Staged]:
    """Full, the controls that choose for nothing, TopK and LongTail, all at one budget."""
    reducers = {"Full": Full(), **{name: make(name, budget=budget) for name in CONTROLS}}
    return {name: Staged(llava, prompts, reducer) for name, reducer in reducers.items()}
