"""Pictures with known contents: `scene(seed)` draws one, `questions(scene)` asks about it, `score` marks an answer."""

import colorsys
import random

import numpy as np
from PIL import Image

from . import draw
from .questions import Question, described, questions, score
from .world import (
    BACKGROUNDS,
    COLORS,
    DIGITS,
    GRID,
    HELD_OUT_PAIRS,
    HELD_OUT_SEED,
    LETTERS,
    MOST_ITEMS,
    PATCH,
    SHAPES,
    SIDE,
    SIZES,
    STRANGE,
    WORDS,
    Item,
    Scene,
    Text,
)

__all__ = [
    "HELD_OUT_PAIRS",
    "HELD_OUT_SEED",
    "Item",
    "Question",
    "Scene",
    "Text",
    "described",
    "questions",
    "scene",
    "score",
]

MARGIN = 3  # pixels between two things
AMBIGUOUS = 6  # no centre within so many pixels of a line between two places
TEXT_SHARE = 0.62
HUE_AWAY = 40  # degrees of hue within which a strange colour may pass for a named one
HELD_OUT_SHARE = 0.35  # of the objects of a held-out scene


def scene(seed: int, strings: int = 1, strange: bool = False) -> Scene:
    """The scene of a seed, the same on every machine.

    For training it may show several `strings`, and its objects may have `strange` colours, which have no name.
    """
    if not 0 <= seed < 2**31:
        raise ValueError(f"a scene's seed must be between 0 and {2**31 - 1}, got {seed}")
    return _Canvas(seed, strange).fill(strings)


