"""Memory that runs out at every moment of an answer: a sentence, memory back, and the next run fine."""

import io
from contextlib import redirect_stderr, redirect_stdout
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import longtail
import longtail.__main__ as command

from .errands import HOWS, Errand
from .faults import ERRORS, PLACES, no_memory
from .figures import LONG, SHORT, Figure, none, trouble, under, yes
from .stand import Stand, picture, stand
from .watch import Census, resident, settled, weights


def memory(here: Stand, hows: tuple[str, ...] = HOWS, places=tuple(PLACES), errors=tuple(ERRORS)) -> list[Figure]:
    """An allocator that fails at every moment of an answer, as CUDA, torch on a CPU and Python say it."""
    silent, wrong, took = [], [], []
    errands = {how: Errand(how, picture(11), SHORT) for how in hows}
    alone = {how: errand.alone(here.llava) for how, errand in errands.items()}
    with here.visitor() as visitor:
        for errand in errands.values():
            errand.run(visitor)
        here.filled()
        before, size, growth = Census.of(here.llava), resident(), None
        for error, place, how in product(errors, places, hows):
            if len(took) == len(places) * len(hows):  # a round of one error: whatever is loaded at the first is there
                here.filled()
                size = resident()
            if len(took) == 2 * len(places) * len(hows):
                here.filled()
                growth = 100 * (resident() / size - 1)
            with no_memory(here.llava, place, error) as failed:
                turn = errands[how].ask(visitor).wait()
            assert failed, f"{how} never came to {place}"
            took.append((turn.ended - failed[-1], how, place, error))
            if not advises(trouble(turn)):
                silent.append(f"{how}, {place}, {error}: {trouble(turn) or 'nothing'}")
            if errands[how].run(visitor)[0] != alone[how]:
                wrong.append((how, place, error))
        here.filled()
        left = settled(here.llava, before)
        growth = 100 * (resident() / size - 1) if growth is None else growth
        kept = 100 * left.get("tensor_bytes", 0) / weights(here.llava)
    seconds, *slowest = max(took)
    for what in silent[:12]:
        print("  no word of what to reduce:", what)
    return [
        none(f"{len(took)} times out of memory ({', '.join(hows)}): no word of what to reduce", silent),
        under(f"slowest message ({', '.join(slowest)})", seconds, 2),
        Figure("live tensors afterwards, of the weights", f"{kept:+.2f} %", "+1 %", kept <= 1),
        under(f"resident memory after {len(places) * len(hows)} of them", growth, 1, "%"),
        none("next runs that were not fine", wrong),
    ]


def command_line(here: Stand, places=tuple(PLACES), errors=tuple(ERRORS)) -> list[Figure]:
    """The same on the command line."""
    said = {}
    for place, error in product(places, errors):
        with no_memory(here.llava, place, error) as failed:
            said[place, error] = _commanded(here.llava)
        assert failed, f"the command line never came to {place}"
    silent = [f"{place}, {error}: {sentence}" for (place, error), sentence in said.items() if not advises(sentence)]
    for what in silent:
        print("  no word of what to reduce: command line,", what)
    return [none(f"{len(said)} times out of memory on the command line: no word of what to reduce", silent)]


def advises(sentence: str) -> bool:
    """Whether it says that memory ran out, and what to reduce."""
    sentence = sentence.lower()
    return "memory" in sentence and any(word in sentence for word in ("shorter", "fewer", "smaller", "lower"))


def _commanded(llava) -> str:
    """What the command line says."""
    load, command.load = command.load, lambda *asked, **options: llava
    with TemporaryDirectory() as folder, redirect_stderr(io.StringIO()) as said, redirect_stdout(io.StringIO()):
        (image := Path(folder) / "image.png").write_bytes(picture(11))
        try:
            command.main(["answer", str(image), LONG, "--model", "tiny", "--method", "LongTail"])
        except (Exception, SystemExit) as error:
            return f"a traceback of {type(error).__name__}"
        finally:
            command.load = load
    return said.getvalue()


def gpu(_: Stand) -> list[Figure]:
    """A real one, where there is a GPU: its memory is set aside, the page asks, then it is given back."""
    if not torch.cuda.is_available():
        print("  there is no GPU here: a real out of memory was NOT run")
        return [Figure("out of memory on a real GPU", "not run: no GPU here", "a message, the next run fine", None)]
    errand = Errand("run", picture(12), SHORT)
    with stand(longtail.load("tiny", device="cuda")) as here, here.visitor() as visitor:
        alone = errand.run(visitor)[0]
        here.filled()
        torch.cuda.empty_cache()
        before, ballast = torch.cuda.memory_allocated(), _aside()
        turn = errand.ask(visitor).wait()
        ballast.clear()
        torch.cuda.empty_cache()
        again = errand.run(visitor)[0]
        here.filled()
        growth = 100 * (torch.cuda.memory_allocated() / before - 1)
    print(f"  {torch.cuda.get_device_name()} said: {trouble(turn)}")
    return [
        yes("GPU out of memory: says what to reduce", advises(trouble(turn))),
        under("GPU out of memory: message", turn.seconds, 2),
        under("GPU memory afterwards", growth, 1, "%"),
        yes("GPU: the next run answers as before", again == alone),
    ]


def _aside() -> list[torch.Tensor]:
    """All but the last megabyte of a GPU."""
    ballast, size = [], 2**34
    while size >= 2**20:
        try:
            ballast.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            size //= 2
    return ballast
