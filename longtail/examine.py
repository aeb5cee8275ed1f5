"""Answers by the ten thousand: cells of method and budget, scene by scene, over processes, in a log that survives."""

import dataclasses
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from . import similarity
from .batch import generate_batch
from .generate import Answer, compare
from .models import load
from .models.llava import Llava
from .reducer import REDUCERS, Reducer, param, parse
from .reducers.full import Full
from .results import ORACLE, Said
from .tiny.examine import FINAL_SEED
from .tiny.scenes import Scene, questions, scene
from .tokens import Reduced

LONGEST = 160  # new tokens


@dataclass(frozen=True, kw_only=True)
class Oracle(Reducer):
    """Keeps the patches that show an object or a letter first, then others at random: knows the scene, so no rival."""

    items: torch.Tensor  # [N] bool
    budget: int = param(144, 1, 576, 1, "visual tokens kept")

    def reduce(self, visual):
        shuffle = torch.randperm(len(visual.features), generator=torch.Generator().manual_seed(0))
        first = self.items[shuffle].int().argsort(descending=True, stable=True)
        return Reduced.select(visual, shuffle[first][: self.budget])


@dataclass(frozen=True)
class Cell:
    """One method, as it comes or set otherwise (`TRIM:sign=paper`), at one budget; budget None: as it comes."""

    method: str
    budget: int | None

    def reducer(self, scene: Scene) -> Reducer:
        """The reducer for one scene: draws are seeded by the scene, the oracle is told what it shows."""
        if self.method == ORACLE:
            items = torch.from_numpy(scene.patches > 0).flatten()
            return Oracle(items=items) if self.budget is None else Oracle(items=items, budget=self.budget)
        reducer = parse(self.method, self.budget)
        seeded = any(p.name == "seed" for p in reducer.parameters())
        return dataclasses.replace(reducer, seed=scene.seed) if seeded else reducer

    def params(self) -> dict:
        """The method's parameters at this budget, but for what comes from the scene; {} where it cannot be built."""
        try:
            reducer = self.reducer(scene(FINAL_SEED))
        except ValueError:
            return {}
        values = {p.name: getattr(reducer, p.name) for p in reducer.parameters()}
        return {name: value for name, value in values.items() if name != "seed"}

    def fingerprint(self, model: str) -> str:
        """Of the model, the parameters, and the source of the method: its file and those it takes something from."""
        kind = Oracle if self.method == ORACLE else REDUCERS[self.method.split(":")[0]]
        taken = [*kind.__mro__, *vars(sys.modules[kind.__module__]).values()]
        names = {str(getattr(part, "__module__", "")) for part in taken}
        ours = sorted(name for name in names if name.startswith((f"{__package__}.reducers.", similarity.__name__)))
        code = [Path(sys.modules[name].__file__).read_text(encoding="utf-8") for name in ours]
        return _digest([model, self.method, str(self.budget), json.dumps(self.params()), *code])


def fingerprint(llava: Llava) -> str:
    """Of every weight of a model, its CLIP text tower's included, its dtype, its kind of device and of pixels."""
    digest = hashlib.blake2b(f"{llava.dtype} {llava.device.type}".encode(), digest_size=8)
    digest.update(b"" if llava.pixels == "exact" else llava.pixels.encode())
    for name, weight in llava.model.state_dict().items():
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    place = llava.clip.place if llava.clip else ""
    for path in sorted(Path(place).glob("*.safetensors")) if place else ():  # none where the place is a hub id
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _digest(parts: list[str]) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()


# ---- one scene, and many


def examine(
    llava: Llava, seed: int, wanted: dict[str, list[Cell]], batch: int = 1
) -> Iterator[list[tuple[Cell, str, Said | str]]]:
    """The answers of the cells wanted for each family of a scene's questions, a list a question: cell, family, and
    what was said or why nothing could be. A cell that failed is not asked again. Full is asked first: the yardstick of
    times, which then compare between runs. Above a batch of 1 see `_together`."""
    if batch > 1:
        yield from _together(llava, seed, wanted, batch)
        return
    shown, broken, reducers = scene(seed), {}, {}
    for question in questions(shown):
        cells = wanted.get(question.family, [])
        for cell in cells:
            if cell not in reducers and cell not in broken:
                try:
                    reducers[cell] = cell.reducer(shown)
                except ValueError as error:
                    broken[cell] = str(error)
        able = [cell for cell in cells if cell not in broken]
        if not able:
            yield [(cell, question.family, broken[cell]) for cell in cells]
            continue
        full, *answers = _answers(llava, shown.image, question.text, [Full(), *(reducers[cell] for cell in able)])
        said = dict(zip(able, answers, strict=True))
        broken |= {cell: one for cell, one in said.items() if isinstance(one, str)}
        said = {cell: dataclasses.replace(said[cell], full=full.first_token) for cell in able if cell not in broken}
        yield [(cell, question.family, said.get(cell, broken.get(cell))) for cell in cells]


