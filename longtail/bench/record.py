"""What a benchmark hands over: its conditions, a table for people, and the record as JSON, last line and dated file."""

import json
import os
import platform
import re
import time
from pathlib import Path

import torch
import transformers

from ..export import device_name

RESULTS = "assets/results"  # where a dated file goes unless a folder is named


def add_flags(command):
    """The flags of every benchmark's output."""
    command.add_argument(
        "--out",
        nargs="?",
        const=RESULTS,
        help=f"write the record: to a .json file, or to a dated one in a folder (alone: {RESULTS})",
    )
    command.add_argument("--json", action="store_true", help="print JSON alone, without the table")


def device_of(text: str) -> str:
    """The device a flag names; `auto` is the GPU where there is one. Raises ValueError for one that is not here."""
    if text == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise ValueError(f"--device must be cpu, cuda or cuda:N, got {text!r}")
    if text != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"--device {text}: there is no CUDA device here")
    return text


def conditions(device: str) -> dict:
    """What times depend on, as plain JSON values; `load`: what ran beside, mean of a minute."""
    return {
        **{"date": time.strftime("%Y-%m-%d %H:%M"), "device": device, "device_name": device_name(torch.device(device))},
        **{"processor": processor(), "processors": os.cpu_count(), "threads": torch.get_num_threads()},
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        **{"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__},
    }


def processor() -> str:
    """The CPU by its name, where the system says it."""
    told = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)$", told.read_text(), re.M) if told.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def machine(c: dict) -> str:
    """The conditions of every benchmark in words."""
    threads = f"{c['threads']} thread{'s' * (c['threads'] > 1)}" + ", its own time" * (c.get("clock") == "cpu")
    return (
        f"{c['date']}; {c['device_name']} ({c['device']}), {c['dtype']}, {threads}, load {c['load']} on "
        f"{c['processors']} processors ({c['processor']}), torch {c['torch']}, transformers {c['transformers']}"
    )


def checked(out: str | None) -> str | None:
    """What --out was given, if a record can be written there. Raises ValueError."""
    if out and Path(out).suffix not in ("", ".json") and not Path(out).is_dir():
        raise ValueError(f"--out takes a .json file or a folder, got {out!r}")
    return out


def place(out: str, record: dict) -> Path:
    """The file of --out: that .json file, or in that folder one named by date, benchmark and device."""
    if Path(out).suffix == ".json":
        return Path(out)
    under = record["conditions"]
    device = re.sub(r"[^a-z0-9]+", "-", under["device_name"].lower()).strip("-")
    return Path(out) / f"{under['date'][:10]}-{record['bench']}-{device}.json"


def write(record: dict, out: str | None):
    """The record's file, if one was asked for: whole at any moment, its folder made where there is none."""
    if out:
        path = place(out, record)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        part.replace(path)


def deliver(record: dict, words: str, arguments):
    """Write the file, print the words, and the record on the last line. Ends with status 1 where the run failed."""
    write(record, arguments.out)
    if not arguments.json:
        print(words, end="\n\n")
    print(json.dumps(record), flush=True)
    if record.get("failures"):
        raise SystemExit(f"longtail: {'; '.join(record['failures'])}")


def table(head: tuple, rows: list[tuple]) -> str:
    """Rows of texts in columns as wide as they need."""
    lines = [tuple(map(str, line)) for line in (head, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def span(ends: list[float]) -> str:
    """An interval as text."""
    return f"{ends[0]:.3g} to {ends[1]:.3g}"
