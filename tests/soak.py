"""What the page endures: many visitors, Stop at any moment, closed tabs, no memory left. `make soak`, or some of it:

    .venv/bin/python tests/soak.py [isolation queue stop leave time memory gpu mixed images determinism] [--out FILE]

Every trial serves the page in this process as app.py does, so that it can look inside the engine, and comes over HTTP
or with a browser. It prints what was done, the figure and its limit; the last word is a table. Exits 1 where a limit
was missed.
"""

import argparse
import base64
import datetime
import gc
import importlib
import io
import json
import os
import platform
import random
import re
import statistics
import sys
import threading
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from stand import Stand, able, picture, slow, stand, talkative

# isort: split
import gradio
import torch
from browsing import chromium, watch
from errands import HOWS, Errand
from faults import BALLAST, ERRORS, PLACES, no_memory
from visitor import Turn, Visitor
from watch import Census, files, resident, settled

import longtail
import longtail.__main__ as command
from demo.words import english
from longtail import REDUCERS, Reducer

LONG, SHORT = "Describe the image.", "What shape is at the top?"  # the bundled model has much to say to the first
FEW = ("Full", "LongTail", "TopK", "H2O", "FastV", "VisionZip", "ATS", "SparseVLM")


class Figure(NamedTuple):
    """One line of the table. `ok` is None where it could not be tried here; `timed`: it is a time or a size, which a
    loaded machine may miss."""

    name: str
    figure: str
    limit: str
    ok: bool | None
    timed: bool = False


def trouble(turn: Turn) -> str:
    """What a visitor reads of what went wrong, on the page or through the API."""
    said = [turn.refused, turn.part("trouble"), turn.part("sweep-trouble"), turn.part("sweep-refused")]
    said += [turn.part("refusal", column) for column in range(4)]
    return " ".join(english(str(one)) for one in said if one)


def tells(sentence: str) -> bool:
    """Whether a refusal tells a position and a wait."""
    wait = re.search(r"\d[\d.]* ?(s\b|second|min)", sentence)
    return bool(wait and re.search(r"\d", sentence.replace(wait[0], "", 1)))


def within(what, seconds: float) -> float | None:
    """Wait until that is so; the seconds it took, None where it never was."""
    began = time.perf_counter()
    while not what():
        if time.perf_counter() - began > seconds:
            return None
        time.sleep(0.005)
    return time.perf_counter() - began