def _together(llava: Llava, seed: int, wanted: dict[str, list[Cell]], batch: int):
    """As `examine`, `batch` answers at a time, each in a list of its own as it ends: the same words, and no times."""
    shown, asked = scene(seed), []
    for question in questions(shown):
        for cell in wanted.get(question.family, []):
            try:
                asked.append((cell, question, cell.reducer(shown)))
            except ValueError as error:
                yield [(cell, question.family, str(error))]
    rows = [(shown.image, question.text, reducer) for _, question, reducer in asked]
    for at, answer in generate_batch(llava, rows, max_new_tokens=LONGEST, batch=batch):
        cell, question, _ = asked[at]
        yield [(cell, question.family, answer if isinstance(answer, str) else _said(answer))]


def _answers(llava: Llava, image, question: str, reducers: list[Reducer]) -> list[Said | str]:
    """What each reducer lets the model say, or why it cannot. Halves where one fails: the tower is shared."""
    try:
        return [_said(answer) for answer in compare(llava, image, question, reducers, max_new_tokens=LONGEST)]
    except ValueError as error:
        if len(reducers) == 1:
            return [str(error)]
    half = len(reducers) // 2
    return [one for part in (reducers[:half], reducers[half:]) for one in _answers(llava, image, question, part)]


def _said(answer: Answer) -> Said:
    tokens, seconds = answer.tokens, answer.seconds
    times = round(seconds.first_token, 6), round(seconds.total, 6), round(seconds.first_token, 6)
    return Said(answer.text, tokens.visual, tokens.layer_mean, *((None,) * 3 if answer.shared else times))


def in_processes(jobs: int, place: dict, tasks: list[tuple]) -> Iterator[tuple[int, list]]:
    """(seed, answers to one question) of `examine`, each task (its arguments) in one of `jobs` processes."""
    context, tasks, pipes = multiprocessing.get_context("spawn"), list(reversed(tasks)), {}
    for _ in range(min(jobs, len(tasks))):
        ours, theirs = context.Pipe()
        context.Process(target=_worker, args=(theirs, place), daemon=True).start()
        theirs.close()
        pipes[ours] = tasks.pop()
        ours.send(pipes[ours])
    while pipes:
        for pipe in wait(list(pipes)):
            try:
                answers = pipe.recv()
            except (EOFError, ConnectionError):
                raise OSError("a worker process ended early: run the same command again to go on") from None
            if answers is not None:
                yield pipes[pipe][0], answers
            elif tasks:
                pipes[pipe] = tasks.pop()
                pipe.send(pipes[pipe])
            else:
                del pipes[pipe]
                pipe.close()


def _worker(pipe, place: dict):
    """A process of `in_processes`: loads the model, then does what comes until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    disable_progress_bar()
    torch.set_num_threads(1)
    llava = load(**place)
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        for answers in examine(llava, *task):
            pipe.send(answers)
        pipe.send(None)


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


# ---- what outlives a killed run


class Log:
    """What was said, by (fingerprint of the cell, scene, family), and under what conditions; in a file if given one.

    Its lines are JSON: conditions as a string, then the answers given under them, each a list of key and `Said`.
    """

    def __init__(self, path: Path | None = None, fresh: bool = False):
        self.path, self.said, self.under, self.told = path, {}, {}, None
        if path and fresh:
            path.unlink(missing_ok=True)
        if path and path.exists():
            whole, _, cut = path.read_bytes().rpartition(b"\n")
            if cut:  # killed while it wrote
                os.truncate(path, len(whole) + 1 if whole else 0)
            under = ""
            for line in map(json.loads, whole.splitlines()):
                if isinstance(line, str):
                    under = line
                else:
                    self._put(tuple(line[:3]), under, Said(*line[3:]))

    def add(self, under: str, parts: list[tuple[tuple, Said]]):
        """Put answers, with their keys, into memory and at the end of the file."""
        for key, said in parts:
            self._put(key, under, said)
        if self.path and parts:
            lines = [] if under == self.told else [under]
            lines += [[*key, *dataclasses.astuple(said)] for key, said in parts]
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
            self.told = under

    def _put(self, key: tuple, under: str, said: Said):
        self.said[key], self.under[key] = said, under
