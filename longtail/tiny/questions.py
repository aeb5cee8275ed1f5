"""Questions about a scene with answers that follow from its items, and the marks for an answer."""

import random
import re
from collections import Counter
from dataclasses import dataclass

from .world import BACKGROUNDS, COLORS, HELD_OUT_PAIRS, PLACES, SHAPES, SIZES, Item, Scene, Text

FAMILIES = (
    "exist",
    "color",
    "shape",
    "size",
    "place",
    "count",
    "relation",
    "read",
    "choice",
    "background",
    "describe",
)
SHORT = FAMILIES[:-1]
DESCRIBE = ("Describe the image.", "What is in the image?", "Describe this image in detail.")
BRIEFLY = "\nAnswer the question using a single word or phrase."
YES_OR_NO = "\nPlease answer yes or no."
LETTER_ONLY = "\nAnswer with the option's letter from the given choices directly."
SUFFIX_SHARE = 0.28
CLEARLY = 14  # pixels by which one thing must be left of or above another to be asked about


@dataclass(frozen=True)
class Question:
    """A question; its answer comes in pieces, each with the things (bits: items, then texts) one must see to say it."""

    family: str
    text: str
    pieces: tuple[tuple[str, int], ...]

    @property
    def answer(self) -> str:
        return "".join(piece for piece, _ in self.pieces)


def questions(scene: Scene, families: tuple[str, ...] = FAMILIES, rng: random.Random | None = None) -> list[Question]:
    """One question of each family that the scene allows; the same ones every time unless `rng` says otherwise."""
    rng = rng or random.Random(scene.seed * 31 + 7)
    asked: dict[str, Question] = {}
    for family in families:
        question = _ASK[family](scene, rng)
        if question is not None:
            asked.setdefault(question.text, question)
    return list(asked.values())


def score(family: str, answer: str, reference: str) -> float:
    """1 or 0 for a short answer; for a description the share of the reference's things that it names in full."""
    if family != "describe":
        return float(answer.strip() == reference.strip())
    said, true = described(answer), described(reference)
    wanted = Counter(true["items"] + true["texts"])
    found = wanted & Counter(said["items"] + said["texts"])
    return sum(found.values()) / max(1, sum(wanted.values()))


def described(text: str) -> dict:
    """What a description claims: `items` (size, color, shape, place), `texts` (string, place), `background`."""
    words = {"size": SIZES, "color": COLORS, "shape": SHAPES, "place": sorted(PLACES, key=len, reverse=True)}
    size, color, shape, place = ("(" + "|".join(words[k]) + ")" for k in words)
    where = f"(?:at the|on the|in the) {place}"
    ground = re.search(rf"\b({'|'.join(BACKGROUNDS)}) background", text)
    return {
        "items": re.findall(rf"an? {size} {color} {shape} {where}\b", text),
        "texts": re.findall(rf"[Tt]he (?:word|number) (\w+) is {where}\b", text),
        "background": ground.group(1) if ground else None,
    }


def _one(family: str, text: str, answer: str, needs: int, rng: random.Random) -> Question:
    """A short question, in about a quarter of cases with the prompt suffix that LLaVA's benchmarks add."""
    if family == "choice":
        text += LETTER_ONLY if rng.random() < 0.5 else ""
    elif rng.random() < SUFFIX_SHARE:
        text += YES_OR_NO if answer in ("Yes", "No") and rng.random() < 0.5 else BRIEFLY
    return Question(family, text, ((answer, needs),))


