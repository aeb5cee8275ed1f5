"""Runs past their limit, and a worker that never comes back."""

import json
import threading
from contextlib import ExitStack, contextmanager

from demo import line
from demo.words import english
from longtail import REDUCERS, Reducer

from .errands import Errand
from .figures import LONG, SHORT, Figure, trouble, under, within, yes
from .stand import Stand, picture, slow, talkative


class Hung(Reducer):
    """A method that never returns."""

    free = threading.Event()

    def reduce(self, visual):
        self.free.wait()
        return super().reduce(visual)


def late(here: Stand, hows: tuple[str, ...] = ("answer", "run", "preview")) -> list[Figure]:
    """Runs past their wall limit end as that. The page must be served with a small one."""
    figures, limit = [], here.time_limit
    with talkative(here.llava), slow(here.llava, limit / 10), here.visitor() as visitor:
        for how in hows:
            turn = (
                Errand(how, picture(5), LONG)
                .ask(visitor, **{"max_new_tokens" if how == "answer" else "new": 64})
                .wait()
            )
            said, answers = json.dumps(list(turn.shown.values()), default=str), 1 if how == "answer" else 2
            past = f"{how} past the limit of {limit:g} s an answer"
            figures.append(yes(f"{past}: ends as time", _timed(said)))
            figures.append(under(f"{past}: {answers} took", turn.seconds, 2 * answers * limit))
    return figures


def hanging(here: Stand) -> list[Figure]:
    """A worker that hangs, one who waits behind it and those who come. The page must be served with a small limit."""
    with _registered(), ExitStack() as open_:
        hangs, waits, comes, calls, after = (open_.enter_context(here.visitor()) for _ in range(5))
        first = hangs.ask("Hung", image=hangs.upload(picture(6)), question=SHORT)
        here.door.until_inside()
        second = Errand("run", picture(7), SHORT).ask(waits)
        within(here.line.stuck, here.time_limit + line.GRACE + 5)
        stuck, ready = here.line.stuck(), here.site.status("readyz")
        later = [Errand(how, picture(8), SHORT).ask(who) for how, who in (("run", comes), ("answer", calls))]
        within(lambda: all(turn.over.is_set() for turn in (first, second, *later)), 10)
        told = [trouble(turn) for turn in (first, second, *later)]
        print("  stuck:", stuck or "nothing says so", *(f"\n  {sentence}" for sentence in sorted(set(told))))
        Hung.free.set()
        here.door.idle()
        errand = Errand("run", picture(7), SHORT)
        fine = within(lambda: not here.line.stuck(), 5) and errand.run(after)[0] == errand.alone(here.llava)
    who = ("who asked it", "who waits", "who comes to the page", "who calls the API")
    return [
        yes("a hung worker: the line says so", stuck),
        Figure("a hung worker: /readyz", str(ready), "503", ready == 503),
        *(yes(f"a hung worker: {whose} is told", sentence) for whose, sentence in zip(who, told, strict=True)),
        yes("after it came back, the next run answers as before", fine),
    ]


def _timed(said: str) -> bool:
    return '"finished": "time"' in said or "time limit" in english(said)


@contextmanager
def _registered():
    REDUCERS["Hung"] = Hung
    try:
        yield
    finally:
        Hung.free.set()
        del REDUCERS["Hung"]
        Hung.free.clear()
