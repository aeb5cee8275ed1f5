"""The one decoder: what it accepts comes out upright RGB, what it refuses it refuses in a sentence."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from longtail import BadImage, open_image


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
