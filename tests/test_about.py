"""The page about the page: all of its words are there, its figure is sound, its numbers are the files'."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import gradio as gr
import pytest
import torch

from demo import about, drawing
from demo.texts import TEXTS
from demo.words import english
from longtail.models.catalogue import TINY
from longtail.models.loading import Loaded
from longtail.similarity import knee

ROOT = Path(__file__).parents[1]
SVG = "{http://www.w3.org/2000/svg}"
TEXT = {key.removeprefix("about_"): text for key, (text, _) in TEXTS.items() if key.startswith("about_")}


@dataclass
class Named:
    """As much of a model as the page speaks of."""

    name: str
    grid: tuple[int, int] = (24, 24)
    dtype: torch.dtype = torch.bfloat16
    device: str = "cuda:0"
    loaded: Loaded | None = None
    most_tiles: int = 0


def built(llava, logged: bool = False) -> str:
    """The whole tab as HTML."""
    with gr.Blocks() as page:
        about.about(llava, logged)
    return english("\n".join(block.value for block in page.blocks.values() if isinstance(block, gr.HTML)))


def words(html: str) -> str:
    """What is read."""
    return " ".join(" ".join(ElementTree.fromstring(f"<page>{html}</page>").itertext()).split())


@pytest.fixture(scope="module")
def tiny_page():
    return built(Named("tiny"))


def test_every_text_is_on_some_page(tiny_page, llava):
    adapted = Named(
        "llava-1.6-vicuna-7b", most_tiles=4, loaded=Loaded("abc1234", "someone/lora", 14 << 30, 40 << 30, 26 << 30)
    )
    pages = words(built(adapted))
    assert (
        "Its weights hold 14.0 GiB. On its device 40.0 GiB were free before they were loaded, 26.0 GiB after" in pages
    )
    assert "Revision abc1234; adapter: someone/lora." in pages
    logged = words(built(None, logged=True))
    assert "Your question and its answers are" in logged and "nor your question is logged" not in logged
    shown = " ".join([words(tiny_page), words(built(llava)), logged, pages, tiny_page])
    for name, text in TEXT.items():
        for fixed in text.split("{}"):
            assert " ".join(fixed.split()) in shown, name


def test_nothing_is_said_outside_the_texts(tiny_page):
    """What is left, taken all known words away, is numbers and the citations: one place to translate."""
    left = words(tiny_page).replace(" ".join(about.CITATIONS.split()), "")
    known = [part.strip() for text in TEXT.values() for part in text.split("{}")]
    for part in sorted(known, key=len, reverse=True):
        left = left.replace(part, " ") if part else left
    assert set(re.findall(r"[^\W\d_]+", left)) <= {"f", "i", "M"}


def test_each_says_which_model_answers(tiny_page, llava):
    assert "A miniature answers here" in tiny_page and "about-stats" in tiny_page
    other = words(built(Named("llava-1.5-7b")))
    assert "llava-1.5-7b answers here, in bfloat16 on cuda:0; an image is 24 × 24 patches to it." in other
    assert "tiles" not in other
    tiled = words(built(Named("llava-1.6-mistral-7b", most_tiles=4)))
    assert "once at the whole image, and once at up to 4 tiles of it" in tiled
    assert "6 × 6 patches" in words(built(llava)) and "It is not the miniature" in other
    nobody = words(built(None))
    assert "No model answers here" in nobody and "miniature" not in nobody


def test_a_name_stays_text():
    assert "<script>" not in built(Named("<script>")) and "&lt;script&gt; answers here" in built(Named("<script>"))


def test_the_numbers_are_the_miniatures(tiny_page, tiny):
    values = re.findall(r"<b>(.*?)</b>", tiny_page)
    table = json.loads((TINY / "measurements.json").read_text())["table"]
    assert values[0] == f"{sum(p.numel() for p in tiny.model.parameters()) / 1e6:.1f} M"
    assert values[1] == str(tiny.grid[0] * tiny.grid[1])
    assert values[2:] == [f"{table[name]['mean']:.1%}" for name in ("cls-576", "cls-58", "random-58")]


def test_the_figure_is_sound_and_read_aloud():
    pictures = re.findall(r"<svg.*?</svg>", english(about.figure()), re.S)
    assert len(pictures) == 2
    ids = []
    for picture in pictures:
        root = ElementTree.fromstring(picture)
        title, description = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
        assert root.get("role") == "img" and root.get("aria-labelledby").split() == [
            title.get("id"),
            description.get("id"),
        ]
        assert title.text == TEXT["figure_title"] and description.text == TEXT["figure_desc"]
        ids += [element.get("id") for element in root.iter() if element.get("id")]
        colours = re.findall(r'(?:fill|stroke|style)="[^"]*"', picture)
        assert not colours, "colours are the style sheet's: light and dark follow"
    assert len(ids) == len(set(ids))


def test_the_figure_is_computed():
    curve = drawing.scene()
    n = drawing.PATCHES**2
    assert curve.knee == knee(curve.similarity) and curve.kept == int(drawing.ALPHA * (n - curve.knee))
    for picture in re.findall(r"<svg.*?</svg>", english(about.figure()), re.S):
        assert f"knee i* = {curve.knee}<" in picture and f"kept {curve.kept} / {n}<" in picture
        assert picture.count('<rect class="about-visual"') == curve.kept
        veil = re.search(r'class="about-veil" d="(.*?)"', picture).group(1)
        assert veil.count("z") == n - curve.kept, "what is not kept is veiled, patch by patch"


def test_the_edge_goes_around_what_is_kept():
    assert drawing._edge({0}).count("M") == 4
    assert drawing._edge({0, 1}).count("M") == 6
    last = drawing.PATCHES - 1
    assert drawing._edge({last, last + 1}).count("M") == 8, "the end of a row does not touch the next row's beginning"


def test_citations_are_the_readmes():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(r"```bibtex\n(.*?)```", readme, re.S).group(1) == about.CITATIONS
    assert about.CITATIONS.count("@") == 4


def test_the_style_knows_every_class():
    style = (ROOT / "demo" / "about.css").read_text()
    names = set(" ".join(re.findall(r'<(?:path|rect|circle|text)[^>]*class="([^"]+)"', about.figure())).split())
    assert len(names) > 20 and all(name.startswith("about-") and f".{name}" in style for name in names)
