"""Counts and times of an answer's record as HTML, laid out alike in every column: a reader compares along a row."""

from html import escape

from longtail import REDUCERS
from longtail.export import PHASES, phases
from longtail.versus import overlap

from .words import say

ROWS = (
    *("prompt", "entering", "generated", "kv_entries", "kv_cache", "given_up"),
    *("ttft", "tpot", "total", "agreement", "kl"),
)
CAPTURED = {"vision": "as_vision", "prefill": "as_prefill", "decode": "as_decode"}  # phases that ran as CUDA graphs
LONGEST_VALUE = 32  # characters of a parameter in a column's heading
ENDINGS = ("length", "time", "stopped")


def table(record: dict | None, longest: float = 0.0, arithmetic: str = "") -> str:
    """Counts, times and the latency bar, `longest` seconds at full width; dashes before there is an answer, and for the
    times of one that was decoded beside others.

    `arithmetic` is what the counts would cost elsewhere, by calculation.
    """
    if record is None:
        return _kept("–", "–", 0) + _rows(dict.fromkeys(ROWS, "–")) + _bar({}, 1) + _arithmetic("")
    t = record["tokens"]
    return (
        _kept(f"{t['visual']:,}", f"{t['patches']:,}", t["visual"] / t["patches"] if t["patches"] else 0)
        + _rows(_counts(record))
        + _bar({} if shared(record) else phases(record), max(longest, record["seconds"]["total"], 1e-9), record)
        + _arithmetic(arithmetic)
    )


def shared(record: dict) -> bool:
    """Whether it was decoded beside others: then none of its times is a latency."""
    return record.get("shared", False)


def given_up(record: dict) -> tuple[int, int]:
    """KV entries the language model dropped, merged or evicted, and how many of them were visual."""
    visual = set(record["positions"])
    gone = {*record["lost"], *(position for position, _ in record["recycled"])}
    return len(gone), len(gone & visual)


def heading(record: dict) -> str:
    """The method, those of its parameters that are not at their default, why the answer ended where it did, and its
    turn among the others."""
    usual = {p.name: p.default for p in REDUCERS[record["method"]].parameters()} if record["method"] in REDUCERS else {}
    changed = [
        f"{name.replace('_', ' ')} {_plain(value)}"
        for name, value in record["params"].items()
        if value != usual.get(name)
    ]
    ending = [say(record["finished"])] if record["finished"] in ENDINGS else []
    turn = [say("ran", *record["turn"])] if "turn" in record else []
    return " · ".join([record["method"], *changed, *ending, *turn])


def overlaps(records: dict[int, dict]) -> str:
    """The kept sets of the columns against each other, as a small matrix; nothing for a single one."""
    whole = {column: record for column, record in records.items() if record["role"]}
    if len(whole) < 2:
        return ""
    names = [escape(record["method"]) for record in whole.values()]
    heads = "".join(f'<th scope="col">{name}</th>' for name in names)
    body = ""
    for name, mine in zip(names, whole.values(), strict=True):
        shares = [overlap(mine["keep"], other["keep"]) for other in whole.values()]
        body += f'<tr><th scope="row">{name}</th>' + "".join(map(_share, shares)) + "</tr>"
    return (
        f'<h3>{say("compared")}</h3><div class="scroll"><table><thead><tr><td></td>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div><p>{say('compared_note')}</p>"
    )


def conditions(records: list[dict], new: int, temperature: float, repeat: int) -> str:
    """What the numbers were measured under."""
    one = records[0]
    drawn = say("greedy") if temperature == 0 else say("drawn", f"{temperature:g}", one["seed"])
    turns = sorted((r for r in records if "turn" in r), key=lambda r: r["turn"])
    order = say("often", repeat) if repeat > 1 else say("once", ", ".join(r["method"] for r in turns))
    order = say("together") if shared(one) else order
    how = [say("fast")] * (one.get("pixels") == "fast")
    how += [say("graphs", ", ".join(say(CAPTURED[phase]) for phase in one["graphs"]))] if one.get("graphs") else []
    precision = ", ".join([one["dtype"], *how])
    return say("conditions", one["model"], one["device"], precision, drawn, new, order)


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


