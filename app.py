"""Serve the page: read the flags, load the model, warm it up, build, launch. Also what a Hugging Face Space runs.

Every flag has an environment variable: --time-limit is LONGTAIL_TIME_LIMIT, and so on.
"""

# ruff: noqa: E402 (Gradio reads the environment when it is imported)

import argparse
import importlib
import os
import re
import sys
from functools import partial
from pathlib import Path

from demo import early, uploads

ALONE = __name__ == "__main__"  # then port, log and signals of this process are ours
UPLOADS = uploads.own(os.environ.get("GRADIO_TEMP_DIR"))
EARLY = early.begun(sys.argv[1:]) if ALONE else None  # before the seconds that the imports take
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TQDM_DISABLE", "1")  # its bars are no lines of a log
os.environ["GRADIO_TEMP_DIR"] = str(UPLOADS)  # all before Gradio is imported

from demo import space

WANTED = space.wanted()  # between the imports, so that none is sorted before a Space's own, which precedes torch

from PIL import Image

import longtail
from demo import journal, server
from demo.gallery import RECORDED
from demo.login import logins
from demo.page import build
from demo.presets import FEWEST, FIRST
from longtail.models.loading import Lines, Progress

SITE = re.compile(r"https?://(\*\.)?[\w.-]+(:\d+)?")


class Parser(argparse.ArgumentParser):
    """An argument parser whose refusal is one sentence."""

    def error(self, message):
        raise ValueError(message)


