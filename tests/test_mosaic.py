"""The page with a LLaVA-1.6 in a real browser: the whole image and its tiles in place, each with a curve of its own."""

import json
import re

import numpy as np
import pytest
from browsing import press, ran, says
from PIL import Image
from playwright.sync_api import expect

import longtail
from longtail.models import miniatures


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """A random LLaVA-1.6 in place of the other tests' model."""
    folder = tmp_path_factory.mktemp("next")
    miniatures.write("llava-1.6-vicuna", folder)
    return longtail.load(str(folder))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A wide picture and a tall one, each in three tiles of 24 patches that are no padding."""
    folder, listed = tmp_path_factory.mktemp("scenes"), []
    for name, size in (("wide", (288, 64)), ("tall", (64, 288))):
        pixels = np.random.default_rng(5).integers(0, 255, (9, 9, 3), np.uint8)
        Image.fromarray(pixels).resize(size).save(folder / f"{name}.png")
        listed.append({"image": f"{name}.png", "question": f"Is it {name}?", "answer": "Yes", "note": "noise"})
    (folder / "examples.json").write_text(json.dumps(listed))
    return folder


def views_of(llava, scenes, name: str) -> list[dict]:
    return llava.views(Image.open(scenes / f"{name}.png").size)


def centre(tab, views: list[dict], view: int, patch: int, column: int = 2) -> tuple[float, float]:
    """Where a patch of a view lies on the screen."""
    box, (rows, columns) = tab.locator(f"#column-{column} .picture").bounding_box(), views[view]["grid"]
    left, top, wide, high = views[view]["box"]
    x, y = (left + wide * (patch % columns + 0.5) / columns), (top + high * (patch // columns + 0.5) / rows)
    return box["x"] + box["width"] * x, box["y"] + box["height"] * y


def lit(tab, patch: int, curve: str, column: int = 2):
    expect(tab.locator(f"#column-{column} .hot")).to_have_attribute("data-patch", str(patch))
    expect(tab.locator(f"#column-{column} .which")).to_have_text(curve)


def hovers(tab, llava, scenes, name: str, column: int):
    """The picture has the crop's shape and shows its views; a patch brings up its own curve."""
    views, lane = views_of(llava, scenes, name), f"#column-{column}"
    assert [view["grid"][0] * view["grid"][1] for view in views] == [36, 24, 24, 24]
    picture, plot, tip = (tab.locator(f"{lane} .{part}").first for part in ("picture", "plot", "tip"))
    expect(plot).to_contain_text(re.compile(r"kept \d+ of 36"))
    picture.scroll_into_view_if_needed()
    crop, box = llava.crop(Image.open(scenes / f"{name}.png")), picture.bounding_box()
    assert box["width"] / box["height"] == pytest.approx(crop.width / crop.height, rel=0.01)
    assert tab.locator(f"{lane} clipPath path").get_attribute("d").count("M") == 4
    tab.mouse.move(*centre(tab, views, 2, 7, column))
    lit(tab, 67, "Tile 2", column)
    wide = views[2]["grid"][1]
    expect(tip).to_contain_text(f"patch 67 · row {7 // wide + 1}, column {7 % wide + 1} · rank ")
    expect(plot).to_contain_text(re.compile(r"kept \d+ of 24"))
    rank = re.search(r"rank (\d+)", tip.inner_text())[1]
    assert int(rank) <= 24
    expect(tab.locator(f"{lane} .dot")).to_have_attribute("data-rank", rank)
    tab.mouse.move(*centre(tab, views, 0, 8, column))
    lit(tab, 8, "The whole image", column)
    box = picture.bounding_box()  # beside the whole of the wide one, and below that of the tall one, lies nothing
    across, down = (box["width"] - 5, 5) if name == "wide" else (5, box["height"] - 5)
    tab.mouse.move(box["x"] + across, box["y"] + down)
    expect(tab.locator(f"{lane} .hot")).to_have_attribute("visibility", "hidden")


def test_tiles_by_pointer_and_by_arrows(visit, llava, scenes):
    tab, views = visit(query="?example=wide&m=Full&m=LongTail"), views_of(llava, scenes, "wide")
    ran(tab)
    hovers(tab, llava, scenes, "wide", 2)
    expect(tab.locator("#column-1 .which")).to_have_text("")  # the unpruned one has no curve
    picture = tab.locator("#column-2 .picture")
    for key, patch in (("ArrowRight", 0), ("ArrowRight", 1), ("ArrowDown", 7), ("ArrowUp", 1), ("ArrowUp", 1)):
        picture.press(key)
        lit(tab, patch, "The whole image")
    assert views[1]["box"][1] > views[0]["box"][3]  # tiles are drawn below
    for _ in range(5):
        picture.press("ArrowDown")
    lit(tab, 31, "The whole image")
    picture.press("ArrowDown")
    lit(tab, 37, "Tile 1")
    for _ in range(5):
        picture.press("ArrowRight")
    lit(tab, 60, "Tile 2")
    picture.press("ArrowUp")  # above it is nothing
    lit(tab, 60, "Tile 2")
    picture.press(" ")
    expect(tab.locator("#column-2 .hand span")).to_have_text("By hand: 1")
    tab.locator("#column-2 .hand").get_by_role("button", name="Ask these").click()
    expect(tab.locator("#column-3 .by p")).to_contain_text("Manual · patches 60")
    says(tab, "Done")
    expect(tab.locator("#column-3 p.kept")).to_contain_text(re.compile(r"^1\s*of"))


def test_a_picture_of_all_views_is_saved_and_replayed_on_a_phone(visit, llava, scenes, tmp_path):
    tab = visit(query="?example=tall&m=LongTail:alpha%3D0.6&m=PruMerge&m=FastV")
    ran(tab)
    hovers(tab, llava, scenes, "tall", 1)
    expect(tab.locator("#overlaps td")).to_have_count(10)  # of 3 x 3, and a corner
    with tab.expect_download() as download:
        tab.locator("#column-1 .save").click()
    download.value.save_as(tmp_path / "column.png")
    sheet, crop = Image.open(tmp_path / "column.png"), llava.crop(Image.open(scenes / "tall.png"))
    assert sheet.height > sheet.width * crop.height / crop.width
    with tab.expect_download() as download:
        press(tab, "HTML")
    download.value.save_as(tmp_path / "longtail.html")
    veil = tab.locator("#column-1 .picture .veil.dropped").get_attribute("d")
    phone = visit(390)
    phone.locator("input[type=file][accept*='.html']").set_input_files(tmp_path / "longtail.html")
    says(phone, "Replayed from longtail.html")
    expect(phone.locator("#column-1 .picture .veil.dropped")).to_have_attribute("d", veil)
    expect(phone.locator("#column-1 .which")).to_have_text("The whole image")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    picture, curve = (phone.locator(f"#column-1 .{part}").first.bounding_box() for part in ("picture", "curve"))
    assert picture["height"] > picture["width"] and curve["y"] >= picture["y"] + picture["height"]
