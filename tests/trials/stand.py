"""The page served in this process as app.py serves it, with a door that counts who is in the model."""

import gc
import io
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from .visitor import Site, Visitor
from .watch import Door

sys.path.insert(0, str(Path(__file__).parents[2]))

import app  # noqa: F401 (the environment that the page is served in)
import longtail
from demo import host, page, server
from longtail import REDUCERS


@dataclass
class Stand:
    """The page as it is served here, and what watches it."""

    llava: object
    site: Site
    blocks: object
    door: Door
    time_limit: float

    @property
    def line(self):
        """The line for the model."""
        return self.blocks.host.line

    def visitor(self) -> Visitor:
        """A tab that was opened just now."""
        return Visitor(self.site)

    def filled(self):
        """As many results as the host keeps for follow-ups, all alike: what is counted now is counted alike later."""
        with self.visitor() as visitor:
            image = visitor.upload(picture(0))
            for _ in range(host.FOLLOWED + 1):
                visitor.ask("LongTail", image=image, question="What is it?", new=2).wait()


@contextmanager
def stand(llava, time_limit: float = 60.0) -> Iterator[Stand]:
    """Serve the page in this process, as app.py does."""
    with Door(llava) as door:
        gc.collect()
        gc.freeze()  # whatever is there now is no business of a census
        blocks = page.build(llava, time_limit)
        running = server.serve(blocks, quiet=True)
        try:
            yield Stand(llava, Site(running.url), blocks, door, time_limit)
        finally:
            running.close()
            gc.unfreeze()


@contextmanager
def slow(llava, seconds: float):
    """Every layer of the language model takes so much longer: what a larger model is like."""
    quick = {name: getattr(llava, name) for name in ("decode_layer", "decode_together")}
    for name, layer in quick.items():
        setattr(llava, name, lambda *asked, layer=layer, **options: time.sleep(seconds) or layer(*asked, **options))
    try:
        yield
    finally:
        for name, layer in quick.items():
            setattr(llava, name, layer)


@contextmanager
def talkative(llava):
    """The model never ends its answer itself."""
    ends, llava.ends = llava.ends, frozenset()
    try:
        yield
    finally:
        llava.ends = ends


def picture(seed: int) -> bytes:
    """A scene like no other."""
    draw, scene = random.Random(seed), Image.new("RGB", (224, 168), "grey")
    pen = ImageDraw.Draw(scene)
    for _ in range(6):
        x, y, size = draw.randrange(190), draw.randrange(140), draw.randrange(16, 60)
        colour = tuple(draw.randrange(256) for _ in range(3))
        draw.choice((pen.ellipse, pen.rectangle))((x, y, x + size, y + size), fill=colour)
    scene.save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def able(llava) -> list[str]:
    """Every method of the registry that this model can answer with; it is said why another cannot."""
    names, image = [], picture(0)
    for name in REDUCERS:
        try:
            longtail.answer(llava, image, "What is it?", longtail.make(name), max_new_tokens=1)
        except ValueError as reason:
            print(f"  {name} cannot run on {llava.name}: {reason}")
        else:
            names.append(name)
    return names