class _Canvas:
    """A picture in the making."""

    def __init__(self, seed: int, strange: bool):
        self.seed, self.strange, self.rng = seed, strange, random.Random(seed)
        self.background = self.rng.choice(BACKGROUNDS)
        self.base = draw.ground_color(self.rng)
        self.pixels = draw.ground(self.background, self.base, self.rng)
        self.boxes: list[tuple[int, int, int, int]] = []
        self.items: list[Item] = []
        self.texts: list[Text] = []
        self.owners = np.zeros((GRID, GRID), np.int64)
        self.letters = np.zeros((GRID, GRID), np.int64)
        self.coverage = np.zeros((GRID, GRID), np.float32)

    def fill(self, strings: int) -> Scene:
        rng = self.rng
        wanted = rng.choices(range(MOST_ITEMS + 1), weights=[0.25] + [1] * MOST_ITEMS)[0]
        if wanted == 0 or rng.random() < TEXT_SHARE:
            for _ in range(strings):
                self.add_text()
        for _ in range(wanted):
            self.add_item()
        if rng.random() < 0.5:
            self.pixels += draw.sensor_noise(rng)
        image = Image.fromarray(np.clip(self.pixels, 0, 255).astype(np.uint8))
        owners = self.number_owners()
        return Scene(
            self.seed,
            image,
            tuple(self.items),
            tuple(self.texts),
            self.background,
            owners,
            self.letters,
            self.coverage,
        )

    def number_owners(self) -> np.ndarray:
        """Items first, then texts, whatever was drawn first (texts are stamped as -1, -2, ...)."""
        return np.where(self.owners < 0, len(self.items) - self.owners, self.owners)

    def find_place(self, width: int, height: int) -> tuple[int, int] | None:
        """A free top left corner whose centre lies clearly inside one of the nine places."""
        for _ in range(60):
            x, y = self.rng.randint(2, SIDE - width - 2), self.rng.randint(2, SIDE - height - 2)
            middle = (x + width / 2, y + height / 2)
            if any(abs(c - SIDE * k / 3) < AMBIGUOUS for c in middle for k in (1, 2)):
                continue
            if all(
                x + width + MARGIN <= left or right + MARGIN <= x or y + height + MARGIN <= top or bottom + MARGIN <= y
                for left, top, right, bottom in self.boxes
            ):
                self.boxes.append((x, y, x + width, y + height))
                return x, y
        return None

    def colors_on(self, box: tuple[int, int, int, int]) -> list[str]:
        """The colours that stand out from the ground in a box."""
        here = self.ground_in(box)
        return [c for c, rgb in COLORS.items() if _distance(rgb, here) > 150]

    def ground_in(self, box: tuple[int, int, int, int]) -> np.ndarray:
        left, top, right, bottom = box
        return self.pixels[top:bottom, left:right].mean((0, 1))

    def strange_paint(self, shape: str, box: tuple[int, int, int, int]) -> tuple[float, float, float]:
        """Any colour that stands out, but none near the one in which the shape is held out."""
        here = self.ground_in(box)
        hidden = [COLORS[c] for c, s in HELD_OUT_PAIRS if s == shape]
        while True:
            rgb = tuple(self.rng.uniform(0, 255) for _ in range(3))
            if _distance(rgb, here) > 150 and not any(alike(rgb, h) for h in hidden):
                return rgb

    def choose_pair(self, colors: list[str]) -> tuple[str, str]:
        """A colour and a shape; held-out pairs only, and often, in held-out scenes."""
        rng = self.rng
        unseen = sorted(p for p in HELD_OUT_PAIRS if p[0] in colors)
        if self.seed >= HELD_OUT_SEED and unseen and rng.random() < HELD_OUT_SHARE:
            return rng.choice(unseen)
        while True:
            color, shape = rng.choice(colors), rng.choice(SHAPES)
            if self.items and rng.random() < 0.35:  # share a property with another, so that binding matters
                other = rng.choice(self.items)
                color, shape = (other.color, shape) if rng.random() < 0.5 else (color, other.shape)
            if color not in colors:
                continue
            if self.seed >= HELD_OUT_SEED or (color, shape) not in HELD_OUT_PAIRS:
                return color, shape

    def add_item(self) -> None:
        rng = self.rng
        size = rng.choice(SIZES)
        side = rng.randint(30, 46) if size == "large" else rng.randint(14, 20)
        corner = self.find_place(side, side)
        if corner is None:
            return
        x, y = corner
        if self.strange:
            color, shape = STRANGE, rng.choice(SHAPES)
            rgb = self.strange_paint(shape, self.boxes[-1])
        else:
            color, shape = self.choose_pair(self.colors_on(self.boxes[-1]))
            rgb = tuple(c + rng.uniform(-12, 12) for c in COLORS[color])
        mask = draw.shape_mask(shape, side, rng.choice((-10, -5, 0, 0, 5, 10)))
        self.stamp(mask, x, y, np.array(rgb, np.float32), len(self.items) + 1, 0)
        self.items.append(Item(shape, color, size, x + side / 2, y + side / 2, self.boxes[-1], rgb))

    def choose_string(self) -> str:
        kind = self.rng.random()
        if kind < 0.45:
            return self.rng.choice(WORDS)
        if kind < 0.65:  # no I and O: alone they cannot be told from 1 and 0
            letters = LETTERS.replace("I", "").replace("O", "")
            return "".join(self.rng.choice(letters) for _ in range(self.rng.randint(2, 4)))
        return "".join(self.rng.choice(DIGITS) for _ in range(self.rng.randint(1, 3)))

    def choose_ink(self, box: tuple[int, int, int, int]) -> str:
        """A colour in which letters can be read: lighter or darker than the ground."""
        here = _luminance(self.ground_in(box))
        colors = self.colors_on(box)
        return self.rng.choice([c for c in colors if abs(_luminance(COLORS[c]) - here) > 70] or colors)

    def add_text(self) -> None:
        rng = self.rng
        string, size, stroke = self.choose_string(), rng.randint(15, 27), rng.choice((0, 0, 1))
        degrees = rng.choice((-6, 0, 0, 0, 6))
        glyphs = [draw.glyph(letter, size, stroke, degrees) for letter in string]
        width, height = sum(g.shape[1] for g in glyphs), glyphs[0].shape[0]
        corner = self.find_place(width, height) if width < SIDE - 4 else None
        if corner is None:
            return
        color = self.choose_ink(self.boxes[-1])
        x, y = corner
        for place, mask in enumerate(glyphs, 1):
            self.stamp(mask, x, y, np.array(COLORS[color], np.float32), -len(self.texts) - 1, place)
            x += mask.shape[1]
        left, top, right, bottom = self.boxes[-1]
        self.texts.append(Text(string, color, (left + right) / 2, (top + bottom) / 2, self.boxes[-1]))

    def stamp(self, mask: np.ndarray, x: int, y: int, color: np.ndarray, owner: int, letter: int) -> None:
        """Paint a mask and note whose each touched patch is: the one's who covers most of it."""
        height, width = mask.shape
        part = self.pixels[y : y + height, x : x + width]
        part += mask[..., None] * (color - part)
        top, bottom, left, right = y // PATCH, (y + height - 1) // PATCH + 1, x // PATCH, (x + width - 1) // PATCH + 1
        padded = np.zeros(((bottom - top) * PATCH, (right - left) * PATCH), np.float32)
        padded[y - top * PATCH : y - top * PATCH + height, x - left * PATCH : x - left * PATCH + width] = mask
        share = padded.reshape(bottom - top, PATCH, right - left, PATCH).mean((1, 3))
        window = np.s_[top:bottom, left:right]
        more = (share > self.coverage[window]) & (share > 0.06)
        for array, value in ((self.coverage, share[more]), (self.owners, owner), (self.letters, letter)):
            array[window][more] = value


def alike(rgb, named) -> bool:
    """Whether somebody could call a colour by a named colour's name: near in hue, or both pale."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(c / 255 for c in rgb))
    hue_named, saturation_named, _ = colorsys.rgb_to_hsv(*(c / 255 for c in named))
    if saturation_named < 0.15:
        return saturation < 0.35 and value > 0.6
    turn = abs(hue - hue_named) * 360
    return saturation > 0.12 and min(turn, 360 - turn) < HUE_AWAY


def _distance(one, other) -> float:
    return float(np.abs(np.subtract(one, other)).sum())


def _luminance(rgb) -> float:
    return 0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2]
