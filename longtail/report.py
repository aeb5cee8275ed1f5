"""A comparison as one self-contained HTML page, and such a page or its JSON opened again, all of it checked."""

import base64
import binascii
import html
import json
import struct
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .export import TIMES, Comparison, picture
from .image import open_image
from .similarity import objective
from .tokens import ROLES
from .versus import differences, overlap

LONGEST, MOST = 20_000_000, 10_000  # characters of a report; patches of an image, tokens of an answer
LARGEST, LONGER = 2048, 4  # pixels along a side of the crop, of 336 as a rule; one side in lengths of the other
MANY, FINEST = 10**12, 400  # more of anything is counted by nobody; patches along a side of the crop
DATA = '<template id="comparison">'  # never drawn, never run


# ---- opening


class Shape(BaseModel):
    """What a report may hold: finite numbers of the right kind; unknown names are passed over."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore")


Count = Annotated[int, Field(ge=0, le=MANY)]
Mean = Annotated[float, Field(ge=0, le=MANY)]
Ratio = Annotated[float, Field(ge=0, le=MANY)]
Seconds = Annotated[float, Field(ge=0, le=10**6)]
Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(max_length=20_000)]
Name = Annotated[str, Field(max_length=200)]
Indices = Annotated[list[Annotated[int, Field(ge=-1, le=10**6)]], Field(max_length=MOST)]
Numbers = Annotated[list[Annotated[float, Field(ge=-(10**9), le=10**9)]], Field(max_length=MOST)]
Pair = tuple[Count, Count]


class Tokens(Shape):
    patches: Count
    visual: Count
    prompt: Count
    generated: Count
    kv_entries: Mean
    kv_bytes: Count
    layer_mean: Mean
    layers: Annotated[list[Count], Field(max_length=1000)] = []
    newlines: Count = 0


class Times(Shape):
    preprocess: Seconds
    vision: Seconds
    method: Seconds
    prefill: Seconds
    first_token: Seconds
    per_token: Seconds
    total: Seconds


class Curve(Shape):
    knee: Annotated[int, Field(ge=1)]
    kept: Annotated[int, Field(ge=1)]
    similarity: Annotated[Numbers, Field(min_length=1)]


class TileCurve(Curve):
    order: Indices


class View(Shape):
    grid: tuple[Annotated[int, Field(ge=1, le=200)], Annotated[int, Field(ge=1, le=200)]]
    box: tuple[Share, Share, Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]]

    @model_validator(mode="after")
    def large_enough_to_draw(self):
        """No patch is a speck on the crop."""
        if any(count > FINEST * side for count, side in zip(self.grid, reversed(self.box[2:]), strict=True)):
            raise ValueError(f"its patches are too small: at most {FINEST} along the crop")
        return self


def _whole(curve: TileCurve, view: View) -> bool:
    """Whether a curve tells every patch of its view once, and falls."""
    n = len(curve.similarity)
    fits = n == len(curve.order) <= view.grid[0] * view.grid[1] and all(a >= b for a, b in pairwise(curve.similarity))
    return fits and sorted(curve.order) == list(range(n)) and max(curve.knee, curve.kept) <= n


class Faster(Shape):
    first_token: Ratio | None
    total: Ratio | None


class Versus(Shape):
    agreement: Share
    kl: Ratio | None
    faster: Faster


class Record(Shape):
    """An answer's record."""

    model: Name
    method: Name
    params: Annotated[dict[Name, bool | int | float | Text], Field(max_length=50)]
    question: Text
    preface: Text = ""
    history: Annotated[list[tuple[Text, Text]], Field(max_length=100)] = []
    answer: Text
    finished: Literal["eos", "length", "stopped", "time"]
    tokens: Tokens
    seconds: Times
    spread: dict[Literal[TIMES], tuple[Seconds, Seconds]] = {}
    reused: list[Name] = []
    repeat: Annotated[int, Field(ge=1, le=10_000)] = 1
    shared: bool = False
    turn: Pair | None = None
    memory: Count
    curve: Curve | None
    order: Indices | None
    views: Annotated[list[View], Field(max_length=100)]
    keep: Indices
    source: Indices
    role: Annotated[list[Literal[ROLES]], Field(max_length=MOST)]
    visual_span: Pair
    positions: Indices = []  # as the span says, in reports from before it was written
    tile_curves: Annotated[list[TileCurve | None], Field(max_length=100)] = []
    lost: Indices
    recycled: Annotated[list[Pair], Field(max_length=MOST)]
    steps: Annotated[list[Pair], Field(max_length=MOST)]
    versus: Versus | None = None
    device: Name
    dtype: Name
    graphs: Annotated[list[Literal["vision", "prefill", "decode"]], Field(max_length=3)] = []
    pixels: Name = "exact"
    seed: Annotated[int, Field(ge=-(2**63), le=2**63)]

    @model_validator(mode="after")
    def positions_from_the_span(self):
        """Where a report from before LLaVA-1.6 holds no positions, its visual tokens fill their span."""
        first, after = self.visual_span
        if not self.positions and after - first == len(self.keep):
            self.positions = list(range(*self.visual_span))
        return self

    @model_validator(mode="after")
    def hangs_together(self):
        """Counts that must agree with each other do."""
        patches, (first, after) = len(self.role), self.visual_span
        seen = sum(view.grid[0] * view.grid[1] for view in self.views)
        curve = self.curve and TileCurve(**dict(self.curve), order=self.order or [])
        curves = zip((curve, *self.tile_curves), self.views, strict=False)
        whole = (
            len(self.source) == patches in (0, seen) and seen <= MOST,
            self.tokens.prompt == 0 or self.tokens.prompt > self.tokens.visual,
            all(patch < patches for patch in self.keep) and all(token < len(self.keep) for token in self.source),
            first <= after and len(self.positions) in (0, len(self.keep)),
            all(first <= position < after for position in self.positions),
            len(set(self.positions)) == len(self.positions),
            {position for pair in self.recycled for position in pair} <= set(self.positions),
            len(self.tile_curves) in (0, len(self.views) - 1),
            curve is None or len(self.views) > 0,
            all(told is None or _whole(told, view) for told, view in curves),
        )
        if not all(whole):
            raise ValueError("its counts contradict each other")
        return self


