"""The one decoder: what it accepts comes out upright RGB, what it refuses it refuses in a sentence."""

import io
import os
import signal
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from malformed import many_scans, rle_bmp
from PIL import Image, ImageOps

from longtail import BadImage, open_image
from longtail import image as image_module
from longtail.bare import MOST_SCANS, bare


def encoded(image, format="PNG", **options):
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def bomb(width, height):
    """A PNG header that promises so many pixels, with no pixel behind it."""

    def chunk(kind, body):
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_formats(format, picture, tmp_path):
    data = encoded(picture, format)
    (tmp_path / "a.dat").write_bytes(data)
    for source in (data, tmp_path / "a.dat", str(tmp_path / "a.dat")):
        image = open_image(source)
        assert image.mode == "RGB" and image.size == picture.size
        assert np.abs(np.asarray(image, float) - np.asarray(picture, float)).mean() < 25


def test_transparency_lies_on_white():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert open_image(encoded(image)).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([255, 0, 0] * 256)
    assert open_image(encoded(palette, "GIF", transparency=0)).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bit_grey_is_scaled_not_clipped():
    grey = Image.fromarray(np.linspace(0, 65535, 16, dtype=np.uint16).reshape(4, 4))
    out = np.asarray(open_image(encoded(grey)))[..., 0].flatten()
    assert out.tolist() == [round(i * 17) for i in range(16)]


def test_cmyk_palette_grey_and_one_bit_become_rgb():
    for mode, format in (("CMYK", "JPEG"), ("P", "PNG"), ("L", "PNG"), ("1", "PNG"), ("LA", "PNG")):
        assert open_image(encoded(Image.new(mode, (5, 7)), format)).mode == "RGB"


