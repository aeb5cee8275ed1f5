"""The engine for other programs: /methods, /answer, /preview and /compare, over HTTP, by gradio_client or as MCP tools.

They stand in the page's own line for the model, keep its limits, and refuse in sentences.
"""

import asyncio
import dataclasses
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from functools import cached_property
from html import escape

import gradio as gr
from gradio.utils import get_upload_folder, is_in_or_equal

import longtail
from longtail.export import Comparison, device_name, measure, medians
from longtail.export import compared as differing
from longtail.given import number, shown
from longtail.reducer import REDUCERS, Reducer, make, parse

from . import fetch, guard, numbers, run, space
from .fetch import NO_FILE
from .host import Host, longest
from .line import OPEN, Place, Turn
from .words import I18N, english

MOST_METHODS, MOST_ROUNDS = 8, 20
PATIENCE = 10  # a comparison may take as many times the limit of an answer
log = logging.getLogger(__name__)


class Blocks(gr.Blocks):
    """Blocks that speak the visitor's language however they are launched, and whose public endpoints say so where a
    file cannot be used: not uploaded here, or not to be fetched."""

    def launch(self, *arguments, **options):
        return super().launch(*arguments, **{"i18n": I18N} | options)

    @cached_property
    def rendering(self) -> asyncio.Lock:
        return asyncio.Lock()

    async def call_function(self, block_fn, *inputs, **options):
        if getattr(block_fn, "renderable", None) is None:
            return await super().call_function(block_fn, *inputs, **options)
        async with self.rendering:  # Gradio walks through a visitor's components while another render adds to them
            return await super().call_function(block_fn, *inputs, **options)

    async def process_api(self, *arguments, **options):
        try:
            return await super().process_api(*arguments, **options)
        except Exception as error:
            raise guard.told(error, options.get("request")) from None

    async def preprocess_data(self, block_fn, inputs, *more, **options):
        try:
            inputs = await fetch.brought(inputs)  # Gradio's own fetch has no end, and is never reached with an address
            return await super().preprocess_data(block_fn, inputs, *more, **options)
        except fetch.NoFile as error:
            raise gr.Error(str(error), print_exception=False) from None
        except Exception as error:
            if block_fn.api_visibility != "public":
                raise
            log.info("a file was refused: %s", type(error).__name__)
            raise gr.Error(NO_FILE, print_exception=False) from error


