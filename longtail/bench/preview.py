"""What a preview takes beside one answer, and beside the same answers one after another: the command `bench preview`.

Wall time of whole answers as the caller waits for them, everything from the image to the last token.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .. import load
from ..batch import preview
from ..generate import answer
from ..models.drawn import CONFIGS, drawn
from ..models.precision import DTYPES, choose
from ..reducer import Reducer, parse
from ..tiny.examine import FINAL_SEED
from ..tiny.scenes import scene
from . import goals, protocol
from .goals import NO_CPU, NO_GPU, Goal
from .protocol import milliseconds, paired
from .record import add_flags as output_flags
from .record import checked, conditions, deliver, device_of, machine, span, table

RATIOS = "of_one", "of_all"
BLANK = Image.new("RGB", (1, 1))  # what the engine is given where the prompt is drawn
METHODS, FOUR = "Full,LongTail,TopK,Random", 4
MISSING = {"cpu": NO_CPU, "cuda": NO_GPU}
MOST = {"cpu": ("CPU", 2.5), "cuda": ("GPU", 1.6)}  # times of one answer that four methods may take together


@dataclass(frozen=True)
class Plan:
    """What is asked for; the first of the methods is the one answer that all are compared to."""

    random: str | None = None
    dtype: str = "auto"
    methods: str = METHODS
    budget: int = 134
    text: int = 60
    new: int = 128
    repeat: int = 5
    threads: int = 1
    device: str = "auto"
    clock: str = "wall"

    def __post_init__(self):
        for name, least in (("repeat", 1), ("threads", 0), ("new", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, got {getattr(self, name)}")

    def settled(self) -> "Plan":
        """This plan on the device it names. Raises ValueError for a clock that cannot be read there."""
        plan = Plan(**vars(self) | {"device": device_of(self.device)})
        protocol.clock_of(plan.clock, plan.device, plan.threads)
        return plan

    def reducers(self) -> dict[str, Reducer]:
        """Each method by its text."""
        return {name.strip(): parse(name.strip(), self.budget) for name in self.methods.split(",")}


# ---- measuring


def measure(plan: Plan) -> dict:
    """The record of a settled plan."""
    reducers = plan.reducers()
    with protocol.threads(plan.threads):
        under = conditions(plan.device)
        llava, image, question = _subject(plan)
        every = forms(llava, image, question, reducers, plan.new)
        tokens = counted(every)
        seconds = protocol.timed([*every.values()], "cpu", plan.repeat, clock=plan.clock)  # of the host: a caller's
    asked = {"model": llava.name, "dtype": str(llava.dtype).removeprefix("torch."), "random": bool(plan.random)}
    asked |= {name: getattr(plan, name) for name in ("budget", "text", "new", "repeat", "clock")}
    return {"bench": "preview", "conditions": under | asked, **summary(seconds, tokens, plan.device)}


def _subject(plan: Plan):
    """Model, image and question: the bundled one describes a held-out scene, a random one reads a drawn prompt."""
    if not plan.random:
        return load("tiny", device=plan.device), scene(FINAL_SEED).image, "What is in the image?"
    return drawn(plan.random, choose(plan.dtype, "none", plan.device), plan.device, plan.text), BLANK, "?"


def forms(llava, image, question: str, reducers: dict[str, Reducer], new: int) -> dict[str, Callable]:
    """Each method alone, and in the end all of them together; each call returns its answers."""
    alone = {
        name: lambda reducer=reducer: [answer(llava, image, question, reducer, max_new_tokens=new)]
        for name, reducer in reducers.items()
    }
    asked = llava, image, question, [*reducers.values()], new
    return alone | {"preview": lambda: deque(preview(*asked), maxlen=1)[0]}


def counted(forms: dict[str, Callable]) -> dict[str, int]:
    """Tokens of each method's answer.

    Raises ValueError where an answer of the preview has not as many as alone: then they did not do the same.
    """
    *alone, together = ([len(said.token_ids) for said in form()] for form in forms.values())
    alone = [count for (count,) in alone]
    if together != alone:
        raise ValueError(f"together the answers have {together} tokens, alone {alone}: their times do not compare")
    return dict(zip(forms, together, strict=False))


def summary(seconds: np.ndarray, tokens: dict[str, int], device: str) -> dict:
    """A row for each method, and how many times one answer, and the sum of all, the preview takes."""
    *alone, together = seconds
    rows = [
        {"method": name, "tokens": tokens[name], **milliseconds(each)} for name, each in zip(tokens, alone, strict=True)
    ]
    of_one, of_all = paired(together, alone[0]), paired(together, sum(alone))
    aims = [
        Goal(
            f"a preview of {FOUR} methods over one answer, {where}",
            of_one["ratio"] if device.startswith(kind) and len(tokens) == FOUR else None,
            most=most,
            unit=" x",
            reason=f"not run here: takes {FOUR} methods" if device.startswith(kind) else MISSING[kind],
        ).unless(of_one["ratio_95"])
        for kind, (where, most) in MOST.items()
    ]
    return {
        **{"rows": rows, "preview": milliseconds(together), "of_one": of_one, "of_all": of_all},
        "goals": [aim.record() for aim in aims],
    }


# ---- in words


def words(found: dict) -> str:
    """Times, ratios, goals, conditions."""
    rows = [(r["method"], r["tokens"], f"{r['ms']:.0f}", f"{r['best_ms']:.0f}") for r in found["rows"]]
    rows.append(("all of them together", "", *(f"{value:.0f}" for value in found["preview"].values())))
    c, one = found["conditions"], found["rows"][0]["method"]
    ratios = ["{:.2f}, 95 % {}".format(found[name]["ratio"], span(found[name]["ratio_95"])) for name in RATIOS]
    asked = f"drawn prompt, {c['text']} text tokens" if c["random"] else f"scene {FINAL_SEED} described"
    return "\n\n".join(
        [
            table(("method", "tokens", "ms", "best"), rows),
            f"together / {one}: {ratios[0]}\ntogether / one after another: {ratios[1]}",
            goals.words(found["goals"]),
            f"{machine(c)}; {c['model']}{', random weights' * c['random']}; {asked}, {c['budget']} visual tokens for "
            f"all but Full, at most {c['new']} new; medians of {c['repeat']} repetitions in an order that turns, "
            "ratios of one repetition with their bootstrap 95 %",
        ]
    )


# ---- the command


def add_flags(command):
    """The flags of `bench preview`."""
    command.add_argument("--random", help=f"random weights in place of the bundled model: {', '.join(CONFIGS)}")
    command.add_argument("--dtype", default="auto", help=f"with --random: {', '.join(DTYPES)} (%(default)s)")
    command.add_argument("--methods", default=METHODS, help="names, comma between; the first is one (%(default)s)")
    command.add_argument("--budget", type=int, default=134, help="visual tokens of all but Full (%(default)s)")
    command.add_argument("--text", type=int, default=60, help="with --random: text tokens (%(default)s)")
    command.add_argument("--new", type=int, default=128, help="new tokens, at most (%(default)s)")
    command.add_argument("--repeat", type=int, default=5, help="repetitions (%(default)s)")
    command.add_argument("--threads", type=int, default=1, help="of the CPU; 0: torch's own choice (%(default)s)")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s)")
    command.add_argument("--clock", default="wall", help=protocol.CLOCK_HELP)
    output_flags(command)


def command(arguments):
    """`bench preview`: the table, and the record as JSON."""
    checked(arguments.out)
    plan = protocol.planned(Plan, arguments)
    plan.reducers()  # refused before a model is loaded
    found = measure(plan)
    deliver(found, words(found), arguments)