def _counts(record: dict) -> dict[str, str]:
    t = record["tokens"]
    lost, visual = given_up(record)
    against = record.get("versus") or {}
    kl, newlines = against.get("kl"), t.get("newlines")
    values = (
        say("and_newlines", f"{t['prompt']:,}", newlines) if newlines else say("tokens", f"{t['prompt']:,}"),
        say("visual", f"{t['layer_mean']:,.0f}"),
        say("tokens", f"{t['generated']:,}"),
        say("a_layer", f"{t['kv_entries']:,.0f}"),
        size(t["kv_bytes"]),
        say("gone", f"{lost:,}", f"{visual:,}") if lost else say("nothing"),
        _time(record, "first_token"),
        _time(record, "per_token"),
        _time(record, "total"),
        f"{against['agreement']:.0%}".replace("%", " %") if against else "–",
        "–" if kl is None else say("nats", f"{kl:.3f}" if kl >= 0.0005 else "&lt; 0.001"),
    )
    return dict(zip(ROWS, values, strict=True))


def _time(record: dict, name: str) -> str:
    """A time, its spread where it was repeated, and how many times faster than the unpruned one it is; a dash where
    there is none."""
    if shared(record) or (name == "per_token" and not record["seconds"][name]):
        return "–"
    faster = (record.get("versus") or {}).get("faster", {}).get(name)
    ends = [seconds(end) for end in record.get("spread", {}).get(name, ())]
    spread = f"<small>{say('between', *ends)}</small>" if ends else ""
    ratio = f"<em>{faster:.2f}×</em>" if faster and record["method"] != "Full" else ""
    return f"{spread}{ratio}{seconds(record['seconds'][name])}"


def _share(value: float) -> str:
    return f'<td style="--share:{value:.3f}">{value:.2f}</td>'


def _kept(kept: str, of: str, share: float) -> str:
    percent = f"{share:.0%}".replace("%", " %") if share else ""
    return (
        f'<p class="kept"><b>{kept}</b> {say("of_tokens", of)} <span>{percent}</span></p>'
        f'<div class="share" aria-hidden="true"><i style="width:{share:.2%}"></i></div>'
    )


def _rows(rows: dict[str, str]) -> str:
    body = "".join(f'<tr><th scope="row">{say(name)}</th><td>{value}</td></tr>' for name, value in rows.items())
    return f'<table class="rows"><tbody>{body}</tbody></table>'


def _bar(phases: dict[str, float], longest: float, record: dict | None = None) -> str:
    """The phases from zero, those taken over from an earlier answer said to be, and how many runs the times are of."""
    reused = record["reused"] if record else ()
    parts = "".join(f'<i class="{name}" style="width:{value / longest:.3%}"></i>' for name, value in phases.items())
    times = {name: say("reused") if name in reused else seconds(phases[name]) for name in PHASES if phases}
    names = "".join(f'<li class="{name}">{say(name)} <b>{times.get(name, "–")}</b></li>' for name in PHASES)
    bar = f'<div class="latency" aria-hidden="true">{parts}</div>'
    return f'{bar}<ul class="phases" aria-label="{say("where_time")}">{names}{_badge(record)}</ul>'


def _badge(record: dict | None) -> str:
    """How many runs the times are of; of a preview, that it is one."""
    if record is None:
        return ""
    return f'<li class="badge">{say("preview") if shared(record) else say("n_is", record.get("repeat", 1))}</li>'


def _arithmetic(text: str) -> str:
    return f'<p class="arithmetic"><b>{say("arithmetic")}</b> {text or "–"}</p>'


def _plain(value) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"
