"""From a file to pixels: exact ones against transformers' processors, fast ones within bounds, both told."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

import longtail
from longtail import open_image
from longtail.__main__ import main
from longtail.bench import preprocess
from longtail.image import Picture, open_picture
from longtail.models import miniatures
from longtail.models.pixels import Exact, Fast, Stock, make

FAMILIES = ("llava-1.5", "llava-1.6-vicuna")
SIZES = [(1, 1), (1, 20), (20, 1), (48, 48), (47, 49), (96, 48), (50, 144), (333, 200), (200, 333), (640, 479)]
CPU = torch.device("cpu")


def noise(size, mode="RGB"):
    draws = np.random.default_rng(size[0] * 1000 + size[1])
    return Image.fromarray(draws.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)


def encoded(image, format="JPEG", **options):
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


@pytest.fixture(scope="module", params=FAMILIES)
def processor(request):
    return miniatures.processor(request.param)


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request):
    """The same model with exact and with fast pixels."""
    return [preprocess.model(request.param, kind) for kind in ("exact", "fast")]


# ---- exact


@pytest.mark.parametrize("size", SIZES)
def test_exact_pixels_are_transformers_bit_for_bit(processor, size):
    eye, image = make("exact", processor.image_processor), noise(size)
    stock = processor.image_processor(image, return_tensors="pt")["pixel_values"].flatten(0, -4)
    ours = eye.read(eye.open(image), CPU, torch.float32)
    assert type(eye) is Exact and torch.equal(ours, stock) and ours.stride() == stock.stride()
    half = eye.read(eye.open(image), CPU, torch.bfloat16)
    assert torch.equal(half, stock.to(torch.bfloat16))


@pytest.mark.parametrize("size", [(336, 336), (1152, 864), (500, 1333)])
def test_exact_pixels_at_the_size_of_llava(pair, size):
    llava, image = pair[0], noise(size)
    stock = llava.processor.image_processor(image, return_tensors="pt")["pixel_values"].flatten(0, -4)
    assert torch.equal(llava.prompt(image, "What?").pixels, stock)


@pytest.mark.parametrize("mode, format", [("L", "PNG"), ("P", "GIF"), ("CMYK", "JPEG"), ("RGBA", "WEBP"), ("1", "BMP")])
def test_whatever_mode_an_image_has(processor, mode, format):
    eye, data = make("exact", processor.image_processor), encoded(noise((90, 61), mode), format)
    stock = processor.image_processor(open_image(data), return_tensors="pt")["pixel_values"].flatten(0, -4)
    assert torch.equal(eye.read(eye.open(data), CPU, torch.float32), stock)


def test_grey_levels_are_what_is_normalised(processor):
    image = noise((130, 71))
    for eye in (make("exact", processor.image_processor), Stock(processor.image_processor)):
        levels = eye.views(eye.open(image), CPU)
        assert levels.dtype == torch.uint8
        read = make("exact", processor.image_processor).normalise(levels, torch.float32)
        assert torch.equal(read, eye.read(eye.open(image), CPU, torch.float32))


@pytest.mark.parametrize(
    "setting",
    [
        {"crop_size": {"height": 40, "width": 40}},
        {"resample": Image.Resampling.BILINEAR},
        {"do_center_crop": False, "size": {"height": 48, "width": 48}},
        {"rescale_factor": 1 / 127.5},
    ],
)
def test_another_processor_is_left_to_itself(setting):
    sizes = {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}
    other, image = CLIPImageProcessorPil(**sizes | setting), noise((90, 60))
    eye = make("exact", other)
    assert type(eye) is Stock
    assert torch.equal(eye.read(eye.open(image), CPU, torch.float32), other(image, return_tensors="pt")["pixel_values"])
    with pytest.raises(ValueError, match="a bird prepares its images in a way that has no fast form here: use pixels"):
        make("fast", other, "a bird")


@pytest.mark.parametrize("size", [(60, 60), (200, 50), (61, 190)])
def test_the_placeholder_is_repeated_as_the_processor_repeats_it(pair, size):
    llava, image = pair[0], noise(size)
    content = [{"type": "image"}, {"type": "text", "text": "What stands <here>?"}]
    text = llava.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    stock = llava.processor(images=image, text=text, return_tensors="pt")["input_ids"][0]
    assert torch.equal(llava.prompt(image, "What stands <here>?").ids, stock)


def test_a_template_with_two_images_is_refused(llava, picture, monkeypatch):
    twice = llava.processor.chat_template.replace("<image>", "<image><image>")
    monkeypatch.setattr(llava.processor, "chat_template", twice)
    with pytest.raises(ValueError, match="the prompt has 2 places for an image, not one: the chat template"):
        llava.prompt(picture, "What?")


# ---- fast


@pytest.mark.parametrize("size", SIZES)
def test_fast_pixels_are_a_grey_level_or_two_off(processor, size):
    exact, fast = (make(kind, processor.image_processor) for kind in ("exact", "fast"))
    picture = exact.open(noise(size))
    ours, theirs = (eye.views(picture, CPU).int() for eye in (fast, exact))
    assert type(fast) is Fast and ours.shape == theirs.shape and (ours - theirs).abs().max() <= 2
    read = fast.read(picture, CPU, torch.float32)
    assert torch.equal(read, exact.normalise(ours.byte(), torch.float32)) and read.is_contiguous()


@pytest.mark.parametrize(
    "size, smaller", [((1152, 864), (576, 432)), ((2881, 1999), (721, 500)), ((600, 500), (600, 500))]
)
def test_a_jpeg_is_decoded_no_smaller_than_needed(tmp_path, size, smaller):
    llava, data = preprocess.model("llava-1.5", "fast"), preprocess.photograph(size)
    (tmp_path / "a.jpg").write_bytes(data)
    for source in (data, tmp_path / "a.jpg"):
        picture = llava.open(source)
        assert (picture.size, picture.image.size) == (size, smaller)
    assert llava.open(open_image(data)).image.size == size, "what is decoded already stays as it is"
    assert preprocess.model("llava-1.5", "exact").open(data).image.size == size


def test_the_layout_is_of_the_size_an_image_came_in(pair):
    exact, fast = pair
    data = preprocess.photograph((2881, 1999))
    seen = [llava.prompt(llava.open(data), "What?") for llava in pair]
    assert fast.open(data).image.size != exact.open(data).image.size
    assert seen[0].layout.same(seen[1].layout) and torch.equal(seen[0].ids, seen[1].ids)
    apart = np.abs(np.asarray(fast.crop(fast.open(data)), int) - np.asarray(exact.crop(data), int))
    assert apart.mean() < 1 and apart.max() < 16


def test_a_jpeg_that_lies_on_its_side_is_turned_and_measured_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(open_image(preprocess.photograph((1600, 400))), exif=exif)
    asked = []
    picture = open_picture(data, lambda size: asked.append(size) or (100, 400))
    assert asked == [(400, 1600)] == [picture.size] and picture.image.size == (100, 400)
    turned = np.asarray(open_image(data).resize((100, 400), Image.Resampling.BOX), float)
    assert np.abs(np.asarray(picture.image, float) - turned).mean() < 2


def test_what_is_refused_stays_refused_when_decoded_smaller(tmp_path):
    data, eye = preprocess.photograph((1200, 900)), make("fast", miniatures.processor("llava-1.5").image_processor)
    for source in (data[: len(data) // 2], encoded(Image.new("RGB", (12_001, 9))), tmp_path / "none.jpg"):
        sentences = []
        for opened in (open_image, eye.open):
            with pytest.raises(longtail.BadImage) as refusal:
                opened(source)
            sentences.append(str(refusal.value))
        assert sentences[0] == sentences[1]


# ---- told


def test_answers_tell_how_their_pixels_were_made(folder, llava, picture):
    fast = longtail.load(str(folder), pixels="fast")
    assert llava.description == f"{llava.name}, float32" and fast.description == f"{llava.name}, float32, fast pixels"
    for model, kind in ((llava, "exact"), (fast, "fast")):
        comparison = longtail.export.measure(model, picture, "What?", [longtail.Full()], max_new_tokens=2)
        assert comparison.records[0]["pixels"] == kind and model.description in comparison.conditions
        again = longtail.report.read(json.dumps(comparison.file()))
        assert again.records[0]["pixels"] == kind
    assert longtail.examine.fingerprint(fast) != longtail.examine.fingerprint(llava)


def test_an_unknown_kind_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ValueError, match="pixels must be one of exact, fast, got 'quick'"):
        longtail.load(str(tmp_path), pixels="quick")


def test_the_command_line_says_so(folder, tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(preprocess.photograph((200, 150)))
    asked = ("answer", str(tmp_path / "a.jpg"), "What?", "--model", str(folder), "--max-new-tokens", "2")
    assert main([*asked, "--pixels", "fast"]) == 0 and "float32, fast pixels, cpu" in capsys.readouterr().out
    assert main(list(asked)) == 0 and "pixels" not in capsys.readouterr().out
    assert main([*asked, "--pixels", "slow"]) == 2


# ---- the benchmark


SMALL = ("bench", "preprocess", "--repeat", "2", "--device", "cpu")


def test_the_stages_beside_transformers(capsys, tmp_path):
    assert main([*SMALL, "--sizes", "80x60,1000x1000", "--out", str(tmp_path / "a.json")]) == 0
    out = capsys.readouterr().out
    record = json.loads(out.splitlines()[-1])
    assert record == json.loads((tmp_path / "a.json").read_text())
    found = [(row["family"], tuple(row["size"]), row["way"]) for row in record["rows"]]
    assert found == [(f, s, w) for f in FAMILIES for s in ((80, 60), (1000, 1000)) for w in preprocess.WAYS]
    for row in record["rows"]:
        assert row["ms"] >= row["best_ms"] > 0 and row["ratio_95"][0] <= row["ratio"] <= row["ratio_95"][1]
        assert (row["stages_ms"] is None) == (row["closes"] is None) == (row["way"] == "transformers")
        assert row["stages_ms"] is None or [*row["stages_ms"]] == list(preprocess.STAGES)
        off = {"transformers": None, "exact": {"most": 0, "mean": 0}}.get(row["way"], row["grey_levels"])
        assert row["grey_levels"] == off
    large = {r["way"]: r["ms"] for r in record["rows"] if r["size"] == [1000, 1000] and r["family"] == "llava-1.5"}
    told = [(goal["what"], goal["most"], goal["measured"]) for goal in record["goals"]]
    assert told == [
        (f"a JPEG of a megapixel to a prompt, {kind} pixels, CPU", 3, large[kind]) for kind in preprocess.KINDS
    ]
    assert "drawn JPEGs of quality 90" in out


def test_no_megapixel_no_verdict(capsys):
    assert main([*SMALL, "--sizes", "50x50", "--families", "llava-1.5", "--repeat", "1", "--json"]) == 0
    goals = json.loads(capsys.readouterr().out)["goals"]
    assert {goal["verdict"] for goal in goals} == {"not run here: needs llava-1.5 and a size of a megapixel"}


def test_the_answers_of_either(capsys, monkeypatch):
    monkeypatch.setattr(preprocess, "SHORT", ("color",))
    assert main([*SMALL, "--sizes", "50x50", "--families", "llava-1.5", "--scenes", "2"]) == 0
    out = capsys.readouterr().out
    told = json.loads(out.splitlines()[-1])["answers"]
    assert told["questions"] >= told["agree"] >= 0 and set(told["right"]) == {"exact", "fast"}
    assert f"the same answer to {told['agree']} of {told['questions']} questions" in out


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (("--sizes", "big"), "--sizes takes WIDTHxHEIGHT in pixels, comma between, got 'big'"),
        (("--families", "llava-9"), "--families takes some of llava-1.5, llava-1.6-vicuna"),
        (("--repeat", "0"), "--repeat must be at least 1, got 0"),
        (("--out", "a.csv"), "--out takes a .json file or a folder, got 'a.csv'"),
    ],
)
def test_it_refuses_in_a_sentence(capsys, flags, sentence):
    assert main([*SMALL, *flags]) == 2
    assert sentence in capsys.readouterr().err


def test_a_picture_is_one_already(picture):
    given = Picture(picture, (9, 9))
    assert open_picture(given) is given