def test_exif_turns_the_picture(picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_image(encoded(picture, "JPEG", exif=exif)).size == picture.size[::-1]


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(data).getpixel((1, 1)) == (255, 0, 0)


def test_a_pil_image_goes_the_same_way():
    assert open_image(Image.new("RGBA", (3, 3), (0, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("size", [(20_000, 20_000), (13_000, 13_000), (12_001, 10), (10, 12_001), (8_000, 5_001)])
def test_too_large_is_refused_before_decoding(size):
    with pytest.raises(BadImage, match=r"too large: at most 40 megapixels and 12000 pixels a side"):
        open_image(bomb(*size))


@pytest.mark.parametrize(
    "data",
    [b"", b"hello, I am text", b"<svg/>", b"II*\x00", bomb(3, 3)[:20], encoded(Image.new("RGB", (9, 9)), "TIFF")],
)
def test_what_is_no_picture_is_named(data, tmp_path):
    (tmp_path / "photo.png").write_bytes(data)
    with pytest.raises(BadImage, match=r"photo\.png is not a readable PNG, JPEG, WEBP, GIF or BMP file"):
        open_image(tmp_path / "photo.png")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP"])
def test_cut_short_is_refused(format, picture):
    data = encoded(picture, format)
    with pytest.raises(BadImage, match=r"the image is (damaged or cut short|not a readable)"):
        open_image(data[: len(data) // 2])


def test_no_file(tmp_path):
    with pytest.raises(BadImage, match="there is no image file at"):
        open_image(tmp_path / "none.png")


@pytest.mark.parametrize("seed", range(60))
def test_flipped_bytes_never_raise_anything_else(seed, picture):
    rng = np.random.default_rng(seed)
    data = bytearray(encoded(picture, ["PNG", "JPEG", "WEBP", "GIF", "BMP"][seed % 5]))
    for at in rng.integers(0, len(data), 6):
        data[at] = rng.integers(256)
    try:
        assert open_image(bytes(data)).mode == "RGB"
    except BadImage as refusal:
        assert len(str(refusal)) > 20


def test_a_pil_image_is_left_as_it_was(picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    given = Image.open(io.BytesIO(encoded(picture, "PNG", exif=exif)))
    before = np.asarray(given).copy()
    turned = open_image(given)
    assert turned.size == given.size[::-1] == picture.size[::-1] and np.array_equal(np.asarray(given), before)
    plain = open_image(picture)
    plain.paste((0, 0, 0), (0, 0, 9, 9))
    assert picture.getpixel((0, 0)) != (0, 0, 0) and open_image(turned).size == turned.size


def test_what_was_decoded_outlives_its_file(picture, tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(picture, "JPEG"))
    image = open_image(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").unlink()
    assert image.copy().resize((5, 5)).getpixel((2, 2)) and image.tobytes() == open_image(image).tobytes()


# ---- what is beside the picture


def bands(mode):
    """Noise of a mode, higher than the bands it is made RGB in."""
    noise = np.random.default_rng(5).integers(0, 256, (150, 33, 4), dtype=np.uint8)
    return Image.fromarray(noise).convert("RGB").quantize(64) if mode == "P" else Image.fromarray(noise).convert(mode)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize(
    "mode, format", [("RGB", "JPEG"), ("CMYK", "JPEG"), ("RGBA", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("RGBA", "WEBP")]
)
def test_made_in_bands_it_is_what_pillow_makes_whole(mode, format, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encoded(bands(mode), format, exif=exif)
    whole = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if whole.has_transparency_data:
        whole = whole.convert("RGBA")
        whole = Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole)
    assert np.array_equal(np.asarray(open_image(data)), np.asarray(whole.convert("RGB")))


@pytest.mark.parametrize("size", [(1, 101), (101, 1), (12_000, 119), (3, 400)])
def test_a_strip_is_refused(size):
    with pytest.raises(BadImage, match="too thin a strip: at most 100 times as long as wide, crop it first"):
        open_image(encoded(Image.new("RGB", size)))
    assert open_image(encoded(Image.new("RGB", (2, 200)))).size == (2, 200)


@pytest.mark.parametrize(
    "kind, format, options",
    [("WEBP", "WEBP", {}), ("progressive JPEG", "JPEG", {"progressive": True})],
)
def test_what_takes_more_memory_may_have_fewer_pixels(monkeypatch, kind, format, options):
    data = encoded(Image.new("RGB", (1_200, 1_000)), format, **options)
    assert open_image(data).size == (1_200, 1_000)
    monkeypatch.setitem(image_module.FEWER, kind, 1_000_000)
    with pytest.raises(BadImage, match=f"too large for a {kind}: at most 1 megapixels"):
        open_image(data)
    assert open_image(encoded(Image.new("RGB", (1_200, 1_000)), "JPEG")).size == (1_200, 1_000)


def test_a_run_length_bitmap_may_have_fewer_pixels():
    data = rle_bmp(1_500, 1_400, b"\xff\x05" * 5 + b"\xe1\x05\0\0")
    with pytest.raises(BadImage, match="too large for a run-length BMP: at most 2 megapixels"):
        open_image(data)
    assert open_image(rle_bmp(300, 200, b"\xff\x05\x2d\x05\0\0")).size == (300, 200)


def test_a_jpeg_may_have_so_many_scans():
    assert open_image(many_scans(64, 48, MOST_SCANS - 9)).size == (64, 48)
    with pytest.raises(BadImage, match=f"has {MOST_SCANS + 1} scans, more than the {MOST_SCANS} that are read"):
        open_image(many_scans(64, 48, MOST_SCANS - 8))


def test_nothing_beside_the_picture_reaches_the_decoder(picture):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 3, "secret words"
    beside = {"exif": exif, "icc_profile": b"secret profile", "comment": b"secret comment"}
    for format in ("PNG", "JPEG", "WEBP", "GIF"):
        frames = {"save_all": True, "append_images": [Image.new("RGB", picture.size, "red")]}
        data = encoded(picture, format, **beside, **({} if format == "JPEG" else frames))
        stripped = bare(data)
        assert b"secret" in data and b"secret" not in stripped.data, format
        assert stripped.kind == format and stripped.turn == (1 if format == "GIF" else 3)
        assert bare(stripped.data).data == stripped.data, format
        assert format == "GIF" or getattr(Image.open(io.BytesIO(stripped.data)), "n_frames", 1) == 1


def test_a_name_is_said_in_one_line_that_can_be_printed(tmp_path):
    for name in ("a\x1b[2Jb\n.png", "photo\u202egnp.exe", "a\udcff.png", "x" * 250 + ".png"):
        (tmp_path / name).write_bytes(b"no picture")
        with pytest.raises(BadImage) as refusal:
            open_image(tmp_path / name)
        assert str(refusal.value).isprintable() and len(str(refusal.value)) < 200


def test_larger_pictures_are_decoded_one_after_another(monkeypatch):
    """However many come at once: while one is, no other is."""
    monkeypatch.setattr(image_module, "SMALL", 100)
    inside, most, planes = [], [], image_module._planes

    def watched(image):
        inside.append(image)
        most.append(len(inside))
        time.sleep(0.01)  # for another to come in, where it could
        try:
            return planes(image)
        finally:
            inside.pop()

    monkeypatch.setattr(image_module, "_planes", watched)
    data = encoded(Image.new("RGBA", (400, 300)))
    with ThreadPoolExecutor(8) as crowd:
        sizes = list(crowd.map(lambda _: open_image(data).size, range(24)))
    assert sizes == [(400, 300)] * 24 and most == [1] * 24


def test_a_file_has_so_many_bytes(monkeypatch, tmp_path):
    monkeypatch.setattr(image_module, "MAX_BYTES", 1_000)
    (tmp_path / "a.bmp").write_bytes(encoded(Image.new("RGB", (40, 30)), "BMP"))
    with pytest.raises(BadImage, match=r"a\.bmp is too large a file"):
        open_image(tmp_path / "a.bmp")


def test_a_forked_process_decodes_too():
    """A Space with ZeroGPU answers in a fork of the page, where the thread of the decoder is not."""
    data = io.BytesIO()
    Image.new("RGB", (1200, 1000), "red").save(data, "PNG")
    open_image(data.getvalue())  # the thread is there now
    child = os.fork()
    if not child:
        signal.alarm(20)  # ends a child that waits for ever
        os._exit(0 if open_image(data.getvalue()).size == (1200, 1000) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
