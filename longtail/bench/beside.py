"""What a preview takes beside one answer, and beside the same answers one after another: the command `bench preview`.

Wall time of whole answers, everything from the image to the last token. One warm-up, then every round runs each method
alone and all of them together, and the next begins one further on. The ratios are medians over rounds.
"""

import json
import os
import platform
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import transformers
from PIL import Image

from .. import load
from ..batch import preview
from ..export import device_name
from ..generate import answer
from ..models.drawn import CONFIGS, drawn
from ..models.precision import DTYPES, choose
from ..reducer import Reducer, parse
from ..tiny.examine import FINAL_SEED
from ..tiny.scenes import scene
from .record import device_of

BLANK = Image.new("RGB", (1, 1))  # what the engine is given where the prompt is drawn
GOALS = {"cpu": 2.5, "cuda": 1.6}  # times of one answer that four methods may take together


def add_flags(command):
    """The flags of `bench preview`."""
    command.add_argument("--random", help=f"random weights in place of the bundled model: {', '.join(CONFIGS)}")
    command.add_argument("--dtype", default="auto", help=f"with --random: {', '.join(DTYPES)} (%(default)s)")
    command.add_argument(
        "--methods", default="Full,LongTail,TopK,Random", help="names, comma between; the first is one"
    )
    command.add_argument("--budget", type=int, default=134, help="visual tokens of all but Full (%(default)s)")
    command.add_argument("--text", type=int, default=60, help="with --random: text tokens (%(default)s)")
    command.add_argument("--new", type=int, default=128, help="new tokens, at most (%(default)s)")
    command.add_argument("--repeat", type=int, default=5, help="rounds (%(default)s)")
    command.add_argument("--threads", type=int, default=1, help="of the CPU (%(default)s)")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s)")
    command.add_argument("--out", help="write the record to this .json file")
    command.add_argument("--json", action="store_true", help="print JSON alone, without the table")


def command(arguments):
    """Measure; a table, and on the last line the record as JSON."""
    for flag in ("repeat", "threads", "new"):
        if getattr(arguments, flag) < 1:
            raise ValueError(f"--{flag} must be at least 1, got {getattr(arguments, flag)}")
    if arguments.out and Path(arguments.out).suffix != ".json":
        raise ValueError(f"--out takes a .json file, got {arguments.out!r}")
    reducers = {name: parse(name.strip(), arguments.budget) for name in arguments.methods.split(",")}
    before = torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    try:
        llava, image, question = _subject(arguments, device_of(arguments.device))
        seconds, tokens = measure(llava, image, question, reducers, arguments.new, arguments.repeat)
    finally:
        torch.set_num_threads(before)
    record = {"bench": "preview", "conditions": _conditions(llava, arguments), **summary(seconds, tokens, llava.device)}
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if not arguments.json:
        print(table(record), end="\n\n")
    print(json.dumps(record))


def measure(
    llava, image, question: str, reducers: dict[str, Reducer], new: int, repeat: int
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of each round of each method alone and of `preview`, and tokens of each answer.

    Raises ValueError where an answer of the preview has not as many tokens as alone: then they did not do the same.
    """
    forms = {
        name: lambda reducer=reducer: answer(llava, image, question, reducer, max_new_tokens=new)
        for name, reducer in reducers.items()
    }
    together = "preview"
    forms[together] = lambda: deque(preview(llava, image, question, [*reducers.values()], new), maxlen=1)[0]
    said = {name: form() for name, form in forms.items()}  # the warm-up
    tokens = {name: len(said[name].token_ids) for name in reducers}
    if tokens != (shared := {n: len(one.token_ids) for n, one in zip(reducers, said[together], strict=True)}):
        raise ValueError(f"together the answers have {shared} tokens, alone {tokens}: their times do not compare")
    seconds, names = {name: [] for name in forms}, list(forms)
    for turn in range(repeat):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(_took(forms[name], llava.device))
    return seconds, tokens


def summary(seconds: dict[str, list[float]], tokens: dict[str, int], device: torch.device) -> dict:
    """A row for each method, and how many times one answer, and the sum of all, the preview takes."""
    *alone, together = seconds.values()
    one, every = next(iter(tokens)), [sum(turn) for turn in zip(*alone, strict=True)]
    of_one = _ratio(together, seconds[one])
    rows = [{"method": name, "tokens": tokens[name], **_spread(seconds[name])} for name in tokens]
    goal = GOALS[device.type] if len(tokens) == 4 else None
    return {
        **{"rows": rows, "preview": _spread(together), "one": one, "of_one": of_one, "of_all": _ratio(together, every)},
        **{"goal": goal, "met": None if goal is None else of_one[0] <= goal},
    }


def table(record: dict) -> str:
    """The record as text."""
    lines = [f"{row['method']:24} {row['tokens']:5} tokens  {_milliseconds(row)}" for row in record["rows"]]
    lines.append(f"{'all of them together':24} {'':12}  {_milliseconds(record['preview'])}")
    goal = f"; goal {record['goal']:g}: {'met' if record['met'] else 'missed'}" if record["goal"] else ""
    ratios = ["{:.2f} ({:.2f} to {:.2f})".format(*record[name]) for name in ("of_one", "of_all")]
    lines += ["", f"together / {record['one']}: {ratios[0]}{goal}", f"together / one after another: {ratios[1]}"]
    return "\n".join([*lines, "", record["conditions"]])


def _subject(arguments, device: str):
    """Model, image and question: the bundled one describes a held-out scene, a random one reads a drawn prompt."""
    if not arguments.random:
        return load("tiny", device=device), scene(FINAL_SEED).image, "What is in the image?"
    return drawn(arguments.random, choose(arguments.dtype, "none", device), device, arguments.text), BLANK, "?"


def _took(form: Callable, device: torch.device) -> float:
    """Seconds of one call, which ends with the choice of a token and so waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    form()
    return time.perf_counter() - start


def _ratio(ours: list[float], theirs: list[float]) -> list[float]:
    """Median, least and most of the paired ratios."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return [round(value, 3) for value in (median(ratios), min(ratios), max(ratios))]


def _spread(seconds: list[float]) -> dict:
    return {name: round(of(seconds), 5) for name, of in (("seconds", median), ("least", min), ("most", max))}


def _milliseconds(row: dict) -> str:
    return f"{1000 * row['seconds']:8.0f} ms  ({1000 * row['least']:.0f} to {1000 * row['most']:.0f})"


def _conditions(llava, arguments) -> str:
    asked = f"drawn prompt, {arguments.text} text tokens" if arguments.random else f"scene {FINAL_SEED} described"
    weights = ", random weights" if arguments.random else ""
    load = f", load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors" if hasattr(os, "getloadavg") else ""
    return (
        f"{llava.name}{weights}, {str(llava.dtype).removeprefix('torch.')} on {device_name(llava.device)}, "
        f"{arguments.threads} thread{'s' * (arguments.threads > 1)}{load}; {asked}, {arguments.budget} visual tokens "
        f"for all but Full, at most {arguments.new} new; medians (least to most) of {arguments.repeat} rounds in "
        f"rotated order after one warm-up, ratios paired; {platform.system()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )
