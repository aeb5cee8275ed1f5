"""The method in one picture: an image, patches, a curve, kept tokens, a prompt, a cache. Inline SVG, wide and tall.

The scene and its scores are made up; the curve, its knee and its cut are the library's own on these scores.
"""

import math

import torch

from longtail.similarity import long_tail
from longtail.tokens import Curve

from .words import say

PATCHES, ALPHA = 12, 0.24
THINGS = ((3.3, 3.4, 1.0), (8.6, 4.1, 0.8), (6.3, 9.1, 0.62))  # x, y in patches, how much CLS looks
SIDE, PITCH = 156, 13  # the image, a patch
WIDE = {
    "image": (0, 0),
    "tower": (204, 0),
    "curve": (368, 0),
    "prompt": (748, 0),
    "model": (944, 0),
    "cache": (1096, 0),
}
TALL = {
    "image": (0, 0),
    "tower": (206, 0),
    "curve": (4, 290),
    "prompt": (0, 580),
    "model": (206, 580),
    "cache": (206, 856),
}
WAYS_WIDE = ((170, 78, 190, 78), (328, 78, 348, 78), (712, 78, 732, 78), (904, 78, 924, 78), (1056, 78, 1076, 78))
WAYS_TALL = ((171, 78, 191, 78), (259, 250, 259, 270), (70, 548, 70, 568), (161, 658, 181, 658), (252, 824, 252, 844))
BESIDE = {"cache": (0, 856 - 184 + 56)}  # a caption in the tall picture that does not stand below
ROOM = {"image": 156, "tower": 130, "curve": 330, "prompt": 150, "model": 106, "cache": 150}  # width of a caption
LINES = 54  # the height of a caption: three lines


def scene() -> Curve:
    """The curve of the made-up scores: highest at the three things, a little restless elsewhere."""
    score = [
        sum(a * math.exp(-math.hypot(column + 0.5 - x, row + 0.5 - y) / 0.9) for x, y, a in THINGS)
        + 0.012 * (1 + math.sin(5 * row + 1.7 * column * column))
        for row in range(PATCHES)
        for column in range(PATCHES)
    ]
    return long_tail(torch.tensor(score), ALPHA, "tail")


def drawing() -> str:
    """The picture, wide and tall: the style sheet shows the one that fits."""
    curve = scene()
    draw = {"image": _image, "tower": _tower, "curve": _curve, "prompt": _prompt, "model": _model, "cache": _cache}
    parts = {name: part(curve) for name, part in draw.items()}
    wide = _svg("wide", 1240, 244, WIDE, WIDE, parts, WAYS_WIDE)
    return wide + _svg("tall", 344, 1004, TALL, TALL | BESIDE, parts, WAYS_TALL)


def _svg(kind: str, width: int, height: int, places: dict, captions: dict, parts: dict, ways: tuple) -> str:
    groups = "".join(_at(places[name], part) for name, part in parts.items())
    groups += "".join(_at(captions[name], _caption(name, i)) for i, name in enumerate(parts, 1))
    return (
        f'<svg class="about-{kind}" viewBox="-1 -8 {width + 2} {height + 8}" role="img" '
        f'xmlns="http://www.w3.org/2000/svg" aria-labelledby="about-{kind}-title about-{kind}-desc">'
        f'<title id="about-{kind}-title">{say("about_figure_title")}</title>'
        f'<desc id="about-{kind}-desc">{say("about_figure_desc")}</desc>{groups}'
        f"{''.join(_way(*way) for way in ways)}</svg>"
    )


def _at(place: tuple[int, int], part: str) -> str:
    return f'<g transform="translate({place[0]} {place[1]})">{part}</g>'


def _caption(name: str, number: int) -> str:
    """A number, a name, and what happens there, in lines that the browser breaks: each language has its own."""
    return (
        f'<text class="about-step" y="184">{number}</text>'
        f'<text class="about-name" x="14" y="184">{say(f"about_{name}")}</text>'
        f'<foreignObject y="191" width="{ROOM[name]}" height="{LINES}">'
        f"<p>{say(f'about_{name}_text')}</p></foreignObject>"
    )


def _way(x1, y1, x2, y2) -> str:
    """An arrow."""
    dx, dy = (4, 0) if y1 == y2 else (0, 4)
    head = f"M{x2 - dx - dy} {y2 - dy - dx}L{x2} {y2}L{x2 - dx + dy} {y2 - dy + dx}"
    return f'<path class="about-way" d="M{x1} {y1}L{x2} {y2}{head}"/>'


