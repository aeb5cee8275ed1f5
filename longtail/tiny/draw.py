"""Pixels: shapes, letters and grounds as arrays. Uses Pillow's own font, so pictures do not depend on the machine."""

import math
import random
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .world import SIDE

OVERSAMPLING = 8
_DOWN, _ACROSS = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) / SIDE - np.float32(0.5)


def _outline(shape: str) -> list[tuple[float, float]]:
    """Corners of a straight-edged shape (and of the heart) in the unit circle."""
    if shape == "square":
        return [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]
    if shape == "diamond":
        return [(0, -1), (0.68, 0), (0, 1), (-0.68, 0)]
    if shape == "triangle":
        return [(0, -0.95), (0.95, 0.8), (-0.95, 0.8)]
    if shape == "cross":
        w = 0.3
        quarter = [(-w, -1), (w, -1), (w, -w)]
        return [_turn(point, 90 * k) for k in range(4) for point in quarter]
    if shape == "star":
        radius = [1 if i % 2 == 0 else 0.42 for i in range(10)]
        return [(r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5)) for i, r in enumerate(radius)]
    if shape == "heart":
        steps = [i / 60 * 2 * math.pi for i in range(60)]
        waves = ((13, 1), (-5, 2), (-2, 3), (-1, 4))
        return [(16 * math.sin(t) ** 3 / 17, -sum(a * math.cos(k * t) for a, k in waves) / 17 - 2 / 17) for t in steps]
    raise ValueError(f"there is no shape {shape!r}")


def _turn(point: tuple[float, float], degrees: float) -> tuple[float, float]:
    a = math.radians(degrees)
    return point[0] * math.cos(a) - point[1] * math.sin(a), point[0] * math.sin(a) + point[1] * math.cos(a)


@cache
def shape_mask(shape: str, size: int, degrees: int) -> np.ndarray:
    """The share of each pixel that the shape covers, [size, size]."""
    side = size * OVERSAMPLING
    picture = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(picture)
    middle, radius = side / 2, side / 2 - 1
    if shape in ("circle", "ring"):
        outer = radius * (0.95 if shape == "circle" else 1)
        draw.ellipse([middle - outer, middle - outer, middle + outer, middle + outer], fill=255)
        if shape == "ring":
            inner = radius * 0.55
            draw.ellipse([middle - inner, middle - inner, middle + inner, middle + inner], fill=0)
    else:
        corners = [_turn(point, degrees) for point in _outline(shape)]
        draw.polygon([(middle + radius * x, middle + radius * y) for x, y in corners], fill=255)
    pixels = np.asarray(picture, np.float32).reshape(size, OVERSAMPLING, size, OVERSAMPLING)
    return pixels.mean((1, 3)) / 255


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)


@cache
def glyph(letter: str, size: int, stroke: int, degrees: int) -> np.ndarray:
    """One letter as coverage, [height, width], on the common line of its size."""
    font = _font(size)
    top, bottom = font.getbbox("H", stroke_width=stroke)[1::2]
    width = math.ceil(font.getlength(letter)) + 2 * stroke + 1
    picture = Image.new("L", (width, bottom - top + 4), 0)
    ImageDraw.Draw(picture).text((stroke, 2 - top - stroke), letter, fill=255, font=font, stroke_width=stroke)
    if degrees:
        picture = picture.rotate(degrees, Image.Resampling.BICUBIC)
    return np.asarray(picture, np.float32) / 255


@cache
def _textures() -> tuple[np.ndarray, ...]:
    """Sixty-four noise pictures of unit deviation, fine to coarse."""
    source = np.random.default_rng(7)
    made = []
    for cells in (16, 24, 32, 48) * 16:
        noise = source.normal(0, 1, (cells, cells)).astype(np.float32)
        span = noise.max() - noise.min()
        small = Image.fromarray(((noise - noise.min()) / span * 255).astype(np.uint8))
        wide = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32)
        made.append((wide - wide.mean()) / wide.std())
    return tuple(made)


def ground_color(rng: random.Random) -> np.ndarray:
    """White, black or a muted colour."""
    kind = rng.random()
    if kind < 0.12:
        return np.full(3, rng.randint(238, 255), np.float32)
    if kind < 0.2:
        return np.full(3, rng.randint(0, 25), np.float32)
    value = rng.uniform(85, 195)
    return np.array([value + rng.uniform(-28, 28) for _ in range(3)], np.float32)


def ground(kind: str, base: np.ndarray, rng: random.Random) -> np.ndarray:
    """A whole background as floats, [SIDE, SIDE, 3]."""
    tint = np.array([rng.uniform(0.75, 1.2) for _ in range(3)], np.float32)
    if kind == "gradient":
        angle = rng.uniform(0, 2 * math.pi)
        slope = _ACROSS * np.float32(math.cos(angle)) + _DOWN * np.float32(math.sin(angle))
        # on white or black half of a slope around the mean would be clipped: let it lead away from the mean instead
        sign, shift = (-1, 0.5) if base.mean() > 200 else (1, 0.5 if base.mean() < 40 else 0)
        return base + (slope[..., None] + shift) * (sign * rng.uniform(50, 85) * tint)
    if kind == "textured":
        noise = np.rot90(_textures()[rng.randrange(64)], rng.randrange(4))
        pale = base - np.where(base > 200, 25, 0) + np.where(base < 40, 25, 0)
        return pale.astype(np.float32) + noise[..., None] * (rng.uniform(11, 20) * tint)
    return np.broadcast_to(base, (SIDE, SIDE, 3)).copy()


def sensor_noise(rng: random.Random) -> np.ndarray:
    """Fine grey noise, weaker than any texture."""
    source = np.random.default_rng(rng.getrandbits(32))
    return source.standard_normal((SIDE, SIDE, 1), dtype=np.float32) * np.float32(rng.uniform(0, 4))
