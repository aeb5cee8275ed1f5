"""Everything that visitors do, one thing after another, for as long as one likes."""

import base64
import json
import random
import statistics
import time
from collections import Counter

from demo.host import FOLLOWED
from demo.presets import COLUMNS

from .errands import Errand
from .figures import FEW, LONG, SHORT, Figure, none, noted, trouble, under
from .stand import Stand, picture
from .visitor import Visitor
from .watch import Census, files, resident, settled

THREADS = ("workers", "generators", "hooks")


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


def mixed(here: Stand, runs: int = 500, seed: int = 10) -> list[Figure]:
    """Everything that visitors do, mixed, against one server."""
    crowd, wrong, sizes, kept = Crowd(here, seed), Counter(), [], (0, 0)
    before = Census.of(here.llava)
    for _ in range(runs):
        try:
            said = crowd.does()
        except Exception as error:  # a deed that fails is a finding, and the others go on
            said = f"{type(error).__name__}: {error}"
        wrong += Counter([said] if said else ())
        sizes.append(resident(trimmed=False))
        if len(sizes) == runs // 5:
            first = resident()
        kept = max(kept, files(), key=lambda one: one[1])
    for tab in crowd.tabs:
        tab.__exit__()
    here.door.idle()
    left, sessions = settled(here.llava, before), len(here.blocks.app.state_holder.session_data)
    for what, often in wrong.most_common(8):
        print(f"  {often} x {what}")
    print("  done:", dict(crowd.done))
    last, tail = resident(), sizes[-4 * runs // 5 :]
    ends = statistics.fmean(tail[: len(tail) // 10 + 1]), statistics.fmean(tail[-len(tail) // 10 :])
    most, answers = FOLLOWED * COLUMNS, left.get("answers", 0)
    return [
        none(f"{runs} mixed runs: went wrong", wrong),
        under(f"growth a run, last {len(tail)}, reserve given back", (last - first) / len(tail) / 2**20, 1, "MB"),
        under(f"growth a run, last {len(tail)}, as it stands", (ends[1] - ends[0]) / len(tail) / 2**20, 1, "MB"),
        under(f"temporary files ({kept[0]}) at most", kept[1] / 2**20, 100, "MB"),
        none("workers, generators, hooks left", {name: n for name, n in left.items() if name in THREADS}),
        Figure(f"answers kept, {sessions} sessions", str(answers), str(most), answers <= most),
        noted("tensors kept", left.get("tensor_bytes", 0) / 2**20, "MB"),
    ]