def endpoints(host: Host, time_limit: float):
    """Add the endpoints to the Blocks around; an answer may take `time_limit` seconds."""

    def methods() -> list[dict]:
        """Every pruning method: its name, what it does, its paper, the moments it acts at, and its parameters."""
        return [reducer.describe() for reducer in REDUCERS.values()]

    async def answer(
        image: gr.FileData,
        question: str,
        method: str = "LongTail",
        params: dict | None = None,
        max_new_tokens: int = 128,
        temperature: float = 0,
        seed: int = 0,
    ) -> dict:
        """Ask a vision-language model one question about one image while a method prunes its visual tokens.

        Returns the answer with exact token counts, measured seconds (one run), the patches kept and the curve.

        Args:
            image: a PNG, JPEG, WEBP, GIF or BMP of at most 40 megapixels: a file, a public address or a data: address
            question: what to ask about the image
            method: a name that `methods` lists, or NAME:parameter=value, such as LongTail:alpha=0.3
            params: parameters of the method by name, such as {"alpha": 0.3}; what is left out has its default
            max_new_tokens: where the answer is cut off, a whole number from 1 to 512 (fewer for a small model)
            temperature: from 0, the likeliest token always, to 2
            seed: of the draws above temperature 0, a whole number
        """

        def work(stop):
            llava = host.ready()
            options = _options(llava, max_new_tokens, temperature, seed)
            asked = _image(image), _text(question, "question"), _reducer(method, params)
            allowed = space.seconds(1, options["max_new_tokens"])
            yield from host.run(answered, allowed, stop, *asked, options | {"time_limit": time_limit})

        async for result in attended(host.job("answer", time_limit, records), work):
            yield result

    async def preview(
        image: gr.FileData,
        question: str,
        methods: list[str] = ("Full", "LongTail", "Random"),
        budget: int = 0,
        max_new_tokens: int = 128,
        temperature: float = 0,
        seed: int = 0,
    ) -> dict:
        """Ask the same question about the same image under several pruning methods at once: quicker, and untimed.

        Returns a record for each method (answer, token counts), marked `shared`: its seconds are 0, no time was taken.

        Args:
            image: a PNG, JPEG, WEBP, GIF or BMP of at most 40 megapixels: a file, a public address or a data: address
            question: what to ask about the image
            methods: one to eight names that `methods` lists, each as NAME or NAME:parameter=value; Full prunes nothing
            budget: the same number of visual tokens for all but Full, from 1 to 576; 0 leaves each method its own
            max_new_tokens: where an answer is cut off, a whole number from 1 to 512 (fewer for a small model)
            temperature: from 0, the likeliest token always, to 2
            seed: of the draws above temperature 0, a whole number
        """

        def work(stop):
            llava = host.ready()
            options = _options(llava, max_new_tokens, temperature, seed)
            asked = _image(image), _text(question, "question"), _reducers(methods, budget)
            watch = Watch(stop, PATIENCE * time_limit)
            allowed = space.seconds(len(asked[2]), options["max_new_tokens"])
            options |= {"time_limit": time_limit * len(asked[2])}
            yield from host.run(previewed, allowed, watch, *asked, options)

        async for result in attended(host.job("api_preview", time_limit, records), work):
            yield result

    async def compare(
        image: gr.FileData,
        question: str,
        methods: list[str] = ("Full", "LongTail", "Random"),
        budget: int = 0,
        repeat: int = 1,
        max_new_tokens: int = 128,
        temperature: float = 0,
        seed: int = 0,
    ) -> dict:
        """Ask the same question about the same image under several pruning methods, one after another, after a warm-up.

        Returns a record for each method (answer, token counts, median seconds), and the conditions of the times.

        Args:
            image: a PNG, JPEG, WEBP, GIF or BMP of at most 40 megapixels: a file, a public address or a data: address
            question: what to ask about the image
            methods: one to eight names that `methods` lists, each as NAME or NAME:parameter=value; Full prunes nothing
            budget: the same number of visual tokens for all but Full, from 1 to 576; 0 leaves each method its own
            repeat: rounds in rotated order, from 1 to 20; seconds are medians over them
            max_new_tokens: where an answer is cut off, a whole number from 1 to 512 (fewer for a small model)
            temperature: from 0, the likeliest token always, to 2
            seed: of the draws above temperature 0, a whole number
        """

        def work(stop):
            llava = host.ready()
            options = _options(llava, max_new_tokens, temperature, seed)
            asked = _image(image), _text(question, "question"), _reducers(methods, budget)
            rounds = number("the argument repeat", repeat, 1, MOST_ROUNDS, whole=True)
            watch = Watch(stop, PATIENCE * time_limit)
            allowed = space.seconds(1 + rounds * len(asked[2]), options["max_new_tokens"])
            options |= {"repeat": rounds, "time_limit": time_limit}
            yield from host.run(compared, allowed, watch, *asked, options)

        async for result in attended(host.job("compare", time_limit, records), work):
            yield result

    gr.api(methods, queue=False)
    gr.api(answer, **OPEN)
    gr.api(preview, **OPEN)
    gr.api(compare, **OPEN)


# ---- running


