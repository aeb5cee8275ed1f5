"""Batches: scenes with their labels, questions packed into one row per picture, captions and phrases."""

import random
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import IterableDataset

from .captions import caption, phrases
from .model import PATCH_LABELS
from .questions import FAMILIES, Question, questions
from .saliency import saliency
from .scenes import scene
from .tokenizer import BOS, EOS, PAD, learn
from .world import (
    BACKGROUNDS,
    COLORS,
    DIGITS,
    GRID,
    HELD_OUT_SEED,
    LETTERS,
    PLACES,
    SHAPES,
    SIZES,
    STRANGE,
    Item,
    Scene,
)

NO_LABEL = -100  # ignored by the losses
PHRASES, CAPTION_LENGTH = 3, 36  # phrases for a picture; tokens of a caption or phrase
CHARACTERS = LETTERS + DIGITS
EASY, HARD = ("exist", "color", "shape", "size", "place"), ("count", "relation", "choice", "choice", "read")


@dataclass(frozen=True)
class Plan:
    """What a batch holds: `patches` of 576 the vision tower sees, `text` positions for questions (0 for none)."""

    batch: int
    patches: int = GRID * GRID
    text: int = 0
    strings: int = 1
    strange: float = 0.0  # share of pictures in colours without a name


class Encoder:
    """The tokenizer with a memory: sentences repeat."""

    def __init__(self):
        self.core, self.known = learn(), {}
        self.user, self.assistant = (self.core.token_to_id(t) for t in ("USER:", "ASSISTANT:"))

    def __call__(self, text: str) -> list[int]:
        if text not in self.known:
            if len(self.known) > 50_000:
                self.known.clear()
            self.known[text] = self.core.encode(text, add_special_tokens=False).ids
        return self.known[text]


def batch(scenes: list[Scene], asked: list[list[Question]], plan: Plan, encode: Encoder, rng: random.Random) -> dict:
    """Tensors for a list of scenes and the questions about each."""
    keep = np.stack([_visible(one, plan.patches, rng) for one in scenes])
    columns = {
        "pixels": np.stack([np.asarray(one.image) for one in scenes]),
        "owner": np.stack([one.patches.reshape(-1) for one in scenes]),
        "saliency": np.stack([saliency(one).reshape(-1) for one in scenes]),
        "image": np.stack([_image_labels(one) for one in scenes]),
        "total": np.array([[len(one.items), BACKGROUNDS.index(one.background)] for one in scenes]),
    }
    labels = [patch_labels(one) for one in scenes]
    columns |= {name: np.stack([one[name] for one in labels]) for name in PATCH_LABELS}
    columns["sizes"] = np.stack([np.bincount(row, minlength=16) for row in columns["owner"]])
    for name in ("owner", "saliency", *PATCH_LABELS):
        columns[name] = np.take_along_axis(columns[name], keep, 1)
    columns["keep"] = keep
    columns |= _pack_captions(scenes, encode, rng)
    if plan.text:
        packed = [pack(one, plan.text, encode) for one in asked]
        columns |= {name: np.stack([row[name] for row in packed]) for name in packed[0]}
    return {name: torch.from_numpy(np.ascontiguousarray(column)) for name, column in columns.items()}


def pack(asked: list[Question], length: int, encode: Encoder) -> dict[str, np.ndarray]:
    """Questions side by side in one row; what does not fit is left out.

    Token, the block that attends to itself only, its place in the block, the next token (-100 where none is learnt),
    the family and the things one must see to say it.
    """
    row = {name: np.full(length, fill, np.int64) for name, fill in _EMPTY.items()}
    used = 0
    for block, question in enumerate(asked):
        prompt = [*encode("\n" + question.text), encode.assistant]
        answer, needs = [], []
        for index, (piece, bits) in enumerate(question.pieces):
            ids = encode(piece if index else " " + piece)
            answer, needs = answer + ids, needs + [bits] * len(ids)
        answer, needs = [*answer, EOS], [*needs, 0 if question.family == "describe" else needs[-1]]
        ids = prompt + answer[:-1]
        if used + len(ids) > length:
            continue
        here, said = slice(used, used + len(ids)), slice(used + len(prompt) - 1, used + len(ids))
        row["token"][here], row["block"][here], row["offset"][here] = ids, block, np.arange(len(ids))
        row["target"][said], row["family"][said] = answer, FAMILIES.index(question.family)
        row["needs"][said] = needs
        used += len(ids)
    return row


_EMPTY = {"token": PAD, "block": -1, "offset": 0, "target": NO_LABEL, "family": -1, "needs": 0}


