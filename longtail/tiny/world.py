"""What a scene may contain, by name: the words that pictures, questions and scores share. Knows no pixels."""

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

SIDE, PATCH = 192, 8
GRID = SIDE // PATCH
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond")
COLORS = {
    "red": (215, 35, 35),
    "green": (35, 155, 55),
    "blue": (40, 75, 220),
    "yellow": (245, 220, 40),
    "orange": (245, 135, 20),
    "purple": (140, 45, 175),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
}
SIZES = ("small", "large")
PLACES = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
BACKGROUNDS = ("plain", "gradient", "textured")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DIGITS = "0123456789"
WORDS = tuple(
    "CAT DOG SUN MAP CAR BUS RED BOX KEY HAT CUP PEN ICE OWL FOX BEE ANT COW PIG JAM STOP EXIT OPEN SHOP TAXI BANK "
    "CAFE HOME PARK ZOO FISH BIRD LION BEAR WOLF MILK CAKE BOOK DOOR LAMP MOON STAR TREE LEAF ROSE SNOW RAIN WIND "
    "FIRE GOLD IRON JAZZ QUIZ VASE YOGA KIWI PUMP DUCK GIFT HELP NEXT PLAY TURN WEST EAST NORTH SOUTH APPLE BREAD "
    "CHAIR HOTEL MUSIC PIZZA RADIO TRAIN WATER ZEBRA".split()
)
MOST_ITEMS = 7
STRANGE = "strange"  # a colour without a name: training pictures in such colours teach shapes apart from colours

# Scenes with a seed from here on are never trained on, and only they may contain the pairs below.
HELD_OUT_SEED = 1_000_000
HELD_OUT_PAIRS = frozenset(
    {
        ("purple", "circle"),
        ("orange", "square"),
        ("white", "triangle"),
        ("green", "star"),
        ("blue", "heart"),
        ("yellow", "cross"),
    }
)


def place_of(x: float, y: float) -> str:
    """The third of the picture, across and down, in which a point lies."""
    third = SIDE / 3
    return PLACES[min(2, int(y // third)) * 3 + min(2, int(x // third))]


@dataclass(frozen=True)
class Item:
    """One object; `x`, `y` are its centre, `box` its left, top, right and bottom edge in pixels, `rgb` its paint."""

    shape: str
    color: str
    size: str
    x: float
    y: float
    box: tuple[int, int, int, int]
    rgb: tuple[float, float, float]

    @property
    def place(self) -> str:
        return place_of(self.x, self.y)


@dataclass(frozen=True)
class Text:
    """One string in the picture: a word (letters) or a number (digits)."""

    string: str
    color: str
    x: float
    y: float
    box: tuple[int, int, int, int]

    @property
    def kind(self) -> str:
        return "number" if self.string[0] in DIGITS else "word"

    @property
    def place(self) -> str:
        return place_of(self.x, self.y)


@dataclass(frozen=True)
class Scene:
    """A rendered picture and everything that is true of it.

    `patches` [24, 24] says whose patch it is: 0 nobody's, 1.. the items, then the texts. `letters` says which character
    of its text a patch shows (1..), `coverage` which share of it is painted.
    """

    seed: int
    image: Image.Image
    items: tuple[Item, ...]
    texts: tuple[Text, ...]
    background: str
    patches: np.ndarray = field(repr=False)
    letters: np.ndarray = field(repr=False)
    coverage: np.ndarray = field(repr=False)

    @property
    def text(self) -> Text | None:
        return self.texts[0] if self.texts else None

    @property
    def training(self) -> bool:
        return self.seed < HELD_OUT_SEED