class File(Shape):
    conditions: Annotated[str, Field(max_length=2000)]
    grid: tuple[Count, Count]
    answers: Annotated[list[Record], Field(min_length=1, max_length=8)]
    crop: Annotated[str, Field(pattern="^data:image/png;base64,")]


def read(text: str) -> Comparison:
    """The comparison that a JSON or HTML report holds. Raises ValueError, with a sentence, for anything else."""
    if len(text) > LONGEST:
        raise ValueError(f"the report has {len(text):,} characters: at most {LONGEST:,} are read")
    _, page, inside = text.partition(DATA)
    try:
        file = File.model_validate_json(inside.partition("</template>")[0] if page else text)
        crop = _crop(base64.b64decode(file.crop.partition(",")[2], validate=True))
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, wrong["loc"]))
        place = ascii(place[:80])[1:-1] or "the file"  # a key in the file may be anything
        raise ValueError(f"this is no report of a comparison: at {place}, {wrong['msg'].lower()}") from None
    except binascii.Error as error:
        raise ValueError(f"the picture in this report is damaged ({error}): export it again") from None
    records = [record.model_dump(mode="json", exclude_none=False) for record in file.answers]
    for record in records:
        for name in ("turn", "versus", "shared"):
            if not record[name]:
                del record[name]
    return Comparison(records, file.conditions, crop, file.grid)


def _crop(png: bytes) -> Image.Image:
    """The picture of a report. Raises ValueError, before a pixel is decoded, where no model sees such a one."""
    width, height = struct.unpack(">II", png[16:24].ljust(8, b"\0"))  # of a PNG's header, which stands first
    if png[:4] == b"\x89PNG" and not max(width, height) <= min(LARGEST, LONGER * min(width, height)):
        raise ValueError(
            f"the picture in this report is {width} x {height}, and what a model sees has at most {LARGEST} pixels a "
            f"side, one no more than {LONGER} times the other: export it again"
        )
    return open_image(png)


