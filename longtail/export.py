"""A measured comparison and its files: JSON, CSV, and one self-contained HTML page."""

import base64
import csv
import html
import io
import json
import platform
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from .generate import Answer, answer
from .image import open_image
from .models.llava import Llava
from .reducer import Reducer

COLUMNS = ("method", "answer", "finished", "visual", "patches", "prompt", "generated", "kv_entries", "kv_bytes")
TIMES = ("preprocess", "vision", "method", "prefill", "first_token", "per_token", "total")


@dataclass(frozen=True, eq=False)
class Comparison:
    """Records of several methods on one image and question, and the conditions of their numbers."""

    records: list[dict]
    conditions: str
    crop: Image.Image
    grid: tuple[int, int]

    def record(self) -> dict:
        """Plain JSON values."""
        return {"conditions": self.conditions, "grid": list(self.grid), "answers": self.records}


def measure(
    llava: Llava, image, question: str, reducers: list[Reducer], repeat: int = 1, warm_up: bool = True, **options
) -> Comparison:
    """Each reducer alone on the engine, `repeat` rounds in rotated order after one uncounted run; seconds are medians.

    Raises ValueError for a repeat below 1, and whatever `generate` raises.
    """
    if repeat < 1:
        raise ValueError(f"repeat must be at least 1, got {repeat}")
    image = open_image(image)
    if warm_up:
        answer(llava, image, question, reducers[0], **options)
    rounds: list[list[Answer]] = [[] for _ in reducers]
    for turn in range(repeat):
        for i in range(len(reducers)):
            at = (i + turn) % len(reducers)
            rounds[at].append(answer(llava, image, question, reducers[at], **options))
    warmed = "after one warm-up run" if warm_up else "without warm-up"
    conditions = (
        f"{llava.name}, {str(llava.dtype).removeprefix('torch.')} on {device_name(llava.device)}, "
        f"{torch.get_num_threads()} threads; {warmed}, seconds are the median of {repeat} in rotated order"
    )
    return Comparison([_median(answers) for answers in rounds], conditions, llava.crop(image), llava.grid)


def write(comparison: Comparison, path: str):
    """Write a .json, .csv or .html file. Raises ValueError for another ending."""
    writers = {".json": _json, ".csv": _csv, ".html": _html}
    ending = Path(path).suffix
    if ending not in writers:
        raise ValueError(f"a comparison is written as {', '.join(writers)}, got {path!r}")
    Path(path).write_text(writers[ending](comparison), encoding="utf-8")


def _median(answers: list[Answer]) -> dict:
    record = answers[-1].record()
    runs = [a.record()["seconds"] for a in answers]
    record["seconds"] = {name: statistics.median(run[name] for run in runs) for name in TIMES}
    return record | {"repeat": len(answers)}


def device_name(device: torch.device) -> str:
    """What a CPU or GPU calls itself."""
    return torch.cuda.getdevice_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"


def _json(comparison: Comparison) -> str:
    return json.dumps(comparison.record())


def _csv(comparison: Comparison) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, [*COLUMNS, "params", *(f"seconds_{name}" for name in TIMES), "repeat", "conditions"])
    writer.writeheader()
    for record in comparison.records:
        flat = record | record["tokens"]
        row = {name: flat[name] for name in COLUMNS} | {"params": json.dumps(record["params"])}
        row |= {f"seconds_{name}": record["seconds"][name] for name in TIMES}
        writer.writerow(row | {"repeat": record["repeat"], "conditions": comparison.conditions})
    return out.getvalue()


STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1200px;padding:0 1rem;color:#1c2430}
main{display:flex;flex-wrap:wrap;gap:1.5rem}section{flex:1 1 240px}svg{width:100%;border-radius:6px}
dl{display:grid;grid-template-columns:auto auto;gap:.1rem 1rem;font-variant-numeric:tabular-nums}
dd{margin:0;text-align:right}
.answer{min-height:3em;font-weight:600}footer{color:#667;margin-top:2rem}"""


def _html(comparison: Comparison) -> str:
    """One page with pictures inside: nothing on it is fetched, no script runs."""
    question = html.escape(comparison.records[0]["question"])
    columns = "".join(_column(record, comparison) for record in comparison.records)
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>LongTail: {question}</title>"
        f"<meta name='viewport' content='width=device-width'><style>{STYLE}</style><h1>{question}</h1>"
        f"<main>{columns}</main><footer>{html.escape(comparison.conditions)}</footer></html>"
    )


def _column(record: dict, comparison: Comparison) -> str:
    tokens, seconds = record["tokens"], record["seconds"]
    rows = {
        "visual tokens": f"{tokens['visual']} of {tokens['patches']}",
        "prompt": tokens["prompt"],
        "generated": tokens["generated"],
        "KV entries": f"{tokens['kv_entries']:g}",
        "KV bytes": f"{tokens['kv_bytes']:,}",
        **{name.replace("_", " "): f"{1000 * seconds[name]:.1f} ms" for name in TIMES},
    }
    table = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows.items())
    params = html.escape(", ".join(f"{name} {value}" for name, value in record["params"].items()))
    return (
        f"<section><h2>{record['method']}</h2><p>{params}</p>{_masked(record, comparison)}"
        f"<p class='answer'>{html.escape(record['answer'])}</p><dl>{table}</dl></section>"
    )


def _masked(record: dict, comparison: Comparison) -> str:
    """The model's crop with dropped patches greyed, drawn from `role`."""
    png = io.BytesIO()
    comparison.crop.save(png, "PNG")
    rows, columns = comparison.grid
    dropped = [patch for patch, role in enumerate(record["role"]) if role == "dropped"]
    squares = "".join(f"M{patch % columns} {patch // columns}h1v1h-1z" for patch in dropped)
    picture = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
    return (
        f"<svg viewBox='0 0 {columns} {rows}' role='img' aria-label='patches kept by {record['method']}'>"
        f"<image href='{picture}' width='{columns}' height='{rows}'/>"
        f"<path d='{squares}' fill='#8a93a0' fill-opacity='.82'/></svg>"
    )
