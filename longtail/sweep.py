"""A parameter over a range of values: methods x values x questions, each run beside the unpruned one of its question.

A row, one run (n = 1), is plain JSON values:

method           as it was asked for: NAME, or NAME:parameter=value
spec             the reducer as `reducer.parse` reads it
parameter, value what was swept; null where the method has no such parameter and runs once, as it comes
image, question  the path, null for a picture in memory; the words
reason           why it could not be run; such a row has no key below
answer           its words
patches, visual  patches of the image, visual tokens that enter the language model
layer_mean       visual tokens that enter a decoder layer, mean over layers: what the model really reads
agreement        share of words as in the unpruned answer, of `versus`; no accuracy
same             whether the two answers are equal to the letter
kl               KL(unpruned || this one) of the first token, nats
first_token, total            seconds to the first and to the last token
first_of_full, total_of_full  the same over those of the unpruned run of the same question
n                runs behind these numbers
"""

import csv
import io
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from .evaluate import Progress
from .export import device_name
from .front import front, summary
from .generate import Answer, answer
from .models.llava import Llava
from .models.memory import OutOfMemory
from .points import HOW, MOST, Point, plan, values
from .reducer import spec
from .reducers.full import Full
from .versus import agreement, divergence

EXAMPLES = Path(__file__).parents[1] / "assets" / "examples" / "examples.json"


@dataclass(frozen=True)
class Step:
    """How far a sweep is: the row that a run gave, None before the first; seconds spent and, as measured, left."""

    row: dict | None
    done: int
    of: int
    spent: float
    left: float | None


# ---- the sweep


def runs(questions: int, asked: list[Point]) -> int:
    """How many runs that is. Raises ValueError for more than 200."""
    of = questions * (1 + len(asked))
    if of > MOST:
        counts = f"{questions} x (1 + {len(asked)}) = {of}"
        raise ValueError(f"a sweep has at most {MOST} runs, this one {counts}: take fewer values, methods or questions")
    return of


def sweep(
    llava: Llava,
    questions: list[tuple],
    asked: list[Point],
    max_new_tokens: int = 128,
    seed: int = 0,
    stop=None,
    time_limit: float | None = None,
) -> Iterator[Step]:
    """A Step before the first run and after each: greedy, question by question, Full first, then the points shuffled.

    `questions` are (image, question) pairs as `generate` takes them; `stop` has is_set(), as threading.Event;
    `time_limit` is seconds that one answer may take. One run goes before, uncounted. What a method refuses,
    or where memory runs out in it, is its row's reason. Raises ValueError for more than 200 runs, and where Full gives
    no answer.
    """
    of = runs(len(questions), asked)
    options = {"max_new_tokens": max_new_tokens, "stop": stop, "time_limit": time_limit}
    started, done, taken, draw = time.perf_counter(), 0, 0.0, random.Random(seed)
    yield Step(None, 0, of, 0.0, None)
    answer(llava, *questions[0], Full(), **options)
    for image, question in questions:
        full, picture = None, llava.open(image)  # decoded once: no run is timed at it
        about = {"image": str(image) if isinstance(image, str | Path) else None, "question": question}
        for point in [Point("Full"), *draw.sample(asked, len(asked))]:
            begun = time.perf_counter()
            row, given = _run(llava, picture, about, point, full, options)
            if stop is not None and stop.is_set():
                return
            full = full or _reference(given, row, time_limit)
            done, taken = done + 1, taken + time.perf_counter() - begun
            yield Step(row, done, of, time.perf_counter() - started, taken / done * (of - done))


def _run(llava, picture, about: dict, point: Point, full: Answer | None, options: dict) -> tuple[dict, Answer | None]:
    """The row of one run, and its answer where there is one."""
    row = {"method": point.method, "spec": _asked_as(point), "parameter": point.parameter, "value": point.value}
    row |= about
    try:
        reducer = point.reducer()
        row["spec"] = spec(reducer)
        given = answer(llava, picture, about["question"], reducer, **options)
    except (ValueError, OutOfMemory) as error:
        if full is None:  # what no method could answer is refused, once
            raise
        return row | {"reason": str(error)}, None
    if given.finished == "time":
        return row | {"reason": f"it took longer than {options['time_limit']:g} s"}, given
    return row if given.finished == "stopped" else row | _measured(given, full or given), given


def _asked_as(point: Point) -> str:
    return point.method if point.parameter is None else f"{point.method}:{point.parameter}={point.value}"


def _reference(given: Answer, row: dict, time_limit: float | None) -> Answer:
    if "reason" in row:
        wish = "ask for fewer new tokens or give it longer"
        raise ValueError(f"the unpruned model took longer than {time_limit:g} s over {row['question']!r}: {wish}")
    return given


def _measured(given: Answer, full: Answer) -> dict:
    tokens, seconds = given.tokens, given.seconds
    return {
        "answer": given.text,
        "patches": tokens.patches,
        "visual": tokens.visual,
        "layer_mean": tokens.layer_mean,
        "agreement": agreement(given.text, full.text),
        "same": given.text == full.text,
        "kl": divergence(given.first_logits, full.first_logits),
        "first_token": seconds.first_token,
        "total": seconds.total,
        "first_of_full": seconds.first_token / full.seconds.first_token,
        "total_of_full": seconds.total / full.seconds.total,
        "n": 1,
    }