# ---- the page

STYLE = """:root{color-scheme:light dark;--line:#8884}
:root{--quiet:light-dark(#68635a,#a8a195);--accent:light-dark(#b5411a,#ff8a57)}
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1280px;padding:0 1rem;
background:light-dark(#faf8f4,#141312);color:light-dark(#1d1b18,#edeae3)}
h1{font:italic 1.7rem/1.3 Georgia,serif}
main{display:grid;grid-template-columns:repeat(auto-fit,minmax(260px,1fr));gap:2rem}
h2{border-bottom:2px solid;margin:0;font-size:1.2rem}svg{width:100%;display:block;margin:.8rem 0}
.params,footer,caption{color:var(--quiet);font-size:.85rem}.params{min-height:2.6em}
.answer{min-height:3em;font:1.25rem/1.4 Georgia,serif;border-left:3px solid var(--accent);padding-left:1rem}
ins{text-decoration:underline 2px var(--accent);text-underline-offset:3px}del{color:var(--quiet)}
table{width:100%;border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}caption{text-align:left}
td,th{border-bottom:1px solid var(--line);padding:.2rem 0;font-weight:400;text-align:left}td{text-align:right}
section table td small{color:var(--quiet);margin-right:.5em}
.overlap{width:auto;margin-top:2rem}.overlap :is(td,th){padding-right:1.5rem}
footer{margin-top:2rem;border-top:1px solid var(--line);padding-top:1rem}"""


def page(comparison: Comparison) -> str:
    """One page with pictures inside: nothing on it is fetched, no script runs; `read` opens it again."""
    records = comparison.records
    question = html.escape(records[0]["question"])
    reference = next((record for record in records if record["method"] == "Full"), None)
    columns = "".join(_column(record, reference, comparison) for record in records)
    data = json.dumps(comparison.file()).replace("<", "\\u003c").replace("&", "\\u0026")
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>LongTail: {question}</title>"
        f"<meta name='viewport' content='width=device-width'><style>{STYLE}</style><h1>{question}</h1>"
        f"<main>{columns}</main>{_overlaps(records)}<footer>{html.escape(comparison.conditions)}</footer>"
        f"{DATA}{data}</template></html>"
    )


def _column(record: dict, reference: dict | None, comparison: Comparison) -> str:
    params = html.escape(", ".join(f"{name} {value}" for name, value in record["params"].items()))
    table = "".join(f"<tr><th scope='row'>{name}</th><td>{value}</td></tr>" for name, value in _rows(record).items())
    return (
        f"<section><h2>{html.escape(record['method'])}</h2><p class='params'>{params}</p>"
        f"<p class='answer'>{_words(record, reference)}</p>{_masked(record, comparison)}{_curve(record)}"
        f"<table><tbody>{table}</tbody></table></section>"
    )


def _rows(record: dict) -> dict[str, str]:
    tokens, against = record["tokens"], record.get("versus")
    rows = {
        "visual tokens": f"{tokens['visual']} of {tokens['patches']}",
        "entering a layer": f"{tokens['layer_mean']:.0f} visual",
        "prompt": tokens["prompt"],
        "generated": tokens["generated"],
        "KV entries": f"{tokens['kv_entries']:g}",
        "KV bytes": f"{tokens['kv_bytes']:,}",
        **{name.replace("_", " "): _time(record, name) for name in TIMES},
        **({} if record.get("shared") else {name: "reused" for name in record.get("reused", ())}),
    }
    if against:
        faster = {} if record.get("shared") else against["faster"]
        faster = {name: f"{value:.2f}×" for name, value in faster.items() if value is not None}
        rows |= {"agreement with Full": f"{against['agreement']:.0%}"}
        rows |= {} if against["kl"] is None else {"first-token KL": f"{against['kl']:.2g} nats"}
        rows |= {f"{name.replace('_', ' ')} faster than Full": value for name, value in faster.items()}
    return rows