def main(arguments: list[str] | None = None) -> int:
    """Serve until interrupted. Returns 2 where what was asked for cannot be had, 1 for anything else, in a sentence."""
    try:
        flags = parsed(arguments)
        if ALONE:
            journal.listen(flags.log, flags.log_content)
        load = partial(loaded, flags)
        name, llava, note = space.start(flags.model, load, miniature)
        names = tuple(dict.fromkeys([name, *flags.models]))
        built = {"models": names, "load": load, "note": note, "recorded": flags.recorded, "waiting": flags.queue}
        page = build(llava, flags.time_limit, journal=journal.Journal(flags.log_content), **built)
        place = {"server_name": flags.host, "server_port": flags.port, "root_path": flags.root_path}
        place |= {"auth": flags.auth_file, "mcp_server": flags.mcp, "share": flags.share}
        server.serve(page, EARLY, flags.metrics, flags.frame_ancestors, **place).until_told()
    except ValueError as error:
        print(f"app.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # the hub or the port
        print(f"app.py: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    return 0


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The flags, each with its environment variable as default. Raises ValueError with a sentence."""
    parser = Parser("app.py", description="Serve the LongTail page.")

    def flag(name: str, default: str | None, help: str, **options):
        variable = "LONGTAIL_" + name.upper().replace("-", "_")
        default = os.environ.get(variable) or default
        parser.add_argument(f"--{name}", default=default, help=f"{help} (default: {default}; {variable})", **options)

    flag("model", WANTED, "a known name, a hub id or a folder; none: a page that only replays reports")
    flag("models", "", "more models that visitors may change to, comma between", type=names)
    flag("revision", None, "branch, tag or commit of --model on the hub")
    flag("adapter", None, "a LoRA adapter for --model: hub id or folder")
    flag("recorded", str(RECORDED), "a folder of exported comparisons that visitors may open", type=folder)
    flag("dtype", "auto", "auto, float32, bfloat16 or float16")
    flag("quantization", "none", "none, int8 or int4", metavar="{none,int8,int4}")
    flag("double-quantization", "on", "off: int4 keeps its scales in float32", type=switch)
    flag("attention", "sdpa", "sdpa or flash_attention_2")
    flag("pixels", "exact", "exact: as transformers makes them; fast: a few grey levels off")
    flag("eager", "off", "on: nothing is captured as a CUDA graph", nargs="?", const="on", type=switch)
    flag("device", "auto", "auto, cpu, cuda or cuda:N")
    flag("host", None, "address to listen on; None: this machine alone, or what Gradio's own variables say")
    flag("port", None, "port to listen on; None: the first free one from 7860", type=between(1, 65535))
    flag("root-path", None, "where a proxy serves the page: /longtail, or the whole address", type=sub_path)
    flag("auth-file", None, "a file of user:password lines: a login is needed", type=users)
    flag("queue", "24", "visitors that may wait, further ones are asked to come back", type=between(1, 1000))
    flag("time-limit", "60", "seconds an answer may take", type=between(1, 3600))
    flag("metrics", "on", "off: nothing is served at /metrics", type=switch)
    form = "plain" if sys.stderr.isatty() else "json"
    flag("log", form, "json: a line of JSON for each event on stderr; plain: for a person", choices=journal.FORMS)
    flag("log-content", "off", "on: questions, answers and the words of errors are logged", type=switch)
    flag("frame-ancestors", "", "sites that may frame the page, comma between: https://example.org", type=sites)
    flag("share", "off", "on: a public link through Gradio's servers", nargs="?", const="on", type=switch)
    flag("mcp", "off", "on: the API's endpoints are MCP tools too", nargs="?", const="on", type=switch)
    flags = parser.parse_args(arguments)
    if flags.mcp:
        need_mcp()
    if flags.models and space.place() == "zero":
        raise ValueError("--models cannot be had on ZeroGPU, where one model is placed before serving: leave it empty")
    return flags


def need_mcp():
    """Raises ValueError where MCP cannot be served; Gradio alone would say so and serve without it."""
    try:
        importlib.import_module("mcp.server.streamable_http_manager")
    except ImportError as error:
        raise ValueError(f"--mcp needs an extra that is not installed ({error}): pip install 'gradio[mcp]'") from error


def sites(text: str) -> tuple[str, ...]:
    """A flag's list of sites, each a scheme and a host."""
    for site in names(text):
        if not SITE.fullmatch(site):
            raise argparse.ArgumentTypeError(f"must be sites such as https://example.org, comma between, got {site!r}")
    return tuple(names(text))


def between(low: int, high: int):
    """A flag's whole number."""

    def whole(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"must be a whole number between {low} and {high}, got {text!r}")
        return int(text)

    return whole


def sub_path(text: str) -> str:
    """A flag's path or address, without the slash at its end."""
    if not text.startswith(("/", "http://", "https://")) or not text.strip("/") or set(text) & set(" ?#"):
        raise argparse.ArgumentTypeError(f"must be a path such as /longtail or a whole http(s) address, got {text!r}")
    return text.rstrip("/")


def users(path: str) -> list[tuple[str, str]]:
    """A flag's file of logins."""
    try:
        return logins(path)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def switch(text: str) -> bool:
    """A flag that is on or off."""
    if text.lower() not in ("on", "off", "1", "0", "true", "false"):
        raise argparse.ArgumentTypeError(f"must be on or off, got {text!r}")
    return text.lower() in ("on", "1", "true")


def loaded(flags: argparse.Namespace, name: str, progress=None):
    """A model, warmed up; None for the name none: the page replays reports. `progress` is told as the log is."""
    if name == "none":
        return None
    lines = Lines(name, journal.Stream())

    def tell(step):
        for told in filter(None, (lines, EARLY and EARLY.tell, progress)):
            told(step)

    own = {"revision": flags.revision, "adapter": flags.adapter} if name == flags.model else {}
    named = ("dtype", "quantization", "double_quantization", "attention", "pixels", "eager", "device")
    how = {name: getattr(flags, name) for name in named}
    llava = longtail.load(name, **how, **own, progress=tell)
    tell(Progress("warm_up", 0, 1))
    warm_up(llava)
    lines.ended(llava.loaded.line())
    return llava


def miniature():
    """The bundled model, as it comes: what a Space answers with where it cannot have another."""
    llava = longtail.load(space.MINIATURE)
    warm_up(llava)
    return llava


def names(text: str) -> list[str]:
    """A flag's list, comma between."""
    return [name.strip() for name in text.split(",") if name.strip()]


def folder(text: str) -> Path:
    """A flag's folder."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"must be a folder, got {text!r}")
    return Path(text)


def warm_up(llava):
    """A short answer of each method that the page starts with: no visitor's first number is a cold one.

    On ZeroGPU no GPU is there yet, so none is asked for.
    """
    if space.place() == "zero":
        return
    grey = Image.new("RGB", (336, 336), "grey")
    for name in FIRST[:FEWEST]:
        longtail.answer(llava, grey, "What is this?", longtail.make(name), max_new_tokens=2)


if __name__ == "__main__":
    sys.exit(main())
