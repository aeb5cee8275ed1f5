"""What `bench prefill` times: a prompt read by the engine's decoder, whole, stage by stage, or captured."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..clock import Clock
from ..decoder import Decoder
from ..models.drawn import Drawn
from ..reducer import Reducer, make
from ..reducers.full import Full
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
    """Every count by batch, launch by launch and, where `graph`, captured for one prompt; the first count twice."""
    pool = None
    for batch in batches:
        for count in counts:
            run = reading(llava, prompts, count, batch)
            again = ["", "again"] if count == counts[0] else [""]
            yield from (Form(count, batch, "eager", run, what) for what in again)
            if graph and batch == 1:
                replay, pool = captured(run, pool)
                yield from (Form(count, batch, "graph", replay, what) for what in again)


def reading(llava: Drawn, prompts: Prompts, count: int, batch: int) -> Callable:
    """The prefill of `batch` prompts of so many visual tokens: alone as in an answer, together as one tensor."""
    spliced = prompts.of(count)
    if batch > 1:
        states = spliced.embeddings.expand(batch, -1, -1).contiguous()
        return lambda: llava.read_together(states)
    return lambda: Decoder(llava, Full()).prefill(spliced, prompts.unpruned, 1, Quiet())


def captured(run: Callable, pool=None) -> tuple[Callable, tuple]:
    """A CUDA graph of one prefill, its length fixed, and the memory that graphs of other lengths may share."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        run()
    return graph.replay, graph.pool()


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
        self.laps.append(clock.laps)

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
