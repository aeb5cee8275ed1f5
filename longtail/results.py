"""What came of an evaluation: rows with intervals, the table of the card. The figure is in `pareto`.

A record, as `evaluate --out` writes it, is {"conditions", "timed", "weights", "rows"}: a sentence, under what the times
were taken (more than one entry: only `of_full` compares), a fingerprint of the model, and a row for each method and
budget, in the order asked for. Keys of a row:

method, budget   the cell; budget null: the method as it comes
params           the method's parameters; a seed is the scene's
reason           why the cell could not be run; such a row has no key below
scenes, questions  how many of each; questions of the exact families
visual           visual tokens that enter the language model, mean
tokens           visual tokens that enter a decoder layer, mean over layers and questions: what the model really reads
mean, mean_95    accuracy, mean over the exact families, and its 95 % interval
share, share_95  accuracy, share of all exact questions, and its 95 % interval
agreement        share of the exact questions answered as Full answers them; null where Full was not asked
first_token, total  seconds to the first and to the last token, medians over the exact questions
of_full          time to the first token over Full's on the same question a moment before, median: compares between runs
                 (these three are null where an answer was decoded beside others)
families         {name: [accuracy, questions]}; "describe" is the share of things named in full

Intervals are percentiles of a bootstrap over scenes, whose questions are not independent. Every row has the same draws.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
from pydantic import Discriminator, Field, Tag, ValidationError

from .report import Count, Name, Seconds, Shape, Share
from .tiny.questions import FAMILIES, Question, described, score

DESCRIBE, GROUND, ORACLE = "describe", "describe: background", "Oracle"
TIMES = "first_token", "total", "of_full"
RESAMPLES = 2000
LARGEST = 4 * 2**20  # bytes of a file that is read
Tokens = Annotated[float, Field(ge=0, le=10**6)]
Budget = Annotated[int, Field(ge=1, le=10**6)] | None


@dataclass(frozen=True)
class Said:
    """One answer, as far as rows need it."""

    text: str
    visual: int
    tokens: float
    first_token: float | None  # None, as those below, where it was decoded beside others
    total: float | None
    full: float | None  # seconds to Full's first token, on the same question a moment before


def row(asked: dict[tuple, Question], said: dict[tuple, Said], full: dict[tuple, Said] | None = None) -> dict:
    """The measured part of a row. All keys are (scene, family); `full` is what Full said."""
    marks = {key: score(question.family, said[key].text, question.answer) for key, question in asked.items()}
    families = {name: [mark for (_, family), mark in marks.items() if family == name] for name in FAMILIES}
    families[GROUND] = [
        float(described(said[key].text)["background"] == described(question.answer)["background"])
        for key, question in asked.items()
        if question.family == DESCRIBE
    ]
    exact = [key for key in asked if key[1] != DESCRIBE] or list(asked)
    accuracy = _accuracy({key: marks[key] for key in exact})
    return {
        "scenes": len({seed for seed, _ in asked}),
        "questions": len(exact),
        "visual": round(_mean([said[key].visual for key in asked]), 2),
        "tokens": round(_mean([said[key].tokens for key in asked]), 2),
        **accuracy,
        "agreement": round(_mean([said[key].text == full[key].text for key in exact]), 4) if full else None,
        **_times([said[key] for key in exact]),
        "families": {name: [round(_mean(part), 4), len(part)] for name, part in families.items() if part},
    }


def _times(said: list[Said]) -> dict:
    """Medians over the answers; None where one of them has no times."""
    if not all(one.full for one in said):
        return dict.fromkeys(TIMES)
    return {
        "first_token": round(median(one.first_token for one in said), 5),
        "total": round(median(one.total for one in said), 5),
        "of_full": round(median(one.first_token / one.full for one in said), 4),
    }


def _mean(values: list) -> float:
    return sum(values) / len(values)


def _accuracy(marks: dict[tuple, float]) -> dict:
    """Mean over families and share over questions, each with its interval."""
    seeds, names = (sorted({key[i] for key in marks}) for i in (0, 1))
    right, asked = np.zeros((2, len(seeds), len(names)))
    for (seed, family), mark in marks.items():
        right[seeds.index(seed), names.index(family)] += mark
        asked[seeds.index(seed), names.index(family)] += 1
    draws = np.random.default_rng(0).multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), RESAMPLES)
    weights = np.concatenate([np.ones((1, len(seeds))), draws])  # [1 + R, scenes]; the first counts each scene once
    right, asked = weights @ right, weights @ asked  # [1 + R, families]
    with np.errstate(invalid="ignore"):
        mean = np.nanmean(right / asked, axis=1)  # a family that a resample has no question of does not count there
    share = right.sum(1) / asked.sum(1)
    record = {}
    for name, values in (("mean", mean), ("share", share)):
        ends = np.percentile(values[1:], (2.5, 97.5))
        record |= {name: round(float(values[0]), 4), f"{name}_95": [round(float(end), 4) for end in ends]}
    return record


def write(record: dict, path: Path):
    """The record as JSON, a row a line. What was there before is there until the new file is whole."""
    rows = ",\n".join(json.dumps(row) for row in record["rows"])
    head = json.dumps({name: value for name, value in record.items() if name != "rows"}, indent=0)
    part = path.with_name(path.name + ".part")
    part.write_text(f'{head[:-2]},\n"rows": [\n{rows}\n]}}\n', encoding="utf-8")
    part.replace(path)


# ---- reading a file that anybody may have written


class Refused(Shape):
    method: Name
    budget: Budget
    reason: Annotated[str, Field(max_length=2000)]


class Measured(Shape):
    method: Name
    budget: Budget
    scenes: Count
    questions: Count
    visual: Tokens
    tokens: Tokens
    mean: Share
    mean_95: tuple[Share, Share]
    share: Share
    share_95: tuple[Share, Share]
    agreement: Share | None
    first_token: Seconds
    total: Seconds
    of_full: Seconds
    families: Annotated[dict[Name, tuple[Share, Count]], Field(max_length=40)]


def _kind(row) -> str:
    return "refused" if isinstance(row, dict) and "reason" in row else "measured"


Row = Annotated[Annotated[Refused, Tag("refused")] | Annotated[Measured, Tag("measured")], Discriminator(_kind)]


class File(Shape):
    conditions: Annotated[str, Field(max_length=8000)]
    timed: Annotated[list[Annotated[str, Field(max_length=1000)]], Field(min_length=1, max_length=40)]
    rows: Annotated[list[Row], Field(min_length=1, max_length=2000)]


def read(path: Path) -> dict:
    """The record of a file that `evaluate --out` wrote, with the keys named above alone, less `params` and `weights`.

    Raises ValueError, in a sentence, for whatever else the file holds: nothing of it is trusted.
    """
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path.name} has more than {LARGEST // 2**20} MiB: this is no file of results")
    try:
        return File.model_validate_json(path.read_bytes()).model_dump(mode="json")
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part)[:60] for part in wrong["loc"] if part not in ("refused", "measured"))
        said = f"at {place or 'its beginning'}, {wrong['msg'].lower()[:120]}"
        untimed = bool({*wrong["loc"][-1:]} & {*TIMES}) and wrong["type"] == "float_type"
        wish = "give one that `longtail evaluate --out` wrote" + ", with times: without --batch" * untimed
        raise ValueError(f"{path.name} is no file of results: {said}; {wish}") from None


# ---- the table


def table(record: dict) -> str:
    """Markdown: per cent and milliseconds, then the conditions of these numbers."""
    fine = [row for row in record["rows"] if "reason" not in row]
    names = [name for name in (*FAMILIES, GROUND) if fine and name in fine[0]["families"]]
    heads = ["method", "tokens", "true tokens", "mean", "95 %", "share", "95 %", "as Full"]
    heads += ["first ms", "total ms", "of Full"]
    lines = [f"| {' | '.join([*heads, *names])} |", "|---" * (len(heads) + len(names)) + "|"]
    lines += [f"| {' | '.join(_cells(row, names))} |" for row in fine]
    refused = [row for row in record["rows"] if "reason" in row]
    said = [f"{_name(row)} could not be run: {row['reason']}." for row in refused]
    return "\n".join([*lines, "", record["conditions"], *said])


def _cells(row: dict, names: list[str]) -> list[str]:
    ends = ["{:.1f} to {:.1f}".format(*(100 * end for end in row[f"{kind}_95"])) for kind in ("mean", "share")]
    alike = "" if row["agreement"] is None else f"{100 * row['agreement']:.1f}"
    accuracy = [f"{100 * row['mean']:.1f}", ends[0], f"{100 * row['share']:.1f}", ends[1], alike]
    times = [*((row[name], 1000, 1) for name in ("first_token", "total")), (row["of_full"], 100, 0)]
    seconds = ["" if value is None else f"{factor * value:.{digits}f}" for value, factor, digits in times]
    families = [f"{100 * row['families'][name][0]:.1f}" for name in names]
    return [row["method"], f"{row['visual']:.0f}", f"{row['tokens']:.0f}", *accuracy, *seconds, *families]


def _name(row: dict) -> str:
    return row["method"] if row["budget"] is None else f"{row['method']} at {row['budget']}"
