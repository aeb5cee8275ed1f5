"""Short sentences and phrases about a scene, for the contrastive (CLIP) objective."""

import random

from .questions import _a, _at, _bits, questions
from .world import Scene, Text

ABOUT_ONE = ("color", "shape", "size", "place", "exist", "read")


def caption(scene: Scene, rng: random.Random) -> str:
    """Up to three things and the ground: `a large red circle, a star and the word CAT on a plain background`."""
    things = [*scene.items, *scene.texts[:1]]
    chosen = rng.sample(things, min(3, len(things)))
    names = [_phrase(thing, rng) for thing in chosen]
    listed = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    return f"{listed} on a {scene.background} background"


def phrases(scene: Scene, rng: random.Random, count: int) -> list[tuple[str, int]]:
    """Phrases and questions, each with the things (bits) that it is about."""
    made = []
    for _ in range(count):
        if rng.random() < 0.5:
            asked = [q for q in questions(scene, ABOUT_ONE, rng) if q.pieces[0][1]]
            if asked:
                question = rng.choice(asked)
                made.append((question.text.split("\n")[0], question.pieces[0][1]))
                continue
        thing = rng.choice([*scene.items, *scene.texts[:1]])
        made.append(_loose(thing, scene, rng))
    return made


def _phrase(thing, rng: random.Random) -> str:
    if isinstance(thing, Text):
        return f"the {thing.kind} {thing.string}"
    return _a(rng.choice((f"{thing.size} {thing.color} {thing.shape}", f"{thing.color} {thing.shape}")))


def _loose(thing, scene: Scene, rng: random.Random) -> tuple[str, int]:
    """A phrase that may fit several things, with all that it fits."""
    if isinstance(thing, Text):
        return rng.choice((f"the {thing.kind} {thing.string}", "the text", f"a {thing.kind}")), _bits(scene, [thing])
    fits, words = rng.choice(
        (
            (lambda i: i.shape == thing.shape, _a(thing.shape)),
            (lambda i: i.color == thing.color, f"{thing.color} objects"),
            (lambda i: (i.color, i.shape) == (thing.color, thing.shape), _a(f"{thing.color} {thing.shape}")),
            (lambda i: (i.size, i.shape) == (thing.size, thing.shape), _a(f"{thing.size} {thing.shape}")),
            (lambda i: i.place == thing.place, f"an object {_at(thing.place)}"),
        )
    )
    return words, _bits(scene, [i for i in scene.items if fits(i)])