def quantile(values: list[float], share: float) -> float:
    """The value that this share is at most."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


# ---- isolation


def isolation(llava, callers: int = 16, tabs: int = 4, runs: int = 3) -> list[Figure]:
    """Callers of the page, the API and the sweep at once, real browsers beside them, each about an image of its own."""
    numbers = range(callers * runs)
    errands = [Errand(HOWS[i % len(HOWS)], picture(i), f"{SHORT} {i}", FEW[i % 4]) for i in numbers]
    errands = [Errand(e.how, e.image, e.question, "LongTail" if e.how == "sweep" else e.method) for e in errands]
    alone = [errand.alone(llava) for errand in errands]
    looked = [_looked(llava, at) for at in range(tabs * runs)]
    with stand(llava, queue=callers + tabs) as here:

        def caller(mine: range) -> list[tuple]:
            with here.visitor() as visitor:
                return [(at, *errands[at].run(visitor)) for at in mine]

        with ThreadPoolExecutor(callers) as pool:
            asked = [pool.submit(caller, range(at, callers * runs, callers)) for at in range(callers)]
            seen = _browsed(here, tabs, looked) if tabs else []
            came = [one for job in asked for one in job.result()]
    lost = [(errands[at].how, trouble(turn)) for at, answer, turn in came if not answer or turn.refused]
    mixed = [errands[at].how for at, answer, _ in came if answer and answer != alone[at]]
    for what in lost[:5]:
        print("  lost:", *what)
    what = f"{callers} sessions x {runs} runs ({', '.join(HOWS)})"
    return [
        Figure(f"{what}: answers not as alone", f"{len(mixed)} of {len(came)}", "0", not mixed),
        Figure(f"{what}: lost or refused", f"{len(lost)} of {len(came)}", "0", not lost),
        Figure("most runs in the model at once", str(here.door.most), "1", here.door.most == 1),
        *_told(seen, tabs, runs),
    ]


def _looked(llava, at: int) -> tuple[bytes, str, str]:
    """What a browser asks, and what `longtail.answer` gives for it alone."""
    image, question = picture(1000 + at), f"{SHORT} Browser {at}."
    return image, question, longtail.answer(llava, image, question, longtail.Full(), max_new_tokens=128).text


def _browsed(here: Stand, tabs: int, looked: list[tuple]) -> list[tuple[bool, str]]:
    """Real browsers beside: whether each answer is its own, and what was wrong."""
    seen, complaints = [], []
    with chromium() as browser, TemporaryDirectory() as folder:
        open_ = [browser.new_context().new_page() for _ in range(tabs)]
        for tab in open_:
            watch(tab, here.site.url, complaints)
            tab.goto(here.site.url)
            tab.wait_for_function("window.longtailFollowed")
        for first in range(0, len(looked), tabs):
            for at, tab in enumerate(open_, first):
                (file := Path(folder) / f"{at}.png").write_bytes(looked[at][0])
                tab.get_by_role("button", name="Clear", exact=True).click()
                tab.wait_for_timeout(500)
                with tab.expect_response("**/upload*"):
                    tab.locator("#ask-image input[type=file]").set_input_files(file)
                tab.wait_for_timeout(1500)
                tab.locator("#question textarea").fill(looked[at][1])
                tab.locator("#message p").evaluate("it => { it.textContent = ''; }")
            for tab in open_:
                tab.get_by_role("button", name="Run", exact=True).click()
            for at, tab in enumerate(open_, first):
                tab.get_by_text("Done. Change anything").wait_for(timeout=120_000)
                said = tab.locator("#column-1 .answer p").inner_text()
                seen.append((said.split() == looked[at][2].split(), f"{said!r} for {looked[at][2]!r}"))
    return [*seen, *((False, complaint) for complaint in complaints)]


def _told(seen: list[tuple[bool, str]], tabs: int, runs: int) -> list[Figure]:
    if not seen:
        return []
    wrong = [what for right, what in seen if not right]
    for what in wrong[:5]:
        print("  browser:", what)
    return [Figure(f"{tabs} browsers x {runs} runs: wrong, lost, complaints", str(len(wrong)), "0", not wrong)]


# ---- the line


def queue(llava, most: int = 2, beyond: int = 6) -> list[Figure]:
    """More callers than the line holds, and those who leave it."""
    page, call = (Errand(how, picture(1), SHORT) for how in ("run", "answer"))
    with stand(llava, queue=most) as here, ExitStack() as open_:

        def comes(errand: Errand) -> tuple[Visitor, Turn]:
            visitor = open_.enter_context(here.visitor())
            return visitor, errand.ask(visitor)

        comes(page)[1].wait()  # so that it is known how long one takes
        with slow(llava, 0.5), talkative(llava):
            _, first = comes(page)
            here.door.until_inside()
            standing = [comes(page) for _ in range(most)]
            within(lambda: here.waiting() == most, 10)
            refused = [comes(call if at % 2 else page)[1] for at in range(beyond)]
            within(lambda: all(turn.over.is_set() for turn in refused), 5)
            time.sleep(1.2)  # for those who wait to be told
            shows, freed = [_waits(turn) for _, turn in standing], {}
            for how, follower in (("stop", page), ("closed tab", call), ("cancelled call", call)):
                visitor, turn = standing.pop()
                leaves = {"stop": visitor.stop, "closed tab": visitor.leave}
                leaves.get(how, lambda visitor=visitor, turn=turn: visitor.cancel([turn]))()
                freed[how] = within(lambda: here.waiting() < most, 5)
                standing.append(comes(follower))
                within(lambda: here.waiting() == most, 10)
        answered = [first, *(turn for _, turn in standing)]
        within(lambda: all(turn.over.is_set() for turn in (*answered, *refused)), 60)
        served = [turn for turn in answered if turn.over.is_set() and not trouble(turn)]
    sentences = [trouble(turn) for turn in refused]
    for sentence in sorted(set(sentences)):
        print("  refused with:", sentence or "nothing")
    slowest = max(turn.seconds if turn.over.is_set() else 99.0 for turn in refused)
    hung, stuck = [t for t in (*answered, *refused) if not t.over.is_set()], [h for h, s in freed.items() if s is None]
    who = f"{beyond} callers beyond a line of {most}"
    return [
        Figure(f"{who}: refused", str(sum(map(bool, sentences))), str(beyond), all(sentences)),
        Figure(
            f"{who}: told position and wait", str(sum(map(tells, sentences))), str(beyond), all(map(tells, sentences))
        ),
        Figure(f"{who}: slowest refusal", f"{slowest:.2f} s", "1 s", slowest <= 1, True),
        Figure("the others: answered", str(len(served)), str(len(answered)), len(served) == len(answered)),
        Figure("page shows place and wait to those who wait", str(sum(shows)), str(most), all(shows)),
        Figure("place freed by Stop, closed tab, cancelled call: not", ", ".join(stuck) or "0", "0", not stuck),
        Figure("hangs", str(len(hung)), "0", not hung),
    ]


def _waits(turn: Turn) -> bool:
    """Whether one who waits is shown a place and a wait."""
    message = english(str(turn.part("message") or ""))
    estimates = [one for one in turn.said if one["msg"] == "estimation" and one.get("rank_eta") is not None]
    if not (tells(message) or estimates):
        print("  who waits reads:", message or turn.said)
    return tells(message) or bool(estimates)


# ---- Stop, a second click, a closed tab


def stop(llava, times: int = 200, seed: int = 7) -> list[Figure]:
    """Stop at random moments, over every method, by every button that asks the model."""
    draw, names, taken, phases = random.Random(seed), able(llava), [], Counter()
    buttons, stuck, tries = ("run", "preview", "measure", "sweep-go"), [], 0
    with stand(llava) as here, here.visitor() as visitor:
        image, asked = visitor.upload(picture(3)), {"question": LONG, "new": 64, "repeats": 2}
        plan = {"scope": "this", "parameter": "budget", "values": "9, 20", "new": 64}

        def press(name: str, button: str) -> Turn:
            if button == "sweep-go":
                swept = [name if name != "Full" else "TopK"]
                return visitor.press(button, image=image, question=LONG, methods=swept, **plan)
            return visitor.ask(name, how=button, image=image, **asked)

        usual = visitor.ask("LongTail", image=image, **asked).wait()
        for button in buttons:
            press("LongTail", button).wait()
        before = settled(llava, Census.of(llava), 1) and Census.of(llava)
        while len(taken) < times and tries < 2 * times:
            name, button = names[tries % len(names)], buttons[(tries + tries // len(names)) % len(buttons)]
            tries += 1
            turn = press(name, button)
            here.door.until_inside(5)
            early = draw.random() < 0.4
            time.sleep(draw.uniform(0, 0.06 if early else 0.5))
            if not here.door.inside:
                turn.wait()
                continue  # it was over before
            phases["decode" if here.door.said else "prefill"] += 1
            pressed = visitor.stop("sweep-stop" if button == "sweep-go" else "stop")
            try:
                taken.append(max(here.door.idle(10) - pressed, 0))
            except TimeoutError:
                stuck.append((name, button))
        left = settled(llava, before)
        again = visitor.ask("LongTail", image=image, **asked).wait()
    same = [again.part("answer"), again.part("panel")] == [usual.part("answer"), usual.part("panel")]
    p50, p95 = (1000 * quantile(taken, share) for share in (0.5, 0.95))
    what = (
        f"{len(taken)} stops over {len(names)} methods ({phases['prefill']} in prefill, {phases['decode']} in decode)"
    )
    extra = {name: value for name, value in left.items() if value > 0}
    return [
        Figure(f"{what}: idle, median", f"{p50:.0f} ms", "-", True, True),
        Figure(f"{what}: idle, p95", f"{p95:.0f} ms", "250 ms", p95 <= 250, True),
        Figure(f"{what}: idle, longest", f"{1000 * max(taken):.0f} ms", "-", True, True),
        Figure("stops that did not stop", str(len(stuck)), "0", not stuck),
        Figure("both phases were met", f"{min(phases['prefill'], phases['decode'])}", ">= 1", len(phases) == 2),
        Figure("left behind (workers, generators, hooks, tensors)", str(extra or 0), "0", not extra),
        Figure("the next run answers as before", "yes" if same else "no", "yes", same),
    ]


def twice(llava, times: int = 40, seed: int = 8) -> list[Figure]:
    """A second press of Run at any time: both end, the answer is the same, never two in the model."""
    draw, wrong = random.Random(seed), []
    with stand(llava) as here, here.visitor() as visitor:
        asked = {"image": visitor.upload(picture(4)), "question": SHORT, "new": 24}
        usual = visitor.ask("LongTail", **asked).wait()
        before = Census.of(llava)
        for _ in range(times):
            turns = [visitor.ask("LongTail", **asked)]
            time.sleep(draw.uniform(0, 0.3))
            turns.append(visitor.ask("LongTail", **asked))
            for turn in turns:
                turn.over.wait(60)
            last = turns[-1]
            right = (last.part("answer"), last.part("panel")) == (usual.part("answer"), usual.part("panel"))
            if not all(turn.over.is_set() for turn in turns) or not right:
                wrong.append(trouble(last))
        here.door.idle()
        left, most = settled(llava, before), here.door.most
    for what in wrong[:3]:
        print("  second press:", what or "no answer")
    extra = {name: value for name, value in left.items() if value > 0}
    return [
        Figure(f"{times} second presses of Run: hung or another answer", str(len(wrong)), "0", not wrong),
        Figure("second presses: most runs in the model at once", str(most), "1", most == 1),
        Figure("second presses: left behind", str(extra or 0), "0", not extra),
    ]


def leave(llava, times: int = 20, seed: int = 9) -> list[Figure]:
    """The tab is closed in the line, in prefill and in mid-decode, on the page and by a caller of the API."""
    draw, taken, stuck = random.Random(seed), [], []
    with stand(llava) as here, talkative(llava):
        before = Census.of(llava)
        for at in range(times):
            where, how = ("line", "prefill", "decode")[at % 3], ("run", "preview", "answer")[at // 3 % 3]
            errand = Errand(how, picture(at), LONG)
            # a prompt of 3.6 s, a token of 0.6 s
            with here.visitor() as other, here.visitor() as visitor, slow(llava, 0.1 if where == "decode" else 0.6):
                first = Errand("run", picture(99), LONG).ask(other) if where == "line" else None
                if first:
                    here.door.until_inside()
                entered = here.door.entered
                errand.ask(visitor)
                waits = {
                    "line": lambda: here.waiting() == 1,
                    "prefill": lambda: here.door.inside and not here.door.said,
                    "decode": lambda: here.door.said > 1,
                }
                within(waits[where], 20)
                time.sleep(draw.uniform(0, 0.3))
                left = visitor.leave()
                gone = (lambda: here.waiting() == 0) if first else (lambda: not here.door.busy)
                within(gone, 30)
                taken.append((time.perf_counter() - left, where, how))
                if first:
                    other.stop()
                    within(lambda: not here.door.busy, 30)
                    if here.door.entered > entered:
                        stuck.append(how)
            within(lambda: not here.door.busy, 30)
        extra = {name: value for name, value in settled(llava, before).items() if value > 0}
    for where in ("line", "prefill", "decode"):
        print(f"  left in {where}:", ", ".join(f"{s:.2f} s ({how})" for s, at, how in taken if at == where))
    worst = max(taken)
    return [
        Figure(
            f"{times} closed tabs: idle, longest ({worst[1]}, {worst[2]})",
            f"{worst[0]:.2f} s",
            "2 s",
            worst[0] <= 2,
            True,
        ),
        Figure("runs begun for one who had left the line", str(len(stuck)), "0", not stuck),
        Figure("closed tabs: left behind", str(extra or 0), "0", not extra),
    ]


# ---- time


class Hung(Reducer):
    """A method that never returns."""

    free = threading.Event()

    def reduce(self, visual):
        self.free.wait()
        return super().reduce(visual)


def times(llava, limit: int = 1) -> list[Figure]:
    """A run past its wall limit; a worker that hangs, those who wait behind it and those who come."""
    figures = []
    with stand(llava, time_limit=limit) as here, talkative(llava), slow(llava, 0.1), here.visitor() as visitor:
        for how in ("answer", "run", "preview"):
            turn = Errand(how, picture(5), LONG).ask(visitor).wait()
            said = json.dumps(list(turn.shown.values()), default=str)
            ended = '"finished": "time"' in said or "time limit" in english(said)
            answers = {"answer": 1, "run": 2, "preview": 2}[how]
            figures += [
                Figure(
                    f"{how} past the limit of {limit} s: ends as time", "yes" if ended else said[-80:], "yes", ended
                ),
                Figure(
                    f"{how}: took",
                    f"{turn.seconds:.1f} s",
                    f"{2 * answers * limit} s",
                    turn.seconds <= 2 * answers * limit,
                    True,
                ),
            ]
    REDUCERS["Hung"] = Hung
    try:
        with stand(llava, time_limit=limit) as here, ExitStack() as open_:
            hangs, waits, comes, calls = (open_.enter_context(here.visitor()) for _ in range(4))
            first = hangs.ask("Hung", image=hangs.upload(picture(6)), question=SHORT)
            here.door.until_inside()
            second = Errand("run", picture(7), SHORT).ask(waits)
            within(lambda: here.line and here.line.stuck(), 10 * limit)
            why = here.line.stuck() if here.line else ""
            ready = here.site.ready()
            later = [Errand(how, picture(8), SHORT).ask(who) for how, who in (("run", comes), ("answer", calls))]
            within(lambda: second.over.is_set() and all(turn.over.is_set() for turn in later), 10)
            told, refused = trouble(second), [trouble(turn) for turn in later]
            print("  stuck:", why or "nothing says so", "| /readyz:", ready, "| waits:", told, "| comes:", refused)
            figures += [
                Figure("a hung worker: readiness says so", why or "no", "a sentence", bool(why)),
                Figure("a hung worker: /readyz", str(ready), "503", ready == 503),
                Figure("a hung worker: who waits is told", told or "no", "a sentence", bool(told)),
                Figure("a hung worker: who comes is refused", str(sum(map(bool, refused))), "2", all(refused)),
            ]
            Hung.free.set()
            first.over.wait(20)
            here.door.idle()
            good = Errand("run", picture(7), SHORT)
            came, _ = good.run(open_.enter_context(here.visitor()))
            fine = came == good.alone(llava)
            figures.append(Figure("after it returned, the next run answers", "yes" if fine else "no", "yes", fine))
    finally:
        del REDUCERS["Hung"]
        Hung.free.clear()
    return figures


# ---- memory


def memory(llava, hows: tuple[str, ...] = (*HOWS, "command"), places=PLACES, errors=tuple(ERRORS)) -> list[Figure]:
    """An allocator that fails at every moment of an answer, as CUDA, torch on a CPU and Python say it."""
    bad, slowest, tries, grown, wrong = [], 0.0, 0, 0, []
    with stand(llava) as here, here.visitor() as visitor:
        rounds = {how: Errand(how, picture(11), SHORT) for how in HOWS if how in hows}
        alone = {how: errand.alone(llava) for how, errand in rounds.items()}
        for errand in rounds.values():
            errand.run(visitor)
        for _ in range(3):
            torch.ones(BALLAST // 4)
        before, rss = Census.of(llava), resident()
        for place, error, how in product(places, errors, hows):
            if how == "command" and place == "decode" and error != "cuda":
                continue
            with no_memory(llava, place, error) as failed:
                began = time.perf_counter()
                sentence = _commanded(llava) if how == "command" else trouble(rounds[how].ask(visitor).wait())
                slowest = max(slowest, time.perf_counter() - began)
            tries += bool(failed)
            if "memory" not in sentence or not any(
                word in sentence for word in ("shorter", "fewer", "smaller", "lower")
            ):
                bad.append(f"{how}, {place}, {error}: {sentence or 'nothing'}")
            if how in rounds and rounds[how].run(visitor)[0] != alone[how]:
                wrong.append((how, place, error))
        left, rss_after = settled(llava, before), resident()
        grown = left["tensor_bytes"] / before.tensor_bytes
    for what in bad[:12]:
        print("  no word of what to reduce:", what)
    growth = (rss_after - rss) / rss
    print(f"  tensors left: {left}")
    return [
        Figure(f"{tries} times out of memory: no word of what to reduce", str(len(bad)), "0", not bad),
        Figure("slowest message", f"{slowest:.2f} s", "2 s", slowest <= 2, True),
        Figure("live tensors afterwards", f"{100 * grown:+.2f} %", "+1 %", grown <= 0.01),
        Figure("resident memory afterwards", f"{100 * growth:+.2f} %", "+1 %", growth <= 0.01, True),
        Figure("next runs that were not fine", str(len(wrong)), "0", not wrong),
    ]


def _commanded(llava) -> str:
    """What the command line says."""
    load, command.load = command.load, lambda *asked, **options: llava
    with TemporaryDirectory() as folder, redirect_stderr(io.StringIO()) as said, redirect_stdout(io.StringIO()):
        (image := Path(folder) / "image.png").write_bytes(picture(11))
        try:
            command.main(["answer", str(image), SHORT, "--model", "tiny", "--method", "LongTail"])
        except (Exception, SystemExit) as error:
            return f"a traceback of {type(error).__name__}"
        finally:
            command.load = load
    return said.getvalue()


def gpu(_, aside: float = 0.97) -> list[Figure]:
    """A real one, where there is a GPU: most of its memory is set aside, the page asks, then it is given back."""
    if not torch.cuda.is_available():
        print("  there is no GPU here: a real out of memory was NOT run")
        return [Figure("out of memory on a real GPU", "not run: no GPU here", "a message, and the next run fine", None)]
    llava = longtail.load("tiny", device="cuda")
    errand, figures = Errand("run", picture(12), SHORT), []
    with stand(llava) as here, here.visitor() as visitor:
        alone = errand.run(visitor)[0]
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        free, total = torch.cuda.mem_get_info()
        ballast = []
        while (room := torch.cuda.mem_get_info()[0]) > 2**20:
            try:
                ballast.append(torch.empty(max(room // 2, 2**20), dtype=torch.uint8, device="cuda"))
            except torch.OutOfMemoryError:
                break
        began = time.perf_counter()
        sentence = trouble(errand.ask(visitor).wait())
        took = time.perf_counter() - began
        ballast.clear()
        torch.cuda.empty_cache()
        after = torch.cuda.memory_allocated() / before - 1
        again = errand.run(visitor)[0]
    print(f"  {torch.cuda.get_device_name()}, {free / total:.0%} free before; said: {sentence}")
    figures += [
        Figure("GPU out of memory: says what to reduce", sentence or "nothing", "a sentence", "memory" in sentence),
        Figure("GPU out of memory: message", f"{took:.2f} s", "2 s", took <= 2, True),
        Figure("GPU memory afterwards", f"{100 * after:+.2f} %", "+1 %", after <= 0.01),
        Figure("GPU: the next run answers as before", "yes" if again == alone else "no", "yes", again == alone),
    ]
    return figures


# ---- everything, for hours


class Crowd:
    """A few tabs that do anything, one thing after another."""

    def __init__(self, here: Stand, seed: int):
        self.here, self.draw, self.done = here, random.Random(seed), Counter()
        self.tabs = [here.visitor() for _ in range(3)]
        self.report = None

    def does(self) -> str:
        """One thing; what went wrong with it, nothing where it went as it should."""
        what = self.draw.choice(DEEDS)
        self.done[what] += 1
        at = self.draw.randrange(len(self.tabs))
        return getattr(self, f"_{what}")(at, self.tabs[at]) or ""

    def _asks(self, how: str, tab: Visitor, **asked) -> str:
        errand = Errand(
            how, picture(self.draw.randrange(12)), self.draw.choice((SHORT, LONG)), self.draw.choice(FEW[1:4])
        )
        return trouble(errand.ask(tab, **asked).wait())

    def _run(self, at, tab):
        return self._asks("run", tab)

    def _preview(self, at, tab):
        return self._asks("preview", tab)

    def _sweep(self, at, tab):
        return self._asks("sweep", tab)

    def _call(self, at, tab):
        return self._asks(self.draw.choice(("answer", "compare", "api_preview")), tab)

    def _measure(self, at, tab):
        image = tab.upload(picture(self.draw.randrange(12)))
        return trouble(tab.ask("Full", "TopK", how="measure", image=image, question=SHORT, repeats=2, new=8).wait())

    def _follow(self, at, tab):
        image = tab.upload(picture(1))
        said = trouble(tab.ask("LongTail", image=image, question=SHORT, new=8).wait())
        return said or trouble(tab.ask("LongTail", how="follow", image=image, question="And below?", new=8).wait())

    def _export(self, at, tab):
        self._asks("run", tab)
        event = self.draw.choice(tab.site.on("file") + tab.site.on("save")[:2])
        file = json.loads(tab.quick(event, [None])["data"][0])
        if file["name"].endswith(".json"):
            self.report = base64.b64decode(file["data"])
        return "" if file["data"] else "an empty file"

    def _replay(self, at, tab):
        if self.report is None:
            return ""
        event = next(event for event in tab.site.on("replay", "upload") if event["backend_fn"])
        came = tab.quick(event, [tab.upload(self.report, "longtail.json")])
        return "" if "data" in came else str(came)

    def _bad_image(self, at, tab):
        cut = picture(2)[: self.draw.randrange(200)]
        how = self.draw.choice(("run", "answer"))
        return "" if trouble(Errand(how, cut, SHORT).ask(tab).wait()) else "a bad image was not refused"

    def _bad_values(self, at, tab):
        bad = self.draw.choice(({"temperature": float("1e9")}, {"seed": -1}, {"max_new_tokens": "many"}))
        return "" if trouble(Errand("answer", picture(1), SHORT).ask(tab, **bad).wait()) else "not refused"

    def _stop(self, at, tab):
        turn = Errand("run", picture(5), LONG).ask(tab, new=64)
        time.sleep(self.draw.uniform(0, 0.4))
        tab.stop()
        self.here.door.idle()
        turn.end()

    def _close(self, at, tab):
        if self.draw.random() < 0.5:
            Errand("run", picture(6), LONG).ask(tab, new=64)
            time.sleep(self.draw.uniform(0, 0.4))
        tab.__exit__()
        self.here.door.idle()
        self.tabs[at] = self.here.visitor()


DEEDS = [
    name[1:] for name in vars(Crowd) if name.startswith("_") and name not in ("_asks", "__init__") and name[1] != "_"
]


def mixed(llava, runs: int = 500, seed: int = 10) -> list[Figure]:
    """Everything that visitors do, mixed, against one server."""
    wrong, grown, kept = [], [], (0, 0)
    with stand(llava) as here:
        crowd, before = Crowd(here, seed), Census.of(llava)
        for at in range(runs):
            try:
                said = crowd.does()
            except Exception as error:  # one deed that fails is a finding, and the rest goes on
                said = f"{type(error).__name__}: {error}"
            if said:
                wrong.append(said)
            if at % 10 == 9:
                gc.collect()
            grown.append(resident())
            kept = max(kept, files())
        for tab in crowd.tabs:
            tab.__exit__()
        here.door.idle()
        left, sessions = settled(llava, before), len(here.blocks.app.state_holder.session_data)
    for what, times_ in Counter(wrong).most_common(8):
        print(f"  {times_} x {what}")
    print("  done:", dict(crowd.done))
    tail = grown[-4 * runs // 5 :]
    slope = (statistics.fmean(tail[-10:]) - statistics.fmean(tail[:10])) / len(tail) / 2**20
    return [
        Figure(f"{runs} mixed runs: went wrong", str(len(wrong)), "0", not wrong),
        Figure(f"growth a run, last {len(tail)}", f"{slope:+.3f} MB", "1 MB", slope < 1, True),
        Figure("temporary files at most", f"{kept[0]}, {kept[1] / 2**20:.1f} MB", "100 MB", kept[1] < 100 * 2**20),
        Figure(
            "workers, generators and hooks left",
            str(left["workers"] + left["generators"] + left["hooks"]),
            "0",
            left["workers"] + left["generators"] + left["hooks"] <= 0,
        ),
        Figure(f"answers kept for {sessions} sessions", str(left["answers"]), "200", left["answers"] <= 200),
        Figure("their tensors", f"{left['tensor_bytes'] / 2**20:.1f} MB", "-", True, True),
    ]


# ---- what others wrote


def elsewhere(module: str):
    """The trial of another file: its `soak()` gives (name, figure, limit, ok) a line."""

    def trial(_) -> list[Figure]:
        try:
            lines = importlib.import_module(module).soak()
        except (ImportError, AttributeError) as missing:
            return [Figure(module, f"not run: {missing}", "-", None)]
        return [Figure(str(name), str(figure), str(limit), ok) for name, figure, limit, ok in lines]

    return trial


TRIALS = {
    "isolation": isolation,
    "queue": queue,
    "stop": stop,
    "twice": twice,
    "leave": leave,
    "time": times,
    "memory": memory,
    "gpu": gpu,
    "mixed": mixed,
    "images": elsewhere("hostile"),
    "determinism": elsewhere("test_determinism"),
}


def conditions(llava) -> dict:
    """Under what the figures were taken."""
    versions = {"python": platform.python_version(), "gradio": gradio.__version__, "torch": torch.__version__}
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} processors, {torch.get_num_threads()} threads",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "model": llava.description,
        "versions": versions,
    }


def main(argv: list[str] | None = None) -> int:
    """Run the trials; 1 where a limit was missed."""
    parser = argparse.ArgumentParser(prog="soak.py", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which trials: {', '.join(TRIALS)} (default: all)")
    parser.add_argument("--out", type=Path, help="write the table and its conditions there, as JSON")
    asked = parser.parse_args(argv)
    if unknown := set(asked.names) - set(TRIALS):
        parser.error(f"there is no trial {', '.join(sorted(unknown))}: choose of {', '.join(TRIALS)}")
    llava, table, seconds = longtail.load("tiny"), {}, {}
    before = conditions(llava)
    for name in asked.names or TRIALS:
        print(
            f"{name}: {(TRIALS[name].__doc__ or '').strip().splitlines()[0] if TRIALS[name].__doc__ else ''}",
            flush=True,
        )
        began = time.perf_counter()
        try:
            table[name] = TRIALS[name](llava)
        except Exception as error:  # a trial that broke off is missed, and the others still run
            traceback.print_exc()
            table[name] = [Figure("broke off", f"{type(error).__name__}: {error}", "-", False)]
        seconds[name] = round(time.perf_counter() - began, 1)
        for figure in table[name]:
            print(f"  {line(figure)}", flush=True)
    print("\n" + "\n".join(f"{name:12} {line(figure)}" for name, figures in table.items() for figure in figures))
    print(json.dumps(before))
    if asked.out:
        lines = {name: [figure._asdict() for figure in figures] for name, figures in table.items()}
        asked.out.write_text(json.dumps({"conditions": before, "seconds": seconds, "trials": lines}, indent=1))
    return int(any(figure.ok is False for figures in table.values() for figure in figures))


def line(figure: Figure) -> str:
    """A figure in one line."""
    verdict = {True: "ok", False: "MISSED", None: "not run"}[figure.ok]
    return f"{verdict:7} {figure.name}: {figure.figure} (limit {figure.limit})"


if __name__ == "__main__":
    sys.exit(main())
