"""What `bench prefill` times: a prompt read by the engine's decoder, whole, stage by stage, or captured."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .. import graph as graphs
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
        for count in counts:
            spliced = prompts.of(count)
            ways = {"eager": reading(llava, prompts, spliced, batch)}
            if graph and batch == 1:
                ways["graph"] = alone(llava, prompts, spliced, graphs.Graphs.of(llava).prompts)
            for mode, run in ways.items():
                yield from (Form(count, batch, mode, run, what) for what in ("", "again")[: 1 + (count == counts[0])])


def reading(llava: Drawn, prompts: Prompts, spliced: Spliced, batch: int) -> Callable:
    """The prefill of `batch` equal prompts, launched op by op: alone as in an answer, together as one tensor."""
    if batch == 1:
        return alone(llava, prompts, spliced, None)
    states = spliced.embeddings.expand(batch, -1, -1).contiguous()
    return lambda: llava.read_together(states)


def alone(llava: Drawn, prompts: Prompts, spliced: Spliced, captured: Captured | None) -> Callable:
    """The prefill of one prompt as in an answer, through the captured ones where they are given."""
    return lambda: Decoder(llava, Full(), captured).prefill(spliced, prompts.unpruned, 1, Quiet())


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
