"""A reducer is one paper: a frozen dataclass; its fields are its parameters, its methods act at up to four moments."""

import dataclasses
from dataclasses import MISSING, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .given import number, shown
from .tokens import CacheView, Prefill, Reduced, Survivors, TowerView, VisualTokens

REDUCERS: dict[str, type["Reducer"]] = {}
MOMENTS = ("trim", "reduce", "drop", "evict")


def param(default, low=None, high=None, step=None, help: str = "", choices: tuple[str, ...] = ()):
    """A parameter of a reducer, declared once: slider, flag, range check, help and README row all come from it."""
    return dataclasses.field(
        default=default, metadata={"low": low, "high": high, "step": step, "help": help, "choices": choices}
    )


def register(reducer: type["Reducer"]) -> type["Reducer"]:
    """Put a reducer into REDUCERS under its class name."""
    REDUCERS[reducer.__name__] = reducer
    return reducer


@dataclass(frozen=True)
class Parameter:
    """One field of a reducer as the page and the command line show it."""

    name: str
    kind: type
    default: Any
    low: float | None
    high: float | None
    step: float | None
    help: str
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Reducer:
    """Keeps every visual token."""

    paper: ClassVar[str] = ""
    # how cache entries are scored: by the similarity of "embeddings" that they receive; by the "attention" that they
    # receive, in each layer and head; or by that of the prompt's last `window` queries alone ("window")
    scores_with: ClassVar[str | None] = None
    window: ClassVar[int] = 0
    proportional: ClassVar[bool] = False  # in the tower, add log(patches a token speaks for) to its attention logits

    def __post_init__(self):
        for parameter in self.parameters():
            object.__setattr__(self, parameter.name, self._checked(parameter, getattr(self, parameter.name)))

    # ---- the moments a paper may act at; none of them sees a model

    def layers_read(self) -> tuple[int, ...]:
        """Tower layers to capture, counted as in a 24-layer tower."""
        return ()

    def trim(self, tower: TowerView) -> Reduced | None:
        """Moment 1, inside the vision tower: what goes on, over the tokens that are here; None keeps all."""

    def reduce(self, visual: VisualTokens) -> Reduced:
        """Moment 2, before the language model: N patches in, M tokens out."""
        return Reduced.select(visual, torch.arange(len(visual.features)))

    def drop(self, prefill: Prefill) -> Tensor | Survivors | None:
        """Moment 3, entering a decoder layer: positions [<= T] to keep, ascending; None keeps all."""

    def drops(self, layer: int) -> bool:
        """Whether `drop` may act entering that decoder layer. One that only ever acts at the first door says so: the
        prompt is then read through all layers at once, where the engine can."""
        return True

    def evict(self, cache: CacheView) -> Tensor | None:
        """Moment 4, after each forward pass: slots to give up; None gives up none."""

    def slots(self, prompt: int, unpruned: int, new: int) -> int:
        """Slots the KV cache needs for a prompt of that many entries and that many new tokens."""
        return prompt + new

    # ---- what a reducer tells of itself

    @classmethod
    def at(cls, budget: int) -> "Reducer":
        """The reducer that hands `budget` visual tokens of each view to the language model. Raises ValueError out of
        range."""
        return cls(budget=budget) if any(p.name == "budget" for p in cls.parameters()) else cls()

    @classmethod
    def acts(cls) -> tuple[str, ...]:
        """The moments this reducer can act at, derived from what it overrides."""
        return tuple(moment for moment in MOMENTS if getattr(cls, moment) is not getattr(Reducer, moment))

    def active(self) -> tuple[str, ...]:
        """The moments it acts at as it is set; a reducer whose options switch a moment off says so here."""
        return self.acts()

    @classmethod
    def sentence(cls) -> str:
        """The first sentence of its docstring: what a menu shows."""
        return " ".join(cls.__doc__.split("\n\n")[0].split())

    @classmethod
    def parameters(cls) -> tuple[Parameter, ...]:
        """Its fields, in order."""
        return tuple(
            Parameter(f.name, type(f.default), f.default, **f.metadata)
            for f in dataclasses.fields(cls)
            if f.default is not MISSING
        )

    @classmethod
    def describe(cls) -> dict:
        """Name, sentence, paper, moments and parameters as plain JSON values."""
        parameters = [dataclasses.asdict(p) | {"kind": p.kind.__name__} for p in cls.parameters()]
        about = {"name": cls.__name__, "sentence": cls.sentence(), "paper": cls.paper, "acts": cls.acts()}
        return about | {"parameters": parameters}

    def explain(self, similarity: np.ndarray, knee: int) -> list[tuple[str, str, int]]:
        """How its settings count on a similarity curve [n], descending, with knee i*: what is read, formula, count."""
        return []

    @classmethod
    def limits(cls, name: str, **values) -> tuple[float, float]:
        """Lowest and highest value of a numeric parameter, given the values of the others."""
        parameter = next(p for p in cls.parameters() if p.name == name)
        return parameter.low, parameter.high

    def _checked(self, parameter: Parameter, value):
        name, given = f"{type(self).__name__}.{parameter.name}", f"got {shown(value)}"
        if parameter.choices:
            if not isinstance(value, str) or value not in parameter.choices:
                raise ValueError(f"{name} must be one of {', '.join(parameter.choices)}, {given}")
            return value
        if parameter.kind is bool:
            if not isinstance(value, bool):
                raise ValueError(f"{name} must be true or false, {given}")
            return value
        if parameter.kind is str:
            if not isinstance(value, str):
                raise ValueError(f"{name} must be text, {given}")
            return value
        others = {p.name: getattr(self, p.name) for p in self.parameters()}
        return number(name, value, *self.limits(parameter.name, **others), whole=parameter.kind is int)


def make(name: str, /, **values) -> Reducer:
    """A reducer by name. Raises ValueError for an unknown name or parameter, or a value out of range."""
    if not isinstance(name, str) or name not in REDUCERS:
        raise ValueError(f"there is no method {shown(name)}: choose one of {', '.join(REDUCERS)}")
    known = [p.name for p in REDUCERS[name].parameters()]
    for given in values:
        if given not in known:
            raise ValueError(f"{name} has no parameter {shown(given)}: it has {', '.join(known) or 'none'}")
    return REDUCERS[name](**values)


def value_of(method: str, name: str, text: str):
    """A parameter's value from its text, for `make`, which checks it. Raises ValueError where no number can be read."""
    kind = {p.name: p.kind for p in make(method).parameters()}.get(name, str)
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return kind(text)
    except ValueError as error:
        raise ValueError(f"{method}.{name} must be a number, got {shown(text)}") from error


def parse(text: str, budget: int | None = None) -> Reducer:
    """The reducer that `NAME` or `NAME:parameter=value:...` names, at a budget if one is given. Raises ValueError."""
    name, *settings = text.split(":") if isinstance(text, str) else (text,)
    values = {key: value_of(name, key, value) for key, _, value in (setting.partition("=") for setting in settings)}
    reducer = make(name, **values)
    if budget is None:
        return reducer
    return dataclasses.replace(REDUCERS[name].at(number("budget", budget, 1, whole=True)), **values)


def spec(reducer: Reducer) -> str:
    """The text that `parse` reads as this reducer: its name, and what is not at its default."""
    given = {p.name: getattr(reducer, p.name) for p in reducer.parameters() if getattr(reducer, p.name) != p.default}
    words = (f"{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in given.items())
    return ":".join([type(reducer).__name__, *words])