async def attended(job: run.Job, work: Callable[[Turn], Iterator[dict]]) -> AsyncIterator[dict]:
    """Yields the record that `work(stop)` yields, made by a worker that has the model alone; before it {} at every
    beat, and to one who waits its place in the line. Raises gr.Error with the sentence of what went wrong."""
    try:
        async with aclosing(run.attended(job, work)) as told:
            async for item in told:
                waits = isinstance(item, Place)
                yield {"waiting": item.ahead, "wait": item.wait} if waits else item or {}
    except run.Refused as refused:
        raise gr.Error(escape(str(refused), quote=False), print_exception=False) from None


def answered(llava, image, question: str, reducer: Reducer, options: dict, stop) -> Iterator[dict]:
    """The record of one answer, run where the model is."""
    yield longtail.answer(llava, image, question, reducer, stop=stop, **options).record()


def previewed(llava, image, question: str, reducers: list[Reducer], options: dict, stop) -> Iterator[dict]:
    """The record of a preview, run where the model is. Raises ValueError where a method cannot run."""
    *_, answers = longtail.preview(llava, image, question, reducers, stop=stop, **options)
    for answer in answers:
        if not isinstance(answer, longtail.Answer):
            raise ValueError(answer)
    records = [medians([answer.record()]) for answer in answers]
    differing(records, [answer.first_logits for answer in answers])
    conditions = numbers.conditions(records, options["max_new_tokens"], options["temperature"], 1)
    stamp = f"{english(conditions)}; {device_name(llava.device)}"
    yield Comparison(records, stamp, llava.crop(image), llava.grid).record()


def compared(llava, image, question: str, reducers: list[Reducer], options: dict, stop) -> Iterator[dict]:
    """The record of a measured comparison, run where the model is."""
    yield measure(llava, image, question, reducers, stop=stop, **options).record()


def records(record: dict) -> list[dict]:
    """The answers' records in what an endpoint gives."""
    return record.get("answers", [record])


@dataclasses.dataclass(frozen=True)
class Watch:
    """What the engine asks between layers and tokens; it ends a comparison, not one of its answers, by raising."""

    stop: Turn
    seconds: float
    start: float = dataclasses.field(default_factory=time.monotonic)

    def is_set(self) -> bool:
        """False. Raises run.Left where the caller is gone, ValueError where the comparison takes too long."""
        if self.stop.is_set():
            raise run.Left
        if time.monotonic() - self.start > self.seconds:
            raise ValueError(
                f"the comparison took longer than {self.seconds:g} seconds: ask for fewer methods, rounds or new tokens"
            )
        return False


# ---- what callers give; whatever raises ValueError is said to them


def _options(llava, max_new_tokens, temperature, seed) -> dict:
    return {
        "max_new_tokens": number("the argument max_new_tokens", max_new_tokens, 1, longest(llava), whole=True),
        "temperature": number("the argument temperature", temperature, 0, 2),
        "seed": number("the argument seed", seed, 0, 2**31 - 1, whole=True),
    }


def _text(value, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"the argument {name} must be text, got {shown(value)}")
    return value


def _image(upload):
    """The picture. A path that Gradio did not store itself is never opened, nor said to exist."""
    path = upload.get("path") if isinstance(upload, dict) else None
    if not isinstance(path, str) or not is_in_or_equal(path, get_upload_folder()):
        raise ValueError(NO_FILE.removesuffix("."))
    return run.opened(upload)


def _reducer(method, params) -> Reducer:
    reducer = parse(_text(method, "method"))
    if params is not None and not isinstance(params, dict):
        raise ValueError(f"the parameters of {method} must be given by name, got {shown(params)}")
    return make(type(reducer).__name__, **dataclasses.asdict(reducer) | (params or {}))


def _reducers(methods, budget) -> list[Reducer]:
    if not isinstance(methods, list | tuple) or not 1 <= len(methods) <= MOST_METHODS:
        raise ValueError(f"the argument methods must be a list of 1 to {MOST_METHODS} methods, got {shown(methods)}")
    tokens = number("the argument budget", budget, 0, 576, whole=True)
    return [parse(_text(method, "method"), tokens or None) for method in methods]