def _a(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _at(place: str) -> str:
    if place == "center":
        return "in the center"
    return f"on the {place}" if place in ("left", "right") else f"at the {place}"


def _bits(scene: Scene, things) -> int:
    """The bit of every thing: items count from 0, the text follows them."""
    return sum(1 << (len(scene.items) if isinstance(t, Text) else scene.items.index(t)) for t in things)


def _unique(items, key) -> list[Item]:
    counts = Counter(key(item) for item in items)
    return [item for item in items if counts[key(item)] == 1]


def _name(item: Item, scene: Scene, rng: random.Random) -> str | None:
    """Words that mean this item and no other of the scene."""
    ways = (
        (lambda i: i.shape, item.shape, 1),
        (lambda i: i.color, f"{item.color} object", 1),
        (lambda i: (i.color, i.shape), f"{item.color} {item.shape}", 2),
        (lambda i: (i.size, i.shape), f"{item.size} {item.shape}", 1),
    )
    names = [name for key, name, weight in ways for _ in range(weight) if item in _unique(scene.items, key)]
    return rng.choice(names) if names else None


def _exist(scene: Scene, rng: random.Random) -> Question:
    kind = rng.random()
    if kind < 0.12:
        return _one("exist", "Is there any text in the image?", *_yes(scene, scene.texts[:1]), rng)
    if kind < 0.45:
        present = sorted({i.shape for i in scene.items})
        absent = [s for s in SHAPES if s not in present]
        shape = rng.choice(present if present and rng.random() < 0.5 else absent)
        seen = [i for i in scene.items if i.shape == shape]
        return _one("exist", f"Is there {_a(shape)} in the image?", *_yes(scene, seen), rng)
    pairs = sorted({(i.color, i.shape) for i in scene.items})
    color, shape = rng.choice(pairs) if pairs and rng.random() < 0.5 else _absent_pair(scene, pairs, rng)
    seen = [i for i in scene.items if (i.color, i.shape) == (color, shape)]
    return _one("exist", f"Is there {_a(color)} {shape} in the image?", *_yes(scene, seen), rng)


def _yes(scene: Scene, seen) -> tuple[str, int]:
    return ("Yes", _bits(scene, seen[:1])) if seen else ("No", 0)


def _absent_pair(scene: Scene, present, rng: random.Random) -> tuple[str, str]:
    """A colour and shape that do not occur together, often each of them present; never a held-out pair in training."""
    while True:
        color, shape = rng.choice(list(COLORS)), rng.choice(SHAPES)
        if scene.items and rng.random() < 0.7:  # adversarial
            color = rng.choice(scene.items).color if rng.random() < 0.65 else color
            shape = rng.choice(scene.items).shape if rng.random() < 0.65 else shape
        if (color, shape) not in present and not (scene.training and (color, shape) in HELD_OUT_PAIRS):
            return color, shape


def _color(scene: Scene, rng: random.Random) -> Question | None:
    if scene.text and (rng.random() < 0.15 or not scene.items):
        return _one("color", f"What color is the {scene.text.kind}?", scene.text.color, _bits(scene, [scene.text]), rng)
    for key, words in ((lambda i: i.shape, "{0.shape}"), (lambda i: (i.size, i.shape), "{0.size} {0.shape}")):
        items = _unique(scene.items, key)
        if items:
            item = rng.choice(items)
            return _one("color", f"What color is the {words.format(item)}?", item.color, _bits(scene, [item]), rng)
    return None


def _shape(scene: Scene, rng: random.Random) -> Question | None:
    if rng.random() < 0.5:
        items = [i for i in _unique(scene.items, lambda i: i.place) if not scene.text or i.place != scene.text.place]
        if items:
            item = rng.choice(items)
            return _one("shape", f"What shape is {_at(item.place)}?", item.shape, _bits(scene, [item]), rng)
    items = _unique(scene.items, lambda i: i.color)
    if not items:
        return None
    item = rng.choice(items)
    return _one("shape", f"What shape is the {item.color} object?", item.shape, _bits(scene, [item]), rng)


def _size(scene: Scene, rng: random.Random) -> Question | None:
    named = [(i, n) for i in scene.items if (n := _name(i, scene, rng)) and i.size not in n]
    if not named:
        return None
    item, name = rng.choice(named)
    return _one("size", f"Is the {name} small or large?", item.size, _bits(scene, [item]), rng)


def _place(scene: Scene, rng: random.Random) -> Question | None:
    if scene.text and (rng.random() < 0.2 or not scene.items):
        return _one("place", f"Where is the {scene.text.kind}?", scene.text.place, _bits(scene, [scene.text]), rng)
    named = [(i, n) for i in scene.items if (n := _name(i, scene, rng))]
    if not named:
        return None
    item, name = rng.choice(named)
    return _one("place", f"Where is the {name}?", item.place, _bits(scene, [item]), rng)


def _count(scene: Scene, rng: random.Random) -> Question:
    kind = rng.random()
    some = rng.choice(scene.items) if scene.items and rng.random() < 0.8 else None
    if kind < 0.35:
        seen, what = scene.items, "objects"
    elif kind < 0.68:
        shape = some.shape if some else rng.choice(SHAPES)
        seen, what = [i for i in scene.items if i.shape == shape], shape + ("es" if shape == "cross" else "s")
    else:
        color = some.color if some else rng.choice(list(COLORS))
        seen, what = [i for i in scene.items if i.color == color], f"{color} objects"
    return _one("count", f"How many {what} are there?", str(len(seen)), _bits(scene, seen), rng)


def _relation(scene: Scene, rng: random.Random) -> Question | None:
    named = [(i, n) for i in scene.items if (n := _name(i, scene, rng))]
    for _ in range(6 if len(named) > 1 else 0):
        (first, one), (second, other) = rng.sample(named, 2)
        across = rng.random() < 0.5
        gap = first.x - second.x if across else first.y - second.y
        if abs(gap) < CLEARLY:
            continue
        words = ("to the left of", "to the right of") if across else ("above", "below")
        side = rng.randrange(2)
        answer = "Yes" if (gap < 0) == (side == 0) else "No"
        text = f"Is the {one} {words[side]} the {other}?"
        return _one("relation", text, answer, _bits(scene, [first, second]), rng)
    return None


def _read(scene: Scene, rng: random.Random) -> Question | None:
    if not scene.text:
        return None
    asked = {"word": "What word is written?", "number": "What number is shown?"}[scene.text.kind]
    text = asked if rng.random() < 0.5 else "What is written in the image?"
    return _one("read", text, scene.text.string, _bits(scene, [scene.text]), rng)


def _choice(scene: Scene, rng: random.Random) -> Question | None:
    """A colour, shape, place or count question with two to four lettered options."""
    pools = {_color: list(COLORS), _shape: SHAPES, _place: PLACES, _count: "01234567"}
    for ask in rng.sample(list(pools), len(pools)):
        question = ask(scene, rng)
        if question is None:
            continue
        text = question.text.split("\n")[0]
        wrong = [o for o in pools[ask] if o != question.answer and not (scene.training and _held_out(text, o))]
        options = [*rng.sample(wrong, rng.choice((1, 2, 3, 3))), question.answer]
        rng.shuffle(options)
        lines = "".join(f"\n{letter}. {option}" for letter, option in zip("ABCD", options, strict=False))
        letter = "ABCD"[options.index(question.answer)]
        return _one("choice", text + lines, letter, question.pieces[0][1], rng)
    return None


def _held_out(text: str, option: str) -> bool:
    """Whether a wrong option would deny a held-out pair, which training must not do."""
    return any((c in text and s == option) or (s in text and c == option) for c, s in HELD_OUT_PAIRS)


def _background(scene: Scene, rng: random.Random) -> Question:
    if rng.random() < 0.7:
        return _one("background", "What is the background like?", scene.background, 0, rng)
    kind = scene.background if rng.random() < 0.5 else rng.choice([b for b in BACKGROUNDS if b != scene.background])
    answer = "Yes" if kind == scene.background else "No"
    return _one("background", f"Is the background {kind}?", answer, 0, rng)


def _describe(scene: Scene, rng: random.Random) -> Question:
    """Ground and number first, then one sentence a thing in reading order of the nine places."""
    things = sorted((*scene.items, *scene.texts[:1]), key=lambda t: (PLACES.index(t.place), t.x))
    count = len(scene.items)
    pieces = [
        ("The image shows", 0),
        (f" {count}", _bits(scene, scene.items)),
        (f" object{'' if count == 1 else 's'} on a {scene.background} background.", 0),
    ]
    for thing in things:
        if isinstance(thing, Text):
            sentence = f" The {thing.kind} {thing.string} is {_at(thing.place)}."
        else:
            sentence = f" There is a {thing.size} {thing.color} {thing.shape} {_at(thing.place)}."
        pieces.append((sentence, _bits(scene, [thing])))
    return Question("describe", rng.choice(DESCRIBE), tuple(pieces))


_WAYS = (_exist, _color, _shape, _size, _place, _count, _relation, _read, _choice, _background, _describe)
_ASK = dict(zip(FAMILIES, _WAYS, strict=True))