def _time(record: dict, name: str) -> str:
    if record.get("shared"):
        return "–"
    ends = record.get("spread", {}).get(name)
    spread = f"<small>{1000 * ends[0]:.1f} to {1000 * ends[1]:.1f}</small>" if ends else ""
    return f"{spread}{1000 * record['seconds'][name]:.1f} ms"


def _words(record: dict, reference: dict | None) -> str:
    """The answer; beside the unpruned one, what was added and what is missing."""
    if reference is None or reference is record:
        return html.escape(record["answer"])
    tags = {"same": "{}", "added": "<ins>{}</ins>", "missing": "<del>{}</del>"}
    line = differences(record["answer"], reference["answer"])
    return " ".join(tags[kind].format(html.escape(words)) for kind, words in line)


def _masked(record: dict, comparison: Comparison) -> str:
    """The model's crop with dropped patches veiled, drawn from `role`."""
    name, start, veil = html.escape(record["method"]), 0, ""
    for view in record["views"] if record["role"] else ():
        (rows, columns), (left, top, wide, high) = view["grid"], view["box"]
        w, h = wide / columns, high / rows
        for i in range(rows * columns):
            if record["role"][start + i] == "dropped":
                veil += f"M{left + w * (i % columns):.4f} {top + h * (i // columns):.4f}h{w:.4f}v{h:.4f}h{-w:.4f}z"
        start += rows * columns
    shape = comparison.crop.height / comparison.crop.width
    return (
        f"<svg viewBox='0 0 1 {shape:.4f}' role='img' aria-label='patches kept by {name}'>"
        f"<image href='{picture(comparison.crop)}' width='1' height='{shape:.4f}' preserveAspectRatio='none'/>"
        f"<path d='{veil}' transform='scale(1 {shape:.4f})' fill='#e2e0db' fill-opacity='.84'/></svg>"
    )


def _curve(record: dict) -> str:
    """Similarity by rank, the knee dashed, the cut solid, the objective dotted; all from zero to their own maximum."""
    if not record["curve"]:
        return ""
    curve, knee, kept = np.array(record["curve"]["similarity"]), record["curve"]["knee"], record["curve"]["kept"]
    f, n = objective(curve), len(curve)

    def line(values, look: str) -> str:
        most = max(float(values.max()), 1e-12)
        points = " ".join(f"{400 * i / n:.1f},{150 - 130 * max(float(v), 0) / most:.1f}" for i, v in enumerate(values))
        return f"<polyline points='{points}' fill='none' {look}/>"

    marks = "".join(
        f"<path d='M{400 * (i - 1) / n:.1f} 10V150' stroke='currentColor' stroke-dasharray='{dash}'/>"
        for i, dash in ((knee, "5 4"), (kept, "none"))
    )
    return (
        f"<svg viewBox='0 0 400 170' role='img' aria-label='similarity curve, knee {knee}, kept {kept} of {n}'>{marks}"
        + line(f, "stroke='var(--quiet)' stroke-dasharray='2 3'")
        + line(curve, "stroke='var(--accent)' stroke-width='2'")
        + f"<text x='0' y='166' font-size='12' fill='currentColor'>knee i* = {knee}, kept {kept} of {n}</text></svg>"
    )


def _overlaps(records: list[dict]) -> str:
    if len(records) < 2:
        return ""
    names = [html.escape(record["method"]) for record in records]
    heads = "".join(f"<th scope='col'>{name}</th>" for name in names)
    body = "".join(
        f"<tr><th scope='row'>{name}</th>"
        + "".join(f"<td>{overlap(mine['keep'], other['keep']):.2f}</td>" for other in records)
        + "</tr>"
        for name, mine in zip(names, records, strict=True)
    )
    caption = "<caption>Overlap (intersection over union) of the kept patches</caption>"
    return f"<table class='overlap'>{caption}<thead><tr><td></td>{heads}</tr></thead><tbody>{body}</tbody></table>"
