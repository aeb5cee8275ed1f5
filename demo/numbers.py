"""Counts and times of an answer as HTML, laid out alike in every column so that a reader compares along a row."""

from html import escape

from longtail import Answer

ROWS = (
    *("Prompt", "Entering a layer", "Generated", "KV entries", "KV cache", "Given up later"),
    *("Time to first token", "Time per token", "Total"),
)
PHASES = ("preprocess", "vision", "method", "prefill", "decode")
MARKS = {
    "kept": "kept",
    "recovered": "recovered",
    "merged": "merged",
    "evicted": "given up later",
    "dropped": "dropped",
}
LONGEST_VALUE = 32  # characters of a parameter in a column's heading
ENDINGS = {
    "length": "cut off at the limit of new tokens",
    "time": "cut off at the time limit",
    "stopped": "stopped",
}


def table(answer: Answer | None, longest: float = 0.0) -> str:
    """Counts, times and the latency bar, `longest` seconds at full width; dashes before there is an answer."""
    if answer is None:
        return _kept("–", "–", 0) + _rows(dict.fromkeys(ROWS, "–")) + _bar({}, 1)
    t = answer.tokens
    return _kept(f"{t.visual:,}", f"{t.patches:,}", t.visual / t.patches if t.patches else 0) + (
        _rows(_counts(answer)) + _bar(phases(answer), max(longest, answer.seconds.total, 1e-9))
    )


def phases(answer: Answer) -> dict[str, float]:
    """Seconds of each phase; together they are the total."""
    s = answer.seconds
    return dict(zip(PHASES, (s.preprocess, s.vision, s.method, s.prefill, s.total - s.first_token), strict=True))


def given_up(answer: Answer) -> tuple[int, int]:
    """KV entries the language model dropped, merged or evicted, and how many of them were visual."""
    first, after = answer.visual_span
    gone = {*answer.lost, *(position for position, _ in answer.recycled)}
    return len(gone), sum(first <= position < after for position in gone)


def heading(answer: Answer) -> str:
    """The method, those of its parameters that are not at their default, and why the answer ended where it did."""
    changed = [
        f"{p.name.replace('_', ' ')} {_plain(getattr(answer.reducer, p.name))}"
        for p in answer.reducer.parameters()
        if getattr(answer.reducer, p.name) != p.default
    ]
    ending = [ENDINGS[answer.finished]] if answer.finished in ENDINGS else []
    return " · ".join([answer.method, *changed, *ending])


def legend(states) -> str:
    """How many patches each mark of the masked picture stands on."""
    found = [(state, words, int((states == state).sum())) for state, words in MARKS.items()]
    return " ".join(f'<span class="mark {state}">{words} {count:,}</span>' for state, words, count in found if count)


def conditions(answers: list[Answer], new: int, temperature: float, seed: int) -> str:
    """What the numbers were measured under."""
    one = answers[0]
    drawn = "greedy" if temperature == 0 else f"temperature {temperature:g}, seed {seed}"
    order = "one run" if len(answers) == 1 else "one run each, one after another in the order shown"
    return f"{one.model} on {one.device}, {one.dtype} · {drawn}, at most {new} new tokens · n = 1: {order}"


def seconds(value: float) -> str:
    """0.0088 as 8.8 ms, 1.29 as 1.29 s."""
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1000:.0f} ms" if value >= 0.0995 or value == 0 else f"{value * 1000:.1f} ms"


def size(value: float) -> str:
    """Bytes in binary units."""
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.2f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


def _counts(answer: Answer) -> dict[str, str]:
    t, s = answer.tokens, answer.seconds
    lost, visual = given_up(answer)
    values = (
        f"{t.prompt:,} tokens",
        f"{t.layer_mean:,.0f} visual",
        f"{t.generated:,} tokens",
        f"{t.kv_entries:,.0f} a layer",
        size(t.kv_bytes),
        f"{lost:,}, {visual:,} visual" if lost else "none",
        seconds(s.first_token),
        seconds(s.per_token) if s.per_token else "–",
        seconds(s.total),
    )
    return dict(zip(ROWS, values, strict=True))


def _kept(kept: str, of: str, share: float) -> str:
    percent = f"{share:.0%}".replace("%", " %") if share else ""
    return (
        f'<p class="kept"><b>{kept}</b> of {of} visual tokens <span>{percent}</span></p>'
        f'<div class="share" aria-hidden="true"><i style="width:{share:.2%}"></i></div>'
    )


def _rows(rows: dict[str, str]) -> str:
    body = "".join(f'<tr><th scope="row">{name}</th><td>{escape(value)}</td></tr>' for name, value in rows.items())
    return f'<table class="rows"><tbody>{body}</tbody></table>'


def _bar(phases: dict[str, float], longest: float) -> str:
    parts = "".join(f'<i class="{name}" style="width:{value / longest:.3%}"></i>' for name, value in phases.items())
    names = "".join(
        f'<li class="{name}">{name} <b>{seconds(phases[name]) if phases else "–"}</b></li>' for name in PHASES
    )
    bar = f'<div class="latency" aria-hidden="true">{parts}</div>'
    return f'{bar}<ul class="phases" aria-label="Where the time went">{names}</ul>'


def _plain(value) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"