def conditions(llava: Llava, questions: int, max_new_tokens: int, seed: int) -> str:
    """Under what the numbers of a sweep were taken, in one sentence."""
    several = "one question" if questions == 1 else f"{questions} questions (a setting's numbers: means over them)"
    return (
        f"{llava.description} on {device_name(llava.device)}, "
        f"{torch.get_num_threads()} threads; greedy, at most {max_new_tokens} new tokens; {several}, one run each "
        f"(n = 1), Full first, then the others in an order shuffled by seed {seed}, after one uncounted run; agreement "
        "is with the unpruned answer, no accuracy; of Full: time over the unpruned run's on the same question"
    )


# ---- the command


def add_flags(command):
    """The flags of `sweep`."""
    command.add_argument("image", nargs="?", help="path of a PNG, JPEG, WEBP, GIF or BMP file")
    command.add_argument("question", nargs="?")
    command.add_argument("--examples", action="store_true", help="the bundled scenes instead of one image and question")
    command.add_argument("--methods", default="LongTail,TopK", help="names, or NAME:parameter=value, comma between")
    command.add_argument(
        "--over", default="budget=32,64,134,288", metavar="NAME=VALUES", help=f"what is swept: {HOW} (%(default)s)"
    )
    command.add_argument("--max-new-tokens", type=int, default=128)
    command.add_argument("--seed", type=int, default=0, help="of the order of runs")
    command.add_argument("--time-limit", type=float, help="seconds that an answer may take")
    command.add_argument("--out", help="write every row to a .json or .csv file")
    command.add_argument("--json", action="store_true", help="print JSON")


def command(load, arguments):
    """`python -m longtail sweep`; the model is loaded, by `load()`, once there is something to run."""
    methods = [name.strip() for name in arguments.methods.split(",") if name.strip()]
    parameter, _, text = arguments.over.partition("=")
    asked, questions = plan(methods, parameter.strip(), values(text)), _questions(arguments)
    if arguments.out and Path(arguments.out).suffix not in (".json", ".csv"):
        raise ValueError(f"--out takes a .json or .csv file, got {arguments.out!r}")
    llava, rows, progress = load(), [], Progress()
    options = {"max_new_tokens": arguments.max_new_tokens, "seed": arguments.seed}
    for step in sweep(llava, questions, asked, time_limit=arguments.time_limit, **options):
        if step.row:
            rows.append(step.row)
            progress(step.done, step.of)
    record = {"conditions": conditions(llava, len(questions), **options), "rows": rows}
    if arguments.out:
        Path(arguments.out).write_text(written(record, Path(arguments.out).suffix), encoding="utf-8")
    print(json.dumps(record) if arguments.json else table(record))


def _questions(arguments) -> list[tuple[str, str]]:
    if arguments.examples and arguments.image is None:
        entries = json.loads(EXAMPLES.read_text(encoding="utf-8"))
        return [(str(EXAMPLES.parent / entry["image"]), entry["question"]) for entry in entries]
    if arguments.examples or arguments.question is None:
        raise ValueError("sweep takes an image and a question, or --examples alone")
    return [(arguments.image, arguments.question)]


def written(record: dict, ending: str) -> str:
    """A record as the text of a .json or .csv file."""
    if ending == ".json":
        return json.dumps(record, indent=1) + "\n"
    out, names = io.StringIO(), list(dict.fromkeys(name for row in record["rows"] for name in row))
    writer = csv.DictWriter(out, [*names, "conditions"], restval="")
    writer.writeheader()
    writer.writerows(row | {"conditions": record["conditions"]} for row in record["rows"])
    return out.getvalue()


def table(record: dict) -> str:
    """A line for each reducer, as text; a star marks the front of agreement over tokens; then the conditions."""
    rows = summary(record["rows"])
    best = {row["spec"] for row in front(rows)}
    heads = ("", "", "tokens", "true tokens", "agreement", "same", "KL", "first ms", "of Full", "total ms", "of Full")
    lines = [heads, *(_cells(row, row["spec"] in best) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(cell.ljust(width) if i < 2 else cell.rjust(width) for i, (cell, width) in enumerate(pairs)).rstrip()
        for pairs in (list(zip(line, widths, strict=True)) for line in lines)
    ]
    refused = {f"{row['spec']} could not be run: {row['reason']}" for row in record["rows"] if "reason" in row}
    return (
        "\n".join([*text, "", "* nothing that costs as few true tokens agrees better", *sorted(refused), ""])
        + (record["conditions"])
    )


def _cells(row: dict, best: bool) -> tuple[str, ...]:
    shares = [f"{100 * row[name]:.0f} %" for name in ("agreement", "same", "first_of_full", "total_of_full")]
    ms = [f"{1000 * row[name]:.1f}" for name in ("first_token", "total")]
    return (
        *("*" if best else "", row["spec"], f"{row['visual']:.0f}", f"{row['layer_mean']:.0f}", *shares[:2]),
        *(f"{row['kl']:.3g}", ms[0], shares[2], ms[1], shares[3]),
    )
