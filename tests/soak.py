"""What the page endures: many visitors, Stop at any moment, closed tabs, no memory left. `make soak`, or some of it:

    .venv/bin/python tests/soak.py [NAME ...] [--out FILE]

Every trial serves the page in this process as app.py does, so that it can look inside the engine, and comes over HTTP
or with a browser. It prints what was done, the figure and its limit; the last word is a table. Exits 1 where a limit
was missed.
"""

import argparse
import datetime
import importlib.util
import json
import os
import platform
import sys
import time
import traceback
from pathlib import Path

import gradio
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from trials.figures import Figure
from trials.hanging import hanging, late
from trials.memory import command_line, gpu, memory
from trials.mixed import mixed
from trials.queueing import queue
from trials.stand import Stand, stand
from trials.stopping import leave, stop, twice
from trials.visiting import isolation

import longtail


def elsewhere(module: str):
    """The trial of a test's file: its `soak()` gives (name, figure, limit, ok) a line."""

    def trial(_: Stand) -> list[Figure]:
        lines = importlib.import_module(module).soak() if importlib.util.find_spec(module) else []
        return [Figure(str(name), str(figure), str(limit), ok) for name, figure, limit, ok in lines] or [
            Figure(f"tests/{module}.py", "not run: it is not there", "-", None)
        ]

    trial.__doc__ = f"What tests/{module}.py has too much of for the tests."
    return trial


TRIALS = {
    "isolation": isolation,
    "queue": queue,
    "stop": stop,
    "twice": twice,
    "leave": leave,
    "late": late,
    "hanging": hanging,
    "memory": memory,
    "command": command_line,
    "gpu": gpu,
    "mixed": mixed,
    "images": elsewhere("hostile"),
    "determinism": elsewhere("test_determinism"),
}
LIMITS = {"late": 1.0, "hanging": 1.0}  # seconds of a run, for trials of that limit


def conditions(llava) -> dict:
    """Under what the figures were taken."""
    versions = {"python": platform.python_version(), "gradio": gradio.__version__, "torch": torch.__version__}
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} processors, {torch.get_num_threads()} threads",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "model": llava.description,
        "versions": versions,
    }


def main(argv: list[str] | None = None) -> int:
    """Run the trials; 1 where a limit was missed."""
    parser = argparse.ArgumentParser(prog="soak.py", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which trials: {', '.join(TRIALS)} (default: all)")
    parser.add_argument("--out", type=Path, help="write the table and its conditions there, as JSON")
    asked = parser.parse_args(argv)
    if unknown := set(asked.names) - set(TRIALS):
        parser.error(f"there is no trial {', '.join(sorted(unknown))}: choose of {', '.join(TRIALS)}")
    llava, table, seconds = longtail.load("tiny"), {}, {}
    before = conditions(llava)
    for name in asked.names or TRIALS:
        print(f"{name}: {TRIALS[name].__doc__}", flush=True)
        began = time.perf_counter()
        try:
            with stand(llava, LIMITS.get(name, 60.0)) as here:
                table[name] = TRIALS[name](here)
        except Exception as error:  # a trial that broke off is missed, and the others still run
            traceback.print_exc()
            table[name] = [Figure("broke off", f"{type(error).__name__}: {error}", "-", False)]
        seconds[name] = round(time.perf_counter() - began, 1)
        for figure in table[name]:
            print(f"  {line(figure)}", flush=True)
    print("\n" + "\n".join(f"{name:12} {line(figure)}" for name, figures in table.items() for figure in figures))
    print(json.dumps(before))
    if asked.out:
        lines = {name: [figure._asdict() for figure in figures] for name, figures in table.items()}
        asked.out.write_text(json.dumps({"conditions": before, "seconds": seconds, "trials": lines}, indent=1))
    return int(any(figure.ok is False for figures in table.values() for figure in figures))


def line(figure: Figure) -> str:
    """A figure in one line."""
    verdict = {True: "ok", False: "MISSED", None: "not run"}[figure.ok]
    return f"{verdict:7} {figure.name}: {figure.figure} (limit {figure.limit})"


if __name__ == "__main__":
    sys.exit(main())