def ask(one: Scene, rng: random.Random) -> list[Question]:
    """A training picture's questions: the hard families always, twice where it helps, and often a description.

    Of strange colours nothing is asked, nor of any colour beside them.
    """
    families = tuple(f for f in EASY if rng.random() < 0.45) + HARD + ("count", "count", "relation")
    families += ("background",) if rng.random() < 0.5 else ()
    asked = [q for f in families for q in questions(one, (f,), rng)]
    asked = list({q.text: q for q in asked}.values())
    rng.shuffle(asked)
    if is_strange(one):
        return [q for q in asked if not any(c in q.text or c in q.answer for c in (*COLORS, STRANGE))]
    return (questions(one, ("describe",), rng) if rng.random() < 0.5 else []) + asked


def is_strange(one: Scene) -> bool:
    return any(i.color == STRANGE for i in one.items)


def patch_labels(one: Scene) -> dict[str, np.ndarray]:
    """For each of the 576 patches what `PATCH_LABELS` wants to know."""
    things = [*one.items, *one.texts]
    owner, letters = one.patches.reshape(-1), one.letters.reshape(-1)
    table = np.zeros((1 + len(things), 4), np.int64)
    for row, thing in zip(table[1:], things, strict=True):
        is_item = isinstance(thing, Item)
        row[0] = 1 + SHAPES.index(thing.shape) if is_item else 0
        row[1] = NO_LABEL if thing.color == STRANGE else 1 + list(COLORS).index(thing.color)
        row[3] = 1 + PLACES.index(thing.place)
        row[2] = 1 + SIZES.index(thing.size) if is_item else 0
    content, color, size, place = table[owner].T.copy()
    centre = np.zeros_like(owner)
    for index, thing in enumerate(things, 1):
        for letter in range(1, len(getattr(thing, "string", "")) + 1):
            shown = np.flatnonzero((owner == index) & (letters == letter))
            content[shown] = 1 + len(SHAPES) + CHARACTERS.index(thing.string[letter - 1])
            centre[_middle(shown)] = 2
        if isinstance(thing, Item):
            centre[_middle(np.flatnonzero(owner == index))] = 1
    ground = np.full_like(owner, BACKGROUNDS.index(one.background))
    count = np.full_like(owner, len(one.items))
    return dict(
        content=content,
        color=color,
        size=size,
        place=place,
        centre=centre,
        letter=letters,
        background=ground,
        count=count,
    )


def _middle(patches: np.ndarray) -> np.ndarray:
    """The patch of a group nearest to its mean (none of an empty group)."""
    if len(patches) == 0:
        return patches
    rows, columns = patches // GRID, patches % GRID
    away = (rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2
    return patches[away.argmin(keepdims=True)]


def _visible(one: Scene, count: int, rng: random.Random) -> np.ndarray:
    """Every patch, or those that show something and random ground beside them, in raster order."""
    if count == GRID * GRID:
        return np.arange(count)
    source = np.random.default_rng(rng.getrandbits(32))
    order = source.random(GRID * GRID) - (one.patches.reshape(-1) > 0)
    return np.sort(np.argpartition(order, count)[:count])


def _image_labels(one: Scene) -> np.ndarray:
    """Which shapes, colours (of items; undecided where they are strange) and characters the picture shows."""
    shown = {i.shape for i in one.items} | {i.color for i in one.items} | {c for t in one.texts for c in t.string}
    labels = np.array([name in shown for name in (*SHAPES, *COLORS, *CHARACTERS)], np.float32)
    if is_strange(one):
        labels[len(SHAPES) : len(SHAPES) + len(COLORS)] = 0.5
    return labels


def _pack_captions(scenes: list[Scene], encode: Encoder, rng: random.Random) -> dict[str, np.ndarray]:
    """One caption and some phrases for each scene, [B, 1 + PHRASES, length], and what each phrase is about (bits)."""
    ids = np.full((len(scenes), 1 + PHRASES, CAPTION_LENGTH), PAD, np.int64)
    about = np.zeros((len(scenes), PHRASES), np.int64)
    for row, bits, one in zip(ids, about, scenes, strict=True):
        chosen = phrases(one, rng, PHRASES)
        bits[:] = [b for _, b in chosen]
        for line, text in zip(row, [caption(one, rng), *(p for p, _ in chosen)], strict=True):
            tokens = [BOS, *encode(text)[: CAPTION_LENGTH - 2], EOS]
            line[: len(tokens)] = tokens
    return {"caption": ids, "about": about}


class Stream(IterableDataset):
    """Endless training batches; their scenes' seeds stay below `HELD_OUT_SEED`."""

    def __init__(self, seed: str, plan: Plan):
        self.seed, self.plan = seed, plan

    def draw(self, rng: random.Random) -> Scene:
        return scene(rng.randrange(HELD_OUT_SEED), self.plan.strings, rng.random() < self.plan.strange)

    def __iter__(self):
        torch.set_num_threads(1)
        encode, rng = Encoder(), random.Random(self.seed)
        while True:
            scenes = [self.draw(rng) for _ in range(self.plan.batch)]
            asked = [ask(one, rng) if self.plan.text else [] for one in scenes]
            yield batch(scenes, asked, self.plan, encode, rng)