def _image(curve: Curve) -> str:
    """Three things under their patches; what is not kept is veiled."""
    kept = set(curve.keep.tolist())
    at = [(PITCH * x, PITCH * y) for x, y, _ in THINGS]
    (cx, cy), (tx, ty), (dx, dy) = at
    things = (
        f'<circle class="about-ink" cx="{cx:.1f}" cy="{cy:.1f}" r="25"/>'
        f'<path class="about-ink" d="M{tx:.1f} {ty - 25:.1f}l24 41h-48z"/>'
        f'<path class="about-ink" d="M{dx:.1f} {dy - 23:.1f}l23 23l-23 23l-23-23z"/>'
    )
    veil = "".join(
        f"M{PITCH * (p % PATCHES)} {PITCH * (p // PATCHES)}h{PITCH}v{PITCH}h-{PITCH}z"
        for p in range(PATCHES**2)
        if p not in kept
    )
    lines = "".join(f"M{PITCH * i} 0v{SIDE}M0 {PITCH * i}h{SIDE}" for i in range(PATCHES + 1))
    return (
        f'<rect class="about-ground" width="{SIDE}" height="{SIDE}"/>{things}<path class="about-veil" d="{veil}"/>'
        f'<path class="about-grid" d="{lines}"/><path class="about-edge" d="{_edge(kept)}"/>'
    )


def _edge(kept: set[int]) -> str:
    """The lines between what is kept and what is not."""
    lines = ""
    for patch in kept:
        row, column = divmod(patch, PATCHES)
        x, y = PITCH * column, PITCH * row
        lines += "" if column and patch - 1 in kept else f"M{x} {y}v{PITCH}"
        lines += "" if column < PATCHES - 1 and patch + 1 in kept else f"M{x + PITCH} {y}v{PITCH}"
        lines += "" if patch - PATCHES in kept else f"M{x} {y}h{PITCH}"
        lines += "" if patch + PATCHES in kept else f"M{x} {y + PITCH}h{PITCH}"
    return lines


def _tower(curve: Curve) -> str:
    """24 layers, the first at the bottom; the one that scores stands out."""
    lines = "".join(f"M0 {153 - 6.6 * i:.1f}h106" for i in range(24) if i != 16)
    y = 153 - 6.6 * 16
    return (
        f'<path class="about-layer" d="{lines}"/><path class="about-layer about-hot" d="M0 {y:.1f}h106"/>'
        f'<circle class="about-accent" cx="106" cy="{y:.1f}" r="4"/>'
    )


def _curve(curve: Curve) -> str:
    """Similarity by rank, the objective f, the knee at its maximum, the cut."""
    n, top = len(curve.similarity), float(curve.similarity[0])

    def x(rank):
        return 330 * (rank - 1) / (n - 1)

    def y(share):
        return 150 - 144 * share

    points = [(x(i), y(float(value) / top)) for i, value in enumerate(curve.similarity, 1)]
    peak = float(curve.objective.max())
    dots = [(x(i), y(0.9 * float(value) / peak)) for i, value in enumerate(curve.objective, 1)]
    knee, cut = x(curve.knee), x(curve.kept)
    head = f"M0 150L{_path(points[: curve.kept])}L{cut:.1f} 150z"
    return (
        f'<path class="about-axis" d="M0 150h330"/><path class="about-area" d="{head}"/>'
        f'<path class="about-objective" d="M{_path(dots)}"/>'
        f'<path class="about-tail" d="M{_path(points[curve.kept - 1 :])}"/>'
        f'<path class="about-head" d="M{_path(points[: curve.kept])}"/>'
        f'<path class="about-knee" d="M{knee:.1f} 10V150"/><path class="about-cut" d="M{cut:.1f} 96V150"/>'
        f'<text class="about-note" x="{knee + 5:.1f}" y="5">{say("about_knee_mark", curve.knee)}</text>'
        f'<text class="about-note about-strong" x="{cut + 6:.1f}" y="104">'
        f"{say('about_cut_mark', curve.kept, n)}</text>"
        f'<text class="about-note" x="{dots[88][0]:.1f}" y="{dots[88][1] - 10:.1f}">f(i)</text>'
    )


def _path(points) -> str:
    return "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _prompt(curve: Curve) -> str:
    """Words before, the kept visual tokens, words after: cells in rows, read like text."""
    kinds = ["word"] * 7 + ["visual"] * curve.kept + ["word"] * 13
    return "".join(
        f'<rect class="about-{kind}" x="{20 * (i % 7) + 1}" y="{20 * (i // 7) + 9}" width="15" height="15" rx="1.5"/>'
        for i, kind in enumerate(kinds)
    )


def _model(curve: Curve) -> str:
    """The decoder's layers."""
    lines = "".join(f"M0 {146 - 9.2 * i:.1f}h92" for i in range(16))
    return f'<path class="about-layer" d="{lines}"/>'


def _cache(curve: Curve) -> str:
    """Slots: those that received most stay, the newest stay, the least related one leaves."""
    kinds = ["heavy"] * 14 + ["gone"] + ["heavy"] * 6 + ["recent"] * 21
    cells = ""
    for i, kind in enumerate(kinds):
        x, y = 20 * (i % 7) + 1, 20 * (i // 7) + 9
        cells += f'<rect class="about-{kind}" x="{x}" y="{y}" width="15" height="15" rx="1.5"/>'
        if kind == "gone":
            cells += f'<path class="about-cross" d="M{x + 4} {y + 4}l7 7m0-7l-7 7"/>'
    return cells + (
        f'<text class="about-note" x="0" y="144">{say("about_heavy_mark")}</text>'
        f'<text class="about-note about-strong" x="76" y="144">{say("about_recent_mark")}</text>'
    )
