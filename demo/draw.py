"""The masked image: a record in, picture out, on the picture that the model itself saw."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIDE = 672  # pixels a picture aims at; a patch gets a whole number of them
FADED = (226, 224, 219)  # what dropped patches fade to
EDGE = (184, 67, 26)  # outline of what is kept
RECOVERED = (22, 110, 140)  # outline of what was dropped first and taken back
MARK = (20, 20, 20)  # cross of what was kept first and given up later


@dataclass(frozen=True, eq=False)
class Fates:
    """What became of each patch [N] of a record."""

    role: np.ndarray  # before the language model: kept, recovered, merged, dropped
    group: np.ndarray  # the visual token that speaks for it, here or behind the language model's own merging; -1: none
    recycled: np.ndarray  # bool: the language model made its token part of another
    left: np.ndarray  # generated token, from 0, by which its token was given up; -1: never

    def states(self, step: int | None = None) -> np.ndarray:
        """How each patch stands after generated token `step`, the last one by default: its role; `merged` where the
        language model merged its token, `evicted` where that token was given up."""
        states = self.role.astype("<U9")
        states[self.recycled] = "merged"
        gone = self.left >= 0 if step is None else (self.left >= 0) & (self.left <= step)
        states[gone] = "evicted"
        return states


def fates(record: dict) -> Fates:
    """What became of each patch, told from an answer's record."""
    role, source = np.array(record["role"]), np.array(record["source"], int)
    positions = record["positions"]
    if not positions:  # stopped before the language model read anything
        return Fates(role, source, np.zeros(len(role), bool), np.full(len(role), -1))
    when = _gone(record["lost"], record["recycled"], [count for _, count in record["steps"]])
    left = np.array([when.get(position, -1) for position in positions])
    recycled = np.zeros(len(positions), bool)
    recycled[given_up(record["lost"], record["recycled"], positions)[1]] = True
    speaker, stands = np.arange(len(positions)), {position: token for token, position in enumerate(positions)}
    for position, by in record["recycled"]:
        speaker[stands[position]] = stands[by]
    there = source >= 0
    token = np.where(there, source, 0)
    return Fates(role, np.where(there, speaker[token], -1), there & recycled[token], np.where(there, left[token], -1))


def _gone(lost: list[int], recycled: list, counts: list[int]) -> dict[int, int]:
    """True position -> generated token by which it was gone: lost itself, or merged into one that was. `counts`: how
    many of `lost` were gone after each token."""
    by = np.searchsorted(np.maximum.accumulate(np.array([*counts, len(lost)])), np.arange(len(lost)), side="right")
    when = {position: token for position, token in zip(reversed(lost), reversed(by.tolist()), strict=True)}
    when = {position: token for position, token in when.items() if token < len(counts)}
    for position, speaker in reversed(list(recycled)):
        if speaker in when:
            when[position] = min(when[speaker], when.get(position, len(counts)))
    return when


def given_up(lost: list[int], recycled: list, positions: list[int]) -> tuple[list[int], list[int]]:
    """Which visual tokens the language model lost and which it merged, from true positions as an answer has them.

    `positions`: where each visual token stood in the prompt. What was merged is lost with what speaks for it.
    """
    lost = set(lost)
    for position, speaker in reversed(list(recycled)):
        if speaker in lost:
            lost.add(position)
    merged = {position for position, _ in recycled} - lost
    return tuple([token for token, p in enumerate(positions) if p in some] for some in (lost, merged))


def cells(views: list[dict], width: int, height: int) -> list[tuple[float, float, float, float]]:
    """Left, top, right, bottom of each patch [N], view after view, on a picture of that size."""
    made = []
    for view in views:
        (rows, columns), (left, top, wide, high) = view["grid"], view["box"]
        xs = [width * (left + wide * column / columns) for column in range(columns + 1)]
        ys = [height * (top + high * row / rows) for row in range(rows + 1)]
        made += [(xs[c], ys[r], xs[c + 1], ys[r + 1]) for r in range(rows) for c in range(columns)]
    return made


def enlarged(crop: Image.Image, views: list[dict]) -> Image.Image:
    """The crop at display size, every patch a whole number of pixels wide."""
    columns = max(round(view["grid"][1] / view["box"][2]) for view in views)
    width = max(SIDE // columns, 4) * columns
    return crop.resize((width, round(width * crop.height / crop.width)), Image.Resampling.LANCZOS)


def masked(crop: Image.Image, views: list[dict], states: np.ndarray) -> Image.Image:
    """The crop: kept patches clear and outlined, recovered ones in a colour of their own, merged ones half faded,
    dropped ones grey, evicted ones crossed."""
    picture = enlarged(crop, views)
    places = cells(views, *picture.size)
    for state, colour, share in (
        ("merged", picture, 0.55),
        ("evicted", picture.convert("L"), 0.55),
        ("dropped", picture.convert("L"), 0.16),
    ):
        veil = Image.blend(Image.new("RGB", picture.size, FADED), colour.convert("RGB"), share)
        mask = Image.new("1", picture.size)
        pen = ImageDraw.Draw(mask)
        for patch in np.flatnonzero(states == state):
            left, top, right, bottom = places[patch]
            pen.rectangle((left, top, right - 1, bottom - 1), fill=1)
        picture.paste(veil, mask=mask)
    pen = ImageDraw.Draw(picture)
    _outline(pen, views, places, np.isin(states, ("kept", "recovered", "evicted")), EDGE)
    _outline(pen, views, places, states == "recovered", RECOVERED)
    for patch in np.flatnonzero(states == "evicted"):
        _cross(pen, places[patch])
    return picture


def _outline(pen: ImageDraw.ImageDraw, views: list[dict], places: list, inside: np.ndarray, colour):
    """A line along every border between a patch inside and one outside; none along a view's own edge."""
    start = 0
    for view in views:
        rows, columns = view["grid"]
        here = inside[start : start + rows * columns].reshape(rows, columns)
        at = np.arange(start, start + rows * columns).reshape(rows, columns)
        for patch in at[:, :-1][here[:, 1:] != here[:, :-1]]:
            _, top, right, bottom = places[patch]
            pen.line([(right, top), (right, bottom)], fill=colour, width=2)
        for patch in at[:-1][here[1:] != here[:-1]]:
            left, _, right, bottom = places[patch]
            pen.line([(left, bottom), (right, bottom)], fill=colour, width=2)
        start += rows * columns


def _cross(pen: ImageDraw.ImageDraw, place: tuple[float, float, float, float]):
    left, top, right, bottom = place
    inset = (right - left) // 4
    for ends in (
        ((left + inset, top + inset), (right - inset, bottom - inset)),
        ((left + inset, bottom - inset), (right - inset, top + inset)),
    ):
        pen.line(ends, fill=(255, 255, 255), width=5)
        pen.line(ends, fill=MARK, width=2)
