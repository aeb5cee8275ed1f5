"""A result as a file in the visitor's hands: JSON, CSV, HTML, or a column as PNG. The server keeps no copy."""

import base64
import io
import json
import re
from pathlib import Path

import gradio as gr
from PIL import Image, ImageDraw, ImageFont

from longtail import REDUCERS, make
from longtail.export import WRITERS, Comparison
from longtail.reducer import spec
from longtail.report import LONGEST, read

from . import draw, numbers
from .board import Result
from .presets import Lanes
from .words import english

TYPES = {".json": "application/json", ".csv": "text/csv", ".html": "text/html", ".png": "image/png"}
FETCH = """
watch('value', () => {
  const {name, type, data} = JSON.parse(props.value), link = document.createElement('a');
  const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
  link.href = URL.createObjectURL(new Blob([bytes], {type}));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});"""
WIDTH, EDGE, INK, QUIET, PAPER, ACCENT = 720, 24, "#1d1b18", "#68635a", "#faf8f4", "#b5411a"


def download() -> gr.HTML:
    """What a file is handed over through: setting its value to one that was `packed` saves it in the browser."""
    return gr.HTML(None, js_on_load=FETCH, elem_id="download")


def packed(result: Result | None, ending: str) -> str:
    """A whole result as a file. Raises ValueError where there is none."""
    text = WRITERS[ending](_there(result).comparison)
    return _packed(f"longtail{ending}", text.encode())


def column(result: Result | None, at: int) -> str:
    """One column as a picture. Raises ValueError where nothing was answered in it."""
    if at not in _there(result).columns:
        raise ValueError("nothing was answered in this column yet: press Run first")
    record = result.comparison.records[result.columns.index(at)]
    png = io.BytesIO()
    sheet(record, result.comparison.crop, result.comparison.conditions).save(png, "PNG")
    name = re.sub(r"\W+", "", record["method"])
    return _packed(f"longtail-{name}.png", png.getvalue())


def replayed(path: str) -> Result:
    """The result that an exported JSON or HTML file holds. Raises ValueError with what is wrong about it."""
    file = Path(path)
    if file.suffix.lower() not in (".json", ".html"):
        raise ValueError(f"{file.name} is no report: open an exported .json or .html file")
    if file.stat().st_size > LONGEST:
        raise ValueError(f"{file.name} is too large: a report has at most {LONGEST // 1_000_000} MB")
    comparison = read(file.read_text(encoding="utf-8", errors="replace"))
    if len(comparison.records) > 4:
        raise ValueError(f"{file.name} compares {len(comparison.records)} methods: the page has four columns")
    return Result(comparison, tuple(range(len(comparison.records))), replayed=True)


def lanes(comparison: Comparison) -> Lanes:
    """The columns as a report has them, Full where its method is not known here. Raises ValueError for a setting that
    cannot be."""
    records = comparison.records
    return Lanes.of([spec(make(r["method"], **r["params"])) if r["method"] in REDUCERS else "Full" for r in records])


def masked(record: dict, crop: Image.Image) -> Image.Image:
    """The crop with what became of its patches; plain where the run was stopped before that was known."""
    return draw.masked(crop, record["views"], draw.fates(record).states()) if record["role"] else crop


def sheet(record: dict, crop: Image.Image, conditions: str) -> Image.Image:
    """A column to show around: method, question, answer, masked image, counts and times, conditions."""
    picture = masked(record, crop)
    picture = picture.resize((WIDTH - 2 * EDGE, round((WIDTH - 2 * EDGE) * picture.height / picture.width)))
    tokens = record["tokens"]
    lines = [
        (record["method"], 30, INK),
        (english(numbers.heading(record)).partition(" · ")[2], 15, QUIET),
        (record["question"], 18, QUIET),
        (record["answer"] or "-", 24, INK),
        None,
        (f"{tokens['visual']:,} of {tokens['patches']:,} visual tokens, prompt {tokens['prompt']:,}", 18, INK),
        *_times(record),
        (conditions, 13, QUIET),
    ]
    laid, y = [], EDGE
    for line in lines:
        height = picture.height + 12 if line is None else 0
        rows = [] if line is None else _wrapped(line[0], ImageFont.load_default(line[1]))
        laid.append((y, line, rows))
        y += height + sum(round(line[1] * 1.4) for _ in rows) + (6 if rows else 0)
    paper = Image.new("RGB", (WIDTH, y + EDGE), PAPER)
    pen = ImageDraw.Draw(paper)
    for top, line, rows in laid:
        if line is None:
            paper.paste(picture, (EDGE, top))
        for i, row in enumerate(rows):
            pen.text((EDGE, top + i * round(line[1] * 1.4)), row, fill=line[2], font=ImageFont.load_default(line[1]))
    return paper


def _times(record: dict) -> list[tuple]:
    """The line of times, none for an answer that was decoded beside others: the conditions say so."""
    if numbers.shared(record):
        return []
    first, total = (numbers.seconds(record["seconds"][name]) for name in ("first_token", "total"))
    return [(f"first token {first}, total {total}", 18, INK)]


def _wrapped(text: str, font) -> list[str]:
    """Words in lines no wider than the sheet; a word too long for one is cut."""
    rows = [""]
    for word in text.split():
        longer = f"{rows[-1]} {word}".strip()
        if font.getlength(longer) <= WIDTH - 2 * EDGE:
            rows[-1] = longer
        else:
            while font.getlength(word) > WIDTH - 2 * EDGE:
                cut = next(n for n in range(len(word), 0, -1) if font.getlength(word[:n]) <= WIDTH - 2 * EDGE)
                rows, word = [*rows, word[:cut]], word[cut:]
            rows.append(word)
    return [row for row in rows if row]


def _there(result: Result | None) -> Result:
    if result is None:
        raise ValueError("there is nothing to export yet: press Run, or replay a report")
    return result


def _packed(name: str, data: bytes) -> str:
    return json.dumps({"name": name, "type": TYPES[Path(name).suffix], "data": base64.b64encode(data).decode()})
