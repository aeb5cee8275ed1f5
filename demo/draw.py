"""The masked image: tensors in, picture out, on the square that the model itself saw."""

from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageDraw

from longtail import Reduced

SIDE = 672  # pixels a picture aims at; a patch gets a whole number of them
FADED = (226, 224, 219)  # what dropped patches fade to
EDGE = (184, 67, 26)  # outline of what is kept
RECOVERED = (22, 110, 140)  # outline of what was dropped first and taken back
MARK = (20, 20, 20)  # cross of what was kept first and given up later


def patch_states(reduced: Reduced, lost: Iterable[int] = (), recycled: Iterable[int] = ()) -> np.ndarray:
    """What became of each patch [N]: its role; `evicted` where the token that spoke for it was lost later, `merged`
    where the language model made that token part of another."""
    states = reduced.role.astype("<U9")
    for tokens, state in ((recycled, "merged"), (lost, "evicted")):
        states[np.isin(reduced.source.numpy(), list(tokens))] = state
    return states


def given_up(lost: Iterable[int], recycled: Iterable[tuple[int, int]], span: tuple[int, int]) -> tuple[list, list]:
    """Which visual tokens the language model lost and which it merged, from true positions as an answer has them.

    `span`: where the visual tokens stood in the prompt. What was merged is lost with what speaks for it.
    """
    lost = set(lost)
    for position, speaker in reversed(list(recycled)):
        if speaker in lost:
            lost.add(position)
    merged = {position for position, _ in recycled} - lost
    return tuple(sorted(p - span[0] for p in some if span[0] <= p < span[1]) for some in (lost, merged))


def masked(crop: Image.Image, grid: tuple[int, int], states: np.ndarray) -> Image.Image:
    """The crop: kept patches clear and outlined, recovered ones in a colour of their own, merged ones half faded,
    dropped ones grey, evicted ones crossed."""
    patch, states = _patch_side(grid[1]), states.reshape(grid)
    picture = enlarged(crop, grid)
    for faded, colour, share in (
        (states == "merged", picture, 0.55),
        (states == "evicted", picture.convert("L"), 0.55),
        (states == "dropped", picture.convert("L"), 0.16),
    ):
        veil = Image.blend(Image.new("RGB", picture.size, FADED), colour.convert("RGB"), share)
        mask = Image.fromarray(faded.astype(np.uint8) * 255).resize(picture.size, Image.Resampling.NEAREST)
        picture.paste(veil, mask=mask)
    pen = ImageDraw.Draw(picture)
    _outline(pen, np.isin(states, ("kept", "recovered", "evicted")), patch, EDGE)
    _outline(pen, states == "recovered", patch, RECOVERED)
    for row, column in np.argwhere(states == "evicted"):
        _cross(pen, row * patch, column * patch, patch)
    return picture


def enlarged(crop: Image.Image, grid: tuple[int, int]) -> Image.Image:
    """The crop at display size, every patch a whole number of pixels wide."""
    patch = _patch_side(grid[1])
    return crop.resize((grid[1] * patch, grid[0] * patch), Image.Resampling.LANCZOS)


def gridded(crop: Image.Image, grid: tuple[int, int]) -> Image.Image:
    """The crop before anything is taken away, with the patches the model will cut it into."""
    picture, patch = enlarged(crop, grid), _patch_side(grid[1])
    lines = Image.new("RGBA", picture.size)
    pen = ImageDraw.Draw(lines)
    for at in range(patch, picture.width, patch):
        pen.line([(at, 0), (at, picture.height)], fill=(255, 255, 255, 70))
    for at in range(patch, picture.height, patch):
        pen.line([(0, at), (picture.width, at)], fill=(255, 255, 255, 70))
    return Image.alpha_composite(picture.convert("RGBA"), lines).convert("RGB")


def _patch_side(columns: int) -> int:
    return max(SIDE // columns, 4)


def _outline(pen: ImageDraw.ImageDraw, inside: np.ndarray, patch: int, colour: tuple[int, int, int]):
    """A line along every border between a patch inside and one outside; none along the picture's own edge."""
    for row, column in np.argwhere(inside[:, 1:] != inside[:, :-1]):
        x = (column + 1) * patch
        pen.line([(x, row * patch), (x, (row + 1) * patch)], fill=colour, width=2)
    for row, column in np.argwhere(inside[1:] != inside[:-1]):
        y = (row + 1) * patch
        pen.line([(column * patch, y), ((column + 1) * patch, y)], fill=colour, width=2)


def _cross(pen: ImageDraw.ImageDraw, top: int, left: int, patch: int):
    inset = patch // 4
    near, far = inset, patch - inset
    for ends in (((near, near), (far, far)), ((near, far), (far, near))):
        line = [(left + x, top + y) for x, y in ends]
        pen.line(line, fill=(255, 255, 255), width=5)
        pen.line(line, fill=MARK, width=2)
