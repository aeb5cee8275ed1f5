"""Stop at any moment, a second press, a closed tab: the model is idle soon, and nothing is left behind."""

import random
import time
from collections import Counter

from .errands import Errand
from .figures import LONG, SHORT, Figure, none, noted, quantile, trouble, under, within, yes
from .stand import Stand, able, picture, slow, talkative
from .visitor import Turn, Visitor
from .watch import Census, settled

BUTTONS = ("run", "preview", "measure", "sweep-go")


def stop(here: Stand, times: int = 200, seed: int = 7) -> list[Figure]:
    """Stop at random moments, in prefill and decode, over every method, by every button that asks the model."""
    draw, names, taken, phases, stuck = random.Random(seed), able(here.llava), [], Counter(), []
    with here.visitor() as visitor:
        image = visitor.upload(picture(3))
        usual = _pressed(visitor, "LongTail", "run", image).wait()
        here.filled()
        before, tries = Census.of(here.llava), 0
        while len(taken) + len(stuck) < times and tries < 3 * times:
            name, button = names[tries % len(names)], BUTTONS[(tries + tries // len(names)) % len(BUTTONS)]
            tries += 1
            turn = _pressed(visitor, name, button, image)
            here.door.until_inside(5)
            time.sleep(draw.uniform(0, draw.choice((0.06, 0.5))))
            if not here.door.inside:  # it was over before
                turn.wait()
                continue
            phases["decode" if here.door.said else "prefill"] += 1
            pressed = visitor.stop("sweep-stop" if button == "sweep-go" else "stop")
            if within(lambda: not here.door.busy, 10):
                taken.append(1000 * max(here.door.left - pressed, 0))
            else:
                stuck.append((name, button))
        here.filled()
        left = settled(here.llava, before)
        again = _pressed(visitor, "LongTail", "run", image).wait()
    what = f"{len(taken)} stops, {len(names)} methods"
    return [
        noted(f"{what}: idle, median", quantile(taken, 0.5), "ms"),
        under(f"{what}: idle, p95", quantile(taken, 0.95), 250, "ms"),
        noted(f"{what}: idle, longest", max(taken), "ms"),
        yes(f"stops in prefill ({phases['prefill']}) and in decode ({phases['decode']})", len(phases) == 2)._replace(
            timed=True
        ),
        none("stops that did not stop", stuck),
        none("left behind (workers, generators, hooks, tensors)", left),
        yes("the next run answers as before", _words(again) == _words(usual)),
    ]


def twice(here: Stand, times: int = 40, seed: int = 8) -> list[Figure]:
    """A second press of Run at any time: both end, the answer is the same, never two in the model."""
    draw, wrong = random.Random(seed), []
    with here.visitor() as visitor:
        image = visitor.upload(picture(4))
        asked = {"image": image, "question": SHORT, "new": 12}
        usual = visitor.ask("LongTail", **asked).wait()
        here.filled()
        before = Census.of(here.llava)
        for _ in range(times):
            first = visitor.ask("LongTail", **asked)
            time.sleep(draw.uniform(0, 0.3))
            last = visitor.ask("LongTail", **asked)
            over = within(lambda pair=(first, last): all(turn.over.is_set() for turn in pair), 60)
            if not over or _words(last) != _words(usual):
                wrong.append(trouble(last) or "no answer")
        here.filled()
        left = settled(here.llava, before)
    for what in sorted(set(wrong)):
        print("  second press:", what)
    return [
        none(f"{times} second presses of Run: hung, or another answer", wrong),
        Figure("most runs in the model at once", str(here.door.most), "1", here.door.most == 1),
        none("left behind", left),
    ]


def leave(here: Stand, times: int = 20, seed: int = 9) -> list[Figure]:
    """The tab is closed in the line, in prefill and in mid-decode, on the page and by a caller of the API."""
    draw, taken, begun = random.Random(seed), {}, []
    here.filled()
    before = Census.of(here.llava)
    for at in range(times):
        where, how = ("line", "prefill", "decode")[at % 3], ("run", "preview", "answer")[at // 3 % 3]
        errand, leaves = Errand(how, picture(at), LONG), _in_line if where == "line" else _in_model
        with talkative(here.llava), here.visitor() as visitor:
            taken.setdefault(where, []).append(leaves(here, visitor, errand, where, draw, begun))
        within(lambda: not here.door.busy, 30)
    here.filled()
    left = settled(here.llava, before)
    return [
        *(under(f"{len(took)} tabs closed in {where}: idle, longest", max(took), 2) for where, took in taken.items()),
        none("runs begun for one who had left the line", begun),
        none("left behind", left),
    ]


def _in_line(here: Stand, visitor: Visitor, errand: Errand, _: str, draw: random.Random, begun: list) -> float:
    """The seconds until the place of one who left the line is free; notes a run that was begun all the same."""
    with here.visitor() as other, slow(here.llava, 0.1):
        Errand("run", picture(99), LONG).ask(other)
        here.door.until_inside()
        errand.ask(visitor)
        within(lambda: here.line.waiting == 1, 20)
        entered = here.door.entered
        left = visitor.leave()
        within(lambda: here.line.waiting == 0, 30)
        gone = time.perf_counter() - left
        other.stop()
        within(lambda: not here.door.busy, 30)
        time.sleep(0.2)
        begun += [errand.how] * (here.door.entered > entered)
    return gone


def _in_model(here: Stand, visitor: Visitor, errand: Errand, where: str, draw: random.Random, _: list) -> float:
    """The seconds until the model is idle after its visitor left: in a prompt of seconds, or between slow tokens."""
    with slow(here.llava, 0.6 if where == "prefill" else 0.1):
        errand.ask(visitor)
        met = (lambda: here.door.inside and not here.door.said) if where == "prefill" else (lambda: here.door.said > 1)
        within(met, 20)
        time.sleep(draw.uniform(0, 0.3))
        left = visitor.leave()
        within(lambda: not here.door.busy, 30)
        return time.perf_counter() - left


def _pressed(visitor: Visitor, name: str, button: str, image: dict) -> Turn:
    """One method, asked by one of the buttons."""
    if button == "sweep-go":
        plan = {"scope": "this", "parameter": "budget", "values": "9, 20", "new": 64}
        swept = [name if name != "Full" else "TopK"]
        return visitor.press(button, image=image, question=LONG, methods=swept, **plan)
    return visitor.ask(name, how=button, image=image, question=LONG, new=64, repeats=2)


def _words(turn: Turn) -> tuple:
    return turn.part("answer"), turn.part("panel")
