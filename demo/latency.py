"""Whether the latency that the page shows is the one that the benchmark measures: `python -m demo.latency`.

Builds the page in this process, presses Measure through the event of its button, and runs the same through the code of
`bench compare`, in turns, so that whatever else the machine does falls on both. The two are alike where the whole 95 %
interval of their ratio lies within 5 % of 1.
"""

import argparse
import asyncio
import statistics

import gradio as gr
import numpy as np

import longtail
from longtail.bench import goals, protocol, record
from longtail.bench.compare import Entry, Plan, race

from . import page
from .presets import FEWEST, FIRST

FAR = 0.05  # how far the two may lie apart
PICTURE, QUESTION, NEW, REPEATS = 0, 2, 3, 6  # places among what the button hands over


def pressed(blocks: gr.Blocks, plan: Plan) -> dict[str, float]:
    """Seconds from preprocessing to the last token that the page shows after Measure, by method.

    Raises ValueError with the page's sentence where it shows none.
    """
    button = next(block for block in blocks.blocks.values() if getattr(block, "elem_id", None) == "measure")
    event = next(event for event in blocks.fns.values() if (button._id, "click") in event.targets)
    values = [getattr(part, "value", None) for part in event.inputs]
    values[PICTURE], values[QUESTION] = {"path": plan.image}, plan.question
    values[NEW], values[REPEATS] = plan.new, plan.repeat
    state = next(part for part in event.inputs if isinstance(part, gr.State))

    async def press():
        return [update[state] async for update in event.fn(*values) if update.get(state) is not None]

    results = asyncio.run(press())
    if not results:
        raise ValueError("the page measured nothing: its message says why")
    return {answer["method"]: answer["seconds"]["total"] for answer in results[-1].comparison.records}


def benchmarked(llava, plan: Plan, methods: list[str]) -> dict[str, float]:
    """The same by `bench compare`: wall seconds of the whole call, by method."""
    entries = [Entry(name, None, longtail.make(name)) for name in methods]
    seconds = race(llava, plan.image, plan, entries)
    return {entry.method: statistics.median(wall) for entry, wall in zip(entries, seconds, strict=True)}


def compared(llava, plan: Plan, turns: int) -> dict:
    """Both, `turns` times, one after the other and the other way round: medians, and the page's time over the
    benchmark's of the same turn with its 95 % interval, over the sum of the methods."""
    blocks = page.build(llava)
    methods = list(FIRST[:FEWEST])
    ways = {"page": lambda: pressed(blocks, plan), "bench": lambda: benchmarked(llava, plan, methods)}
    taken = {name: np.empty(turns) for name in ways}
    for turn in range(turns):
        for i in protocol.order(len(ways), turn):
            name = list(ways)[i]
            taken[name][turn] = sum(ways[name]().values())
    ratio = protocol.paired(taken["page"], taken["bench"])
    return {"bench": "latency", "methods": methods, **{f"{name}_ms": protocol.milliseconds(s)["ms"]
            for name, s in taken.items()}, **ratio, "goals": [aim(ratio).record()]}  # fmt: skip


def aim(ratio: dict) -> goals.Goal:
    """The page's time over the benchmark's: met, or missed, only where the whole interval is on one side."""
    what = "the page's latency over the benchmark's"
    return goals.Goal(what, ratio["ratio"], 1 - FAR, 1 + FAR).unless(ratio["ratio_95"])


def main(arguments: list[str] | None = None):
    """Print the ratio, then one line of JSON. Ends with status 1 where the goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m demo.latency", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="a known name, a hub id or a folder (%(default)s)")
    parser.add_argument("--new", type=int, default=16, help="most tokens of an answer (%(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="rounds of a measurement (%(default)s)")
    parser.add_argument("--turns", type=int, default=15, help="measurements of each (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU; 0: torch's own choice (%(default)s)")
    record.add_flags(parser)
    given = parser.parse_args(arguments)
    record.checked(given.out)
    llava = longtail.load(given.model)
    with protocol.threads(given.threads):
        under = record.conditions(str(llava.device)) | {"model": llava.name, "new": given.new, "repeat": given.repeat}
        under |= {"dtype": str(llava.dtype).removeprefix("torch."), "turns": given.turns}
        found = compared(llava, Plan(new=given.new, repeat=given.repeat), given.turns) | {"conditions": under}
    apart = f"the page's time is {found['ratio']:.3f} of the benchmark's, further than {100 * FAR:g} %"
    missed = found["goals"][0]["verdict"] == "missed"
    record.deliver(found | {"failures": [apart] * missed}, words(found), given)


def words(found: dict) -> str:
    """The ratio and its conditions."""
    under = found["conditions"]
    return (
        f"{', '.join(found['methods'])} together: page {found['page_ms']:.1f} ms, benchmark {found['bench_ms']:.1f} "
        f"ms; page over benchmark {found['ratio']:.3f}, 95 % {record.span(found['ratio_95'])}\n\n"
        f"{goals.words(found['goals'])}\n\n"
        f"{record.machine(under)}; {under['model']}, {under['new']} new tokens, medians of {under['repeat']} rounds, "
        f"{under['turns']} turns"
    )


if __name__ == "__main__":
    main()
