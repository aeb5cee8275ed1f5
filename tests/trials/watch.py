"""What the server's own process is asked: who is in the model, what is alive, what is left behind."""

import ctypes
import gc
import inspect
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import AsyncGeneratorType, GeneratorType

import psutil
import torch
from gradio.utils import get_upload_folder

import longtail
from demo import space

OURS = tuple(str(Path(__file__).parents[2] / folder) for folder in ("longtail", "demo"))
WHOLE = (
    "generate",
    "preview",
    "generate_batch",
    "look",
)  # the engine's doors; an answer is one of them from end to end
PARTS = ("encode", "encode_together", "decode_layer", "decode_together")  # what they ask of the model
BEGUN = (GeneratorType, AsyncGeneratorType)
COUNTED = {*BEGUN, torch.Tensor, torch.nn.Parameter, longtail.Answer}
PROCESS = psutil.Process()


class Door:
    """Counts, inside the engine, the threads that are in the model at once. While it is open, every door of the engine
    is watched wherever it was imported, and so is the model, and each whole piece of the page's and the API's work."""

    def __init__(self, llava):
        self.llava, self.lock, self.inside = llava, threading.Lock(), {}
        self.most, self.entered, self.said, self.left = 0, 0, 0, time.perf_counter()

    @property
    def busy(self) -> bool:
        """Whether somebody is in the model, or a worker is there for it."""
        return bool(self.inside) or any(thread.name == "comparison" for thread in threading.enumerate())

    def idle(self, seconds: float = 20) -> float:
        """Wait until nobody is in the model and no worker is there; when that was. Raises TimeoutError."""
        deadline = time.perf_counter() + seconds
        while self.busy:
            if time.perf_counter() > deadline:
                raise TimeoutError(f"the model was not idle within {seconds:g} seconds")
            time.sleep(0.001)
        return time.perf_counter()

    def until_inside(self, seconds: float = 20) -> bool:
        """Wait until somebody is in the model; whether that came."""
        deadline = time.perf_counter() + seconds
        while not self.inside and time.perf_counter() < deadline:
            time.sleep(0.0005)
        return bool(self.inside)

    def __enter__(self) -> "Door":
        modules = [module for name, module in list(sys.modules.items()) if name.split(".")[0] in ("longtail", "demo")]
        doors = {name: getattr(_home(name), name) for name in WHOLE}
        self.put = [(m, name, door) for m in modules for name, door in doors.items() if vars(m).get(name) is door]
        watched = {name: self._watched(door) for name, door in doors.items()}
        for module, name, _ in self.put:
            setattr(module, name, watched[name])
        for name in PARTS:
            self.put.append((self.llava, name, vars(self.llava).get(name)))
            setattr(self.llava, name, self._watched(getattr(self.llava, name)))
        self.put.append((space, "placed", space.placed))
        placed = space.placed
        space.placed = lambda model: self._watched(placed(model), lambda made: _passed(self._passage(), made))
        return self

    def __exit__(self, *_):
        for place, name, door in self.put:
            delattr(place, name) if door is None else setattr(place, name, door)

    def _watched(self, door, wrap=None):
        if wrap:
            return lambda *asked, **options: wrap(door(*asked, **options))
        if inspect.isgeneratorfunction(inspect.unwrap(door)):

            def generator(*asked, **options):
                self.said = 0
                with self._passage():
                    for value in (values := door(*asked, **options)):
                        self.said += 1
                        try:
                            yield value
                        except GeneratorExit:
                            values.close()
                            raise

            return generator

        def function(*asked, **options):
            with self._passage():
                return door(*asked, **options)

        return function

    @contextmanager
    def _passage(self):
        me = threading.get_ident()
        with self.lock:
            self.entered += me not in self.inside
            self.inside[me] = self.inside.get(me, 0) + 1
            self.most = max(self.most, len(self.inside))
        try:
            yield
        finally:
            with self.lock:
                self.inside[me] -= 1
                if not self.inside[me]:
                    del self.inside[me]
                self.left = time.perf_counter()


@dataclass(frozen=True)
class Census:
    """What is alive in this process, once all that nothing refers to was collected."""

    workers: int
    generators: int
    hooks: int
    tensors: int
    tensor_bytes: int
    answers: int

    @classmethod
    def of(cls, llava) -> "Census":
        """Take it: our worker threads, our generators that have begun, hooks on the model, tensors, answers kept."""
        gc.collect()
        alive = [it for it in gc.get_objects() if type(it) in COUNTED]
        tensors = [it for it in alive if isinstance(it, torch.Tensor)]
        stores = {it.untyped_storage().data_ptr(): it.untyped_storage().nbytes() for it in tensors}
        begun = [it for it in alive if type(it) in BEGUN and _ours(it)]
        answers = [it for it in alive if type(it) is longtail.Answer]
        workers = [thread for thread in threading.enumerate() if thread.name in ("comparison", "loading", "lent")]
        return cls(len(workers), len(begun), _hooks(llava.model), len(tensors), sum(stores.values()), len(answers))

    def beyond(self, before: "Census") -> dict[str, int]:
        """What is there now that was not before."""
        return {name: value - getattr(before, name) for name, value in vars(self).items()}


def settled(llava, before: Census, seconds: float = 5) -> dict[str, int]:
    """What is there beyond before, after at most so long: the server's own loop may still hold what just ended."""
    deadline = time.perf_counter() + seconds
    while True:
        left = {name: more for name, more in Census.of(llava).beyond(before).items() if more > 0}
        if not left or time.perf_counter() > deadline:
            return left
        time.sleep(0.1)


def resident(trimmed: bool = True) -> int:
    """Bytes of this process in memory; what the C library holds in reserve is given back first, where it can be."""
    if trimmed and sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    return PROCESS.memory_info().rss


def weights(llava) -> int:
    """Bytes of a model's parameters."""
    return sum(part.nbytes for part in llava.model.parameters())


def files() -> tuple[int, int]:
    """How many files the server keeps for visitors, and their bytes."""
    sizes = [path.stat().st_size for path in Path(get_upload_folder()).rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)


def _home(name: str):
    return sys.modules[
        {"preview": "longtail.batch", "generate_batch": "longtail.batch", "look": "longtail.seen"}.get(
            name, "longtail.generate"
        )
    ]


def _passed(passage, made):
    with passage:
        yield from made


def _ours(generator) -> bool:
    code = generator.gi_code if type(generator) is GeneratorType else generator.ag_code
    frame = generator.gi_frame if type(generator) is GeneratorType else generator.ag_frame
    return code.co_filename.startswith(OURS) and frame is not None


def _hooks(model) -> int:
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, name)) for module in model.modules() for name in names)
