"""Many visitors at once: nobody has another's answer, one run at a time in the model."""

from concurrent.futures import ThreadPoolExecutor

from .browsers import Look, browsed
from .errands import HOWS, Errand
from .figures import FEW, SHORT, Figure, none, trouble
from .stand import Stand, picture


def isolation(here: Stand, callers: int = 16, tabs: int = 4, runs: int = 3) -> list[Figure]:
    """Callers of the page, the API and the sweep at once, real browsers beside them, each about an image of its own."""
    errands = [Errand(how, picture(at), f"{SHORT} {at}", method) for at, how, method in _mixed(callers * runs)]
    alone = [errand.alone(here.llava) for errand in errands]
    looks = [Look(here.llava, at) for at in range(tabs * runs)]
    here.door.most = 0

    def caller(first: int) -> list[tuple]:
        with here.visitor() as visitor:
            return [(at, *errands[at].run(visitor)) for at in range(first, len(errands), callers)]

    with ThreadPoolExecutor(callers) as pool:
        asked = [pool.submit(caller, first) for first in range(callers)]
        wrong = browsed(here.site.url, tabs, looks) if tabs else []
        came = [one for job in asked for one in job.result()]
    lost = [f"{errands[at].how}: {trouble(turn) or 'no answer'}" for at, told, turn in came if not told or turn.refused]
    strange = [errands[at].how for at, told, _ in came if told and told != alone[at]]
    for what in (*lost, *strange, *wrong)[:8]:
        print("  lost, mixed or wrong:", what)
    what = f"{callers} sessions x {runs} runs ({', '.join(HOWS)})"
    figures = [
        none(f"{what}: answers unlike those alone", strange),
        none(f"{what}: lost or refused", lost),
        Figure("most runs in the model at once", str(here.door.most), "1", here.door.most == 1),
    ]
    return [*figures, none(f"{tabs} browsers x {runs} runs: wrong, lost, complaints", wrong)] if tabs else figures


def _mixed(count: int) -> list[tuple[int, str, str]]:
    """Number, way and method of each errand; a sweep needs a method that has a budget."""
    ways = [HOWS[at % len(HOWS)] for at in range(count)]
    return [(at, how, "LongTail" if how == "sweep" else FEW[at % len(FEW)]) for at, how in enumerate(ways)]
