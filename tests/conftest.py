"""A random tiny LLaVA of the real classes, saved and loaded like any other, and the bundled model."""

from types import SimpleNamespace

import pytest
import torch
from browsing import browser, complaints, scenes, url, visit  # noqa: F401 (fixtures)
from PIL import Image

import longtail
from longtail.models import miniatures

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """What drives a browser is marked so: `make test` runs it after all else, alone on the machine."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")


def random_llava(tower_layers: int = 5, key_value_heads: int = 2):
    """A random tiny LLaVA-1.5."""
    return miniatures.random_model(miniatures.config("llava-1.5", tower_layers, key_value_heads))


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The random tiny model as a folder on disk."""
    place = tmp_path_factory.mktemp("random-tiny")
    miniatures.write("llava-1.5", place)
    return place


@pytest.fixture(scope="session")
def clip_folder(folder, llava):
    """CLIP text tower and visual projection beside the random model; `llava` was loaded before, without them."""
    miniatures.write_clip(folder)
    return folder / "clip"


@pytest.fixture(scope="session")
def llava(folder):
    """The random tiny model, loaded as a user would."""
    return longtail.load(str(folder))


@pytest.fixture(scope="session")
def tiny():
    """The bundled, trained model."""
    return longtail.load("tiny")


@pytest.fixture(scope="session")
def picture():
    """A fixed picture with structure, not square."""
    generator = torch.Generator().manual_seed(3)
    pixels = torch.rand(9, 12, 3, generator=generator).mul(255).byte().numpy()
    return Image.fromarray(pixels).resize((96, 72), Image.Resampling.BICUBIC)


def in_one_view(embeddings: torch.Tensor, span: tuple[int, int], grid: tuple[int, int] | None = None):
    """A prompt [T, D] whose visual tokens stand at `span`, as those of one view of that grid, a row by default."""
    from longtail.tokens import Spliced

    place = torch.arange(len(embeddings))
    visual = (span[0] <= place) & (place < span[1])
    columns = grid[1] if grid else span[1] - span[0]
    raster = torch.stack([(place - span[0]) // columns, (place - span[0]) % columns], dim=1)
    raster[~visual] = -1
    return Spliced(embeddings, span, place[visual], visual, raster, (span[1] - span[0],))


@pytest.fixture
def launched(monkeypatch):
    """What app.py would serve, each time: the page and how. Nothing is served."""
    import app

    launches = []

    def serve(blocks, *flags, **how):
        launches.append((blocks, how))
        return SimpleNamespace(until_told=lambda: None)

    monkeypatch.setattr(app.server, "serve", serve)
    return launches


@pytest.fixture
def visual():
    """Builds VisualTokens of 36 random patches, or of the CLS similarities it is given."""
    return random_visual


def random_visual(seed: int = 0, rows: int = 6, columns: int = 6, width: int = 32) -> longtail.VisualTokens:
    from longtail.tokens import TowerLayer, VisualTokens

    generator = torch.Generator().manual_seed(seed)
    n = rows * columns

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    layers = {i: TowerLayer(draw(1 + n, width), draw(1, width) * 3, draw(1 + n, width), 4) for i in range(24)}
    return VisualTokens(draw(n, width), draw(width), (rows, columns), layers)
