"""More than a thousand malformed or hostile image files, the same for the same seed; `hostile` sends them out."""

import io
import os
import socket
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

PICTURE, REFUSAL, EITHER = "picture", "refusal", "either"
SUFFIX = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "GIF": "gif", "BMP": "bmp"}
MEGABYTE = 2**20


@dataclass(frozen=True)
class Malformed:
    """A file: what it is, the name it comes under, what is expected of it, and its bytes, made when asked for."""

    kind: str
    file: str
    expected: str
    make: Callable[[], bytes]
    heavy: bool = False  # seconds or hundreds of megabytes to make, or to decode for one who is not careful

    @property
    def name(self) -> str:
        return f"{self.kind}/{ascii(self.file)[1:-1]}"


def files(seed: int = 0, heavy: bool = False) -> list[Malformed]:
    """All of them, each under a name of its own; with the heavy ones where asked for."""
    rng = np.random.default_rng(seed)
    small = encodings(pattern(48, 36))
    groups = (
        *(cut(small), flipped(small, rng), mangled(small, rng), noise(rng), misnamed(small), foreign()),
        *(sizes(), bombs(), depths(rng), turned(rng), burdened(), scans(), lzw(rng), polyglots(small), named()),
    )
    made = [file for group in groups for file in group if heavy or not file.heavy]
    if len({file.name for file in made}) != len(made):
        raise ValueError("two files have one name: give each its own")
    return made


# ---- pictures to begin with


def pattern(width: int, height: int) -> Image.Image:
    """A picture with structure."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 5 % 256, y * 7 % 256, (x + y) * 3 % 256], axis=-1).astype(np.uint8))


def encoded(image: Image.Image, format: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def encodings(picture: Image.Image) -> dict[str, bytes]:
    """One picture in many ways of every format, by file name."""
    grey, few, clear = picture.convert("L"), picture.quantize(16), picture.convert("RGBA")
    clear.putalpha(grey)
    deep = Image.fromarray(np.asarray(grey, np.uint16) * 257)
    frames = {"save_all": True, "append_images": [grey.convert("RGB"), picture.rotate(90)]}
    made = {
        "rgb.png": encoded(picture, "PNG"),
        "rgba.png": encoded(clear, "PNG"),
        "grey.png": encoded(grey, "PNG"),
        "grey-alpha.png": encoded(clear.convert("LA"), "PNG"),
        "palette.png": encoded(few, "PNG", transparency=3),
        "bit.png": encoded(grey.convert("1"), "PNG"),
        "deep.png": encoded(deep, "PNG"),
        "animated.png": encoded(picture, "PNG", **frames),
        "plain.jpg": encoded(picture, "JPEG"),
        "grey.jpg": encoded(grey, "JPEG"),
        "cmyk.jpg": encoded(picture.convert("CMYK"), "JPEG"),
        "progressive.jpg": encoded(picture, "JPEG", progressive=True),
        "restarts.jpg": encoded(picture, "JPEG", restart_marker_blocks=1),
        "lossy.webp": encoded(picture, "WEBP"),
        "lossless.webp": encoded(picture, "WEBP", lossless=True),
        "alpha.webp": encoded(clear, "WEBP"),
        "animated.webp": encoded(picture, "WEBP", **frames),
        "plain.gif": encoded(few, "GIF"),
        "clear.gif": encoded(few, "GIF", transparency=3, comment=b"hello"),
        "animated.gif": encoded(picture, "GIF", **frames),
        "rgb.bmp": encoded(picture, "BMP"),
        "palette.bmp": encoded(few, "BMP"),
        "bit.bmp": encoded(grey.convert("1"), "BMP"),
        "rgba.bmp": encoded(clear, "BMP"),
        "rle.bmp": rle_bmp(48, 36, bytes([6, 5]) * 8 + b"\0\0"),
    }
    return made


# ---- broken copies


def cut(small: dict[str, bytes]) -> Iterator[Malformed]:
    """Every encoding cut short at twelve places."""
    for name, data in small.items():
        for at in sorted({0, 1, 4, 11, 16, 30, *(len(data) * n // 7 for n in range(1, 7)), len(data) - 1}):
            expected = REFUSAL if at < 30 else EITHER
            yield Malformed("cut", f"{at}-{name}", expected, lambda data=data, at=at: data[:at])


def flipped(small: dict[str, bytes], rng) -> Iterator[Malformed]:
    """Every encoding with one to thirty bytes changed, most in its first hundred."""
    for name, data in small.items():
        for turn in range(16):
            broken = np.frombuffer(data, np.uint8).copy()
            where = rng.integers(0, len(data) if turn % 2 else min(100, len(data)), 1 + 2 * turn)
            broken[where] = rng.integers(0, 256, len(where))
            yield Malformed("flipped", f"{turn}-{name}", EITHER, broken.tobytes)


def mangled(small: dict[str, bytes], rng) -> Iterator[Malformed]:
    """A part zeroed, a part doubled, a part taken away, the end of another file, and much behind the end."""
    names = list(small)
    for name, data in small.items():
        a, b = sorted(int(n) for n in rng.integers(12, len(data), 2))
        other = small[names[int(rng.integers(len(names)))]]
        yield Malformed("zeroed", name, EITHER, lambda d=data, a=a, b=b: d[:a] + bytes(b - a) + d[b:])
        yield Malformed("doubled", name, EITHER, lambda d=data, a=a, b=b: d[:b] + d[a:])
        yield Malformed("holed", name, EITHER, lambda d=data, a=a, b=b: d[:a] + d[b:])
        yield Malformed("spliced", name, EITHER, lambda d=data, a=a, other=other: d[:a] + other[a:])
        yield Malformed("trailed", name, PICTURE, lambda d=data: d + b"\xff\xda!\x00,;IEND" * 999)


def noise(rng) -> Iterator[Malformed]:
    """Noise, behind the first bytes of a format or of none."""
    magics = {
        "png": b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR",
        **{"jpg": b"\xff\xd8\xff\xe0", "webp": b"RIFF\x40\0\0\0WEBPVP8 ", "gif": b"GIF89a", "bmp": b"BM"},
        **{"lossless.webp": b"RIFF\x40\0\0\0WEBPVP8L", "extended.webp": b"RIFF\x40\0\0\0WEBPVP8X", "none": b""},
    }
    for name, magic in magics.items():
        for turn in range(8):
            data = magic + rng.bytes(40 + 60 * turn)
            yield Malformed("noise", f"{turn}.{name}", REFUSAL, lambda data=data: data)


# ---- wrong names, other formats


def misnamed(small: dict[str, bytes]) -> Iterator[Malformed]:
    """Good pictures under the name of something else: what is in it counts."""
    for name in ("rgb.png", "plain.jpg", "lossy.webp", "plain.gif", "rgb.bmp"):
        for ending in ("png", "jpg", "webp", "gif", "bmp", "tiff", "svg", "txt", "exe", "html", "tar.gz", "JPEG", ""):
            yield Malformed("misnamed", f"{name}.{ending}", PICTURE, lambda data=small[name]: data)


def foreign() -> Iterator[Malformed]:
    """What is no PNG, JPEG, WEBP, GIF or BMP, under a name that says it is."""
    picture = pattern(24, 18)
    reals = Image.fromarray(np.linspace(-1, 2, 24 * 18, dtype=np.float32).reshape(18, 24))
    deep = Image.fromarray(np.arange(24 * 18, dtype=np.uint16).reshape(18, 24))
    box = b"\0\0\0\x18ftyp%s\0\0\0\0mif1%s" + bytes(200)
    others = {
        "tiff": encoded(picture, "TIFF"),
        "tiff-lzw": encoded(picture, "TIFF", compression="tiff_lzw"),
        "tiff-jpeg": encoded(picture, "TIFF", compression="jpeg"),
        "tiff-float": encoded(reals, "TIFF"),
        "tiff-16": encoded(deep, "TIFF"),
        "tiff-cmyk": encoded(picture.convert("CMYK"), "TIFF"),
        "tiff-big-endian": b"MM\0*\0\0\0\x08\0\0",
        "tiff-header": b"II*\0",
        "ico": encoded(picture, "ICO", sizes=[(16, 16)]),
        "icns": encoded(picture.resize((32, 32)), "ICNS"),
        "cur": b"\0\0\2\0\1\0\x10\x10\0\0\0\0\0\0\x40\0\0\0\x16\0\0\0" + bytes(64),
        "psd": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 30000, 30000, 8, 3) + bytes(64),
        "ppm": encoded(picture, "PPM"),
        "ppm-huge": b"P6 60000 60000 255\n",
        "tga": encoded(picture, "TGA"),
        "pcx": encoded(picture, "PCX"),
        "sgi": encoded(picture, "SGI"),
        "dds": encoded(picture, "DDS"),
        "eps": encoded(picture, "EPS"),
        "eps-shell": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch /tmp/owned) (r) file\n",
        "pdf": encoded(picture, "PDF"),
        "jpeg-2000": b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 " + bytes(99),
        "heic": box % (b"heic", b"heic"),
        "avif": box % (b"avif", b"avif"),
        "mp4": box % (b"isom", b"iso2"),
        "jpeg-xl": b"\xff\x0a" + bytes(50),
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"><script>alert(1)</script></svg>',
        "svg-entities": b'<!DOCTYPE s [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><svg>&b;</svg>',
        "html": b"<html><img src=x onerror=alert(1)></html>",
        "xbm": b"#define x_width 9000\n#define x_height 9000\nstatic char x_bits[] = {0};",
        "xpm": b'/* XPM */\nstatic char *x[] = {"9 9 1 1", "a c #fff"};',
        "fits": b"SIMPLE  =                    T" + bytes(99),
        "zip": b"PK\3\4" + bytes(99),
        "gzip": b"\x1f\x8b\x08" + bytes(99),
        "elf": b"\x7fELF" + bytes(99),
        "pickle": b"cposix\nsystem\n(S'true'\ntR.",
        "script": b"#!/bin/sh\ntrue\n",
        "json": b'{"image": 1}',
        "text": "a picture of a cat \U0001f408".encode(),
        "utf-16": "\ufeffpicture".encode("utf-16"),
        "nuls": bytes(4096),
        "ones": b"\xff" * 4096,
        "mng": b"\x8aMNG\r\n\x1a\n" + bytes(64),
        "jng": b"\x8bJNG\r\n\x1a\n" + bytes(64),
        "flif": b"FLIF" + bytes(64),
        "wmf": b"\xd7\xcd\xc6\x9a" + bytes(64),
        "webm": b"\x1aE\xdf\xa3" + bytes(64),
        "dib": b"(\0\0\0" + bytes(64),
        "blp": b"BLP2" + bytes(200),
    }
    for kind, data in others.items():
        for ending in ("png", "jpg"):
            yield Malformed("foreign", f"{kind}.{ending}", REFUSAL, lambda data=data: data)


# ---- containers by hand


def chunk(kind: bytes, body: bytes = b"", sum_: int | None = None) -> bytes:
    """A chunk of a PNG, with its right sum or another."""
    return (
        struct.pack(">I", len(body))
        + kind
        + body
        + struct.pack(">I", zlib.crc32(kind + body) if sum_ is None else sum_)
    )


def png(
    width: int, height: int, depth: int = 8, color: int = 2, rows: bytes | None = None, *before, after=b""
) -> bytes:
    """A PNG of the rows (bytes of filter and pixels, compressed here), with chunks before its pixels and after them."""
    rows = b"" if rows is None else rows
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(before)
    return start + chunk(b"IDAT", zlib.compress(rows, 9)) + after + chunk(b"IEND")


def flat_png(width: int, height: int, depth: int, color: int, *before: bytes, after: bytes = b"") -> bytes:
    """A whole PNG of zeros: many pixels in few bytes."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    row, zipped = bytes(1 + (width * channels * depth + 7) // 8), zlib.compressobj(9)
    body = b"".join(zipped.compress(row) for _ in range(height)) + zipped.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    palette = (chunk(b"PLTE", bytes(range(48))),) if color == 3 else ()
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join((*palette, *before))
    return start + chunk(b"IDAT", body) + after + chunk(b"IEND")


def behind_header(data: bytes, *chunks: bytes) -> bytes:
    """A PNG with more chunks behind its header."""
    return data[:33] + b"".join(chunks) + data[33:]


def segment(marker: int, body: bytes) -> bytes:
    """A segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def behind_start(data: bytes, *segments: bytes) -> bytes:
    """A JPEG with more segments behind its first marker."""
    return data[:2] + b"".join(segments) + data[2:]


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """A WEBP of chunks."""
    body = b"".join(kind + struct.pack("<I", len(part)) + part + b"\0" * (len(part) % 2) for kind, part in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def gif(
    width: int, height: int, frame: tuple[int, int, int, int], size: int, codes: bytes, before: bytes = b""
) -> bytes:
    """A GIF of one frame whose compressed data is `codes`."""
    start = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x91, 0, 0) + bytes(range(12))
    blocks = b"".join(bytes([len(codes[i : i + 255])]) + codes[i : i + 255] for i in range(0, len(codes), 255))
    return start + before + b"," + struct.pack("<HHHHB", *frame, 0) + bytes([size]) + blocks + b"\0;"


def bmp(
    width: int, height: int, bits: int, body: bytes, compression: int = 0, colors: int = 0, header: int = 40
) -> bytes:
    """A BMP of that body, its palette in grey."""
    palette = b"".join(bytes([n % 256] * 3 + [0]) for n in range(min(colors, 256)))
    info = struct.pack("<IiiHHIIiiII", header, width, height, 1, bits, compression, len(body), 0, 0, colors, 0)
    offset = 14 + len(info) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + info + palette + body


def rle_bmp(width: int, height: int, row: bytes) -> bytes:
    """A BMP of 8 bits, run-length encoded: `row` so many times."""
    return bmp(width, height, 8, row * height + b"\0\1", 1, 256)


# ---- sizes and bombs


def sizes() -> Iterator[Malformed]:
    """The least, the thinnest and the longest."""
    shapes = [(1, 1), (1, 2), (3, 1), (1, 100), (100, 1), (2, 200), (1, 101), (101, 1), (3, 400)]
    shapes += [(1, 12_000), (12_000, 1), (7, 12_000), (1, 12_001), (1, 16_000), (12_000, 119), (12_000, 120)]
    for width, height in shapes:
        long = max(width, height)
        expected = REFUSAL if long > 12_000 or long > 100 * min(width, height) else PICTURE
        for format, ending in SUFFIX.items():
            yield Malformed(
                "size",
                f"{width}x{height}.{ending}",
                expected,
                lambda w=width, h=height, f=format: encoded(Image.new("RGB", (w, h), (9, 99, 199)), f),
            )
    for width, height in ((1, 20_000), (20_000, 1)):
        for format in ("PNG", "JPEG", "GIF", "BMP"):
            yield Malformed(
                "size",
                f"{width}x{height}.{SUFFIX[format]}",
                REFUSAL,
                lambda w=width, h=height, f=format: encoded(Image.new("RGB", (w, h)), f),
            )


def bombs() -> Iterator[Malformed]:
    """Headers that promise more than is there, or more than is allowed, or nothing."""
    for width, height in (
        (0, 0),
        (0, 9),
        (9, 0),
        (2**31 - 1, 1),
        (2**31 - 1, 2**31 - 1),
        (2**32 - 1, 9),
        (65535, 65535),
    ):
        yield Malformed("bomb", f"{width}x{height}.png", REFUSAL, lambda w=width, h=height: png(w, h))
    for width, height in ((13_000, 13_000), (20_000, 20_000), (8_000, 5_001), (6_000, 6_000), (12_000, 3_333)):
        yield Malformed("bomb", f"{width}x{height}.png", REFUSAL, lambda w=width, h=height: png(w, h))
    for depth in range(0, 18):
        yield Malformed("bomb", f"depth-{depth}.png", REFUSAL, lambda d=depth: png(9, 9, d, 5, bytes(99)))
    yield Malformed("bomb", "bits.png", REFUSAL, lambda: flat_png(13_000, 13_000, 1, 0))
    for width, height in ((0, 0), (0, 5), (65_535, 65_535), (65_535, 1), (12_001, 2), (10_000, 4_001)):
        yield Malformed(
            "bomb",
            f"{width}x{height}.jpg",
            REFUSAL,
            lambda w=width, h=height: behind_start(encoded(pattern(16, 16), "JPEG"))[:-2].replace(
                struct.pack(">HH", 16, 16), struct.pack(">HH", h, w), 1
            ),
        )
    for width, height in ((0, 0), (65_535, 65_535), (40_000, 9), (9_000, 9_000)):
        frame = (0, 0, width, height)
        yield Malformed("bomb", f"{width}x{height}.gif", REFUSAL, lambda f=frame: gif(*f[2:], f, 2, b"\x44\x01"))
    yield Malformed(
        "bomb", "frame-beyond-screen.gif", REFUSAL, lambda: gif(9, 9, (60_000, 60_000, 9, 9), 2, b"\x44\x01")
    )
    yield Malformed("bomb", "frame-beside.gif", EITHER, lambda: gif(90, 90, (80, 80, 20, 20), 2, b"\x44\x01"))
    for width, height in ((0, 0), (2**31 - 1, 1), (-(2**31), 5), (5, -(2**31)), (40_000, 40_000), (-9, 9), (9, 0)):
        yield Malformed("bomb", f"{width}x{height}.bmp", REFUSAL, lambda w=width, h=height: bmp(w, h, 24, bytes(99)))
    for bits in (0, 2, 3, 5, 17, 64):
        yield Malformed("bomb", f"bits-{bits}.bmp", REFUSAL, lambda b=bits: bmp(9, 9, b, bytes(999)))
    for compression in range(2, 16):
        yield Malformed(
            "bomb", f"compression-{compression}.bmp", EITHER, lambda c=compression: bmp(9, 9, 8, bytes(999), c, 256)
        )
    yield Malformed("bomb", "colors.bmp", EITHER, lambda: bmp(9, 9, 8, bytes(999), 0, 2**31 - 1))
    for header in (0, 1, 12, 39, 41, 124, 2**31 - 1, 2**32 - 1):
        yield Malformed("bomb", f"header-{header}.bmp", EITHER, lambda h=header: bmp(9, 9, 24, bytes(999), header=h))
    for side in (1, 9, 4_000, 16_383, 2**24 - 1):
        canvas = b"\0\0\0\0" + struct.pack("<I", side - 1)[:3] * 2
        yield Malformed(
            "bomb",
            f"canvas-{side}.webp",
            REFUSAL,
            lambda canvas=canvas: riff((b"VP8X", canvas), (b"VP8L", b"\x2f" + bytes(9))),
        )
    for side in (1, 16_384, 4_000):
        bits = (side - 1) | (side - 1) << 14
        yield Malformed(
            "bomb",
            f"lossless-{side}.webp",
            REFUSAL,
            lambda bits=bits: riff((b"VP8L", b"\x2f" + struct.pack("<I", bits))),
        )


# ---- depths and colours


def depths(rng) -> Iterator[Malformed]:
    """Bits, channels, palettes and transparency of every kind; the large ones are heavy."""
    for color, name in ((0, "grey"), (2, "rgb"), (4, "grey-alpha"), (6, "rgba")):
        channels = {0: 1, 2: 3, 4: 2, 6: 4}[color]
        rows = b"".join(b"\0" + rng.bytes(2 * 9 * channels) for _ in range(7))
        yield Malformed("depth", f"16-bit-{name}.png", PICTURE, lambda c=color, r=rows: png(9, 7, 16, c, r))
        yield Malformed(
            "depth",
            f"40-megapixels-16-bit-{name}.png",
            PICTURE,
            lambda c=color: flat_png(8_000, 5_000, 16, c),
            heavy=True,
        )
        yield Malformed(
            "depth", f"40-megapixels-{name}.png", PICTURE, lambda c=color: flat_png(8_000, 5_000, 8, c), heavy=True
        )
    for bits in (1, 2, 4):
        rows = bytes(7 * (1 + (9 * bits + 7) // 8))
        yield Malformed("depth", f"{bits}-bit-grey.png", PICTURE, lambda b=bits, r=rows: png(9, 7, b, 0, r))
    rows = b"".join(b"\0" + rng.bytes(9) for _ in range(7))
    tables = {"none": (), "empty": (b"",), "one": (b"abc",), "two-bytes": (b"ab",), "many": (bytes(999),)}
    for name, table in tables.items():
        chunks = [chunk(b"PLTE", entries) for entries in table]
        yield Malformed("depth", f"palette-{name}.png", EITHER, lambda c=chunks, r=rows: png(9, 7, 8, 3, r, *c))
    for color, length in ((0, 2), (2, 6), (3, 300), (4, 2), (6, 6), (0, 1), (2, 1), (3, 0)):
        chunks = [chunk(b"PLTE", bytes(range(240))), chunk(b"tRNS", bytes(length))]
        full = b"".join(b"\0" + rng.bytes(9 * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]) for _ in range(7))
        yield Malformed(
            "depth",
            f"transparent-{color}-{length}.png",
            EITHER,
            lambda c=color, r=full, chunks=chunks: png(9, 7, 8, c, r, *chunks),
        )
    for byte in range(6):
        rows = b"".join(bytes([byte]) + rng.bytes(27) for _ in range(7))
        expected = PICTURE if byte < 5 else REFUSAL
        yield Malformed("depth", f"filter-{byte}.png", expected, lambda r=rows: png(9, 7, 8, 2, r))
    for length in (0, 27, 100, 9999):
        expected = PICTURE if length > 196 else REFUSAL
        yield Malformed("depth", f"{length}-bytes.png", expected, lambda n=length: png(9, 7, 8, 2, bytes(n)))
    cmyk = pattern(16, 12).convert("CMYK")
    yield Malformed("depth", "cmyk.jpg", PICTURE, lambda: encoded(cmyk, "JPEG"))
    adobe = segment(0xEE, b"Adobe\0\x64\0\0\0\0")
    for transform in (0, 1, 2, 9):
        mark = adobe + bytes([transform])
        mark = mark[:2] + struct.pack(">H", len(mark) - 2) + mark[4:]
        yield Malformed(
            "depth", f"adobe-cmyk-{transform}.jpg", PICTURE, lambda mark=mark: behind_start(encoded(cmyk, "JPEG"), mark)
        )
        yield Malformed(
            "depth",
            f"adobe-rgb-{transform}.jpg",
            PICTURE,
            lambda mark=mark: behind_start(encoded(pattern(16, 12), "JPEG"), mark),
        )
    large = (8_000, 5_000)
    for progressive in (False, True):
        name = f"40-megapixels-cmyk{'-progressive' * progressive}.jpg"
        yield Malformed(
            "depth",
            name,
            REFUSAL if progressive else PICTURE,
            lambda p=progressive: encoded(Image.new("CMYK", large, (9, 99, 199, 20)), "JPEG", progressive=p),
            heavy=True,
        )
        name = f"40-megapixels-rgb{'-progressive' * progressive}.jpg"
        yield Malformed(
            "depth",
            name,
            REFUSAL if progressive else PICTURE,
            lambda p=progressive: encoded(Image.new("RGB", large, "red"), "JPEG", progressive=p, subsampling=0),
            heavy=True,
        )
    yield Malformed("depth", "40-megapixels.gif", PICTURE, lambda: encoded(Image.new("P", large), "GIF"), heavy=True)
    for lossless in (False, True):
        yield Malformed(
            "depth",
            f"40-megapixels-{'lossless' * lossless}.webp",
            EITHER,
            lambda lossless=lossless: encoded(
                Image.new("RGBA", large, (9, 99, 199, 128)), "WEBP", method=0, lossless=lossless
            ),
            heavy=True,
        )
    yield Malformed("depth", "40-megapixels.bmp", PICTURE, lambda: encoded(Image.new("RGB", large), "BMP"), heavy=True)
    yield Malformed(
        "depth",
        "40-megapixels-palette.png",
        PICTURE,
        lambda: encoded(Image.new("P", (8_000, 5_000)), "PNG", transparency=0),
        heavy=True,
    )
    yield Malformed(
        "depth",
        "10-megapixels-rle.bmp",
        EITHER,
        lambda: rle_bmp(4_000, 2_500, bytes([1, 7]) * 4_000 + b"\0\0"),
        heavy=True,
    )


# ---- EXIF


def exif(entries: list[tuple[int, int, int, bytes]], order: str = "<", start: int = 8, next_: int = 0) -> bytes:
    """An EXIF block of entries (tag, type, count, four bytes)."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    body = b"".join(struct.pack(order + "HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0" + mark + struct.pack(order + "IH", start, len(entries)) + body + struct.pack(order + "I", next_)


def short(number: int, order: str = "<") -> bytes:
    """The value of an entry that is one short number."""
    return struct.pack(order + "HH", number, 0)


def turned(rng) -> Iterator[Malformed]:
    """Directions one to eight, and blocks that make no sense: a good picture all the same."""
    blocks = {f"{n}": exif([(0x0112, 3, 1, short(n))]) for n in (*range(10), 255, 65_535)}
    blocks |= {f"big-endian-{n}": exif([(0x0112, 3, 1, short(n, ">"))], ">") for n in range(1, 9)}
    blocks |= {f"type-{n}": exif([(0x0112, n, 1, short(6))]) for n in (0, 1, 2, 4, 5, 7, 9, 10, 11, 12, 13, 200)}
    blocks |= {f"count-{n}": exif([(0x0112, 3, n, short(6))]) for n in (0, 2, 3, 999, 2**31, 2**32 - 1)}
    blocks |= {
        "beyond": exif([(0x0112, 3, 1, short(6))], start=2**31),
        "loop": exif([(0x8769, 4, 1, struct.pack("<I", 8))], next_=8),
        "sub-loop": exif([(0x8825, 4, 1, struct.pack("<I", 8)), (0xA005, 4, 1, struct.pack("<I", 8))]),
        "promises": b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
        "empty": b"Exif\0\0",
        "marked-only": b"Exif\0\0II*\0",
        "no-mark": b"Exif\0\0" + bytes(40),
        "script": exif([(0x010E, 2, 26, struct.pack("<I", 26))]) + b"<script>alert(1)</script>\0",
        "maker-note": exif([(0x927C, 7, 2**20, struct.pack("<I", 8)), (0x0112, 3, 1, short(8))]),
        "thumbnail": exif([(0x0201, 4, 1, struct.pack("<I", 2**31)), (0x0202, 4, 1, struct.pack("<I", 2**31))]),
        "many": exif([(n, 2, 2**20, struct.pack("<I", 8)) for n in range(4_000)]),
        **{f"noise-{n}": b"Exif\0\0II*\0\x08\0\0\0" + rng.bytes(50 + 100 * n) for n in range(12)},
    }
    picture = pattern(16, 12)
    whole = {
        "jpg": encoded(picture, "JPEG"),
        "png": encoded(picture, "PNG"),
        "webp": encoded(picture, "WEBP", lossless=True),
    }
    lossless = whole["webp"][20 : 20 + struct.unpack("<I", whole["webp"][16:20])[0]]
    canvas = (b"VP8X", b"\x08\0\0\0" + bytes([15, 0, 0, 11, 0, 0]))
    for name, block in blocks.items():
        yield Malformed("exif", f"{name}.jpg", PICTURE, lambda b=block: behind_start(whole["jpg"], segment(0xE1, b)))
        yield Malformed(
            "exif", f"{name}.png", PICTURE, lambda b=block: behind_header(whole["png"], chunk(b"eXIf", b[6:]))
        )
        yield Malformed(
            "exif", f"{name}.webp", PICTURE, lambda b=block: riff(canvas, (b"VP8L", lossless), (b"EXIF", b))
        )


# ---- what is beside the picture


def burdened() -> Iterator[Malformed]:
    """Metadata: much of it, compressed a thousandfold, or of no sense. The picture itself is good."""
    picture = pattern(16, 12)
    jpg, whole, few = encoded(picture, "JPEG"), encoded(picture, "PNG"), encoded(picture.quantize(4), "GIF")
    bomb = zlib.compress(bytes(64 * MEGABYTE), 9)
    near = zlib.compress(bytes(MEGABYTE - 1), 9)
    texts = {
        "iCCP": lambda body: chunk(b"iCCP", b"a\0\0" + body),
        "zTXt": lambda body: chunk(b"zTXt", b"a\0\0" + body),
        "iTXt": lambda body: chunk(b"iTXt", b"a\0\1\0\0\0" + body),
        "zTXt-unnamed": lambda body: chunk(b"zTXt", b"\0\0" + body),
    }
    for kind, make_chunk in texts.items():
        for name, body, times in (
            ("bomb", bomb, 1),
            ("nonsense", b"nonsense", 3),
            ("near", near, 1),
            ("near-90", near, 90),
        ):
            one = make_chunk(body)
            yield Malformed(
                "metadata",
                f"{kind}-{name}.png",
                PICTURE,
                lambda c=one, n=times: behind_header(whole, *[c] * n),
            )
            yield Malformed(
                "metadata",
                f"{kind}-{name}-behind.png",
                PICTURE,
                lambda c=one, n=times: whole[:-12] + c * n + whole[-12:],
            )
        yield Malformed(
            "metadata",
            f"{kind}-18-megabytes.png",
            PICTURE,
            lambda c=make_chunk, n=near: behind_header(whole, c(n) * (18 * MEGABYTE // len(c(n)))),
            heavy=True,
        )
    odd = {
        "unknown": chunk(b"teSt", bytes(99)),
        "unknown-critical": chunk(b"TEST", b"x"),
        "private": chunk(b"prVt", bytes(9)),
        "no-letters": chunk(b"\0\1\2\3"),
        "crc": chunk(b"tEXt", b"a\0b", sum_=1),
        "time": chunk(b"tIME", b""),
        "gamma": chunk(b"gAMA", b""),
        "chroma": chunk(b"cHRM", b"abc"),
        "physical": chunk(b"pHYs", b"a"),
        "srgb": chunk(b"sRGB", b""),
        "animation": chunk(b"acTL", struct.pack(">II", 2**31, 0)),
        "frame": chunk(b"fcTL", struct.pack(">IIIIIHHBB", 7, 9, 9, 9, 9, 0, 0, 9, 9)),
        "text": chunk(b"tEXt", b"Comment\0" + b"<script>" * 9_999),
        "second-header": chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)),
        "profile-exif": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n9\nnothex"),
        "xmp": chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6">'),
    }
    for name, one in odd.items():
        expected = REFUSAL if name in ("no-letters", "second-header") else EITHER
        yield Malformed("metadata", f"{name}.png", expected, lambda c=one: behind_header(whole, c))
    for count, heavy in ((2_000, False), (1_500_000, True)):
        yield Malformed(
            "metadata", f"{count}-chunks.png", EITHER, lambda n=count: behind_header(whole, chunk(b"teSt") * n), heavy
        )
        yield Malformed(
            "metadata",
            f"{count}-empty-idat.png",
            EITHER,
            lambda n=count: whole[:-12] + chunk(b"IDAT") * n + whole[-12:],
            heavy,
        )
    full = segment(0xED, b"Photoshop 3.0\0" + bytes(65_000))
    parts = {
        "comments": segment(0xFE, b"x" * 65_000),
        "photoshop": full,
        "icc": segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(65_000)),
        "xmp": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b"<x/>" * 9_999),
        "exif": segment(0xE1, exif([(0x0112, 3, 1, b"\6\0\0\0")]) + bytes(60_000)),
        "mpf": segment(
            0xE2, b"MPF\0II*\0\x08\0\0\0" + struct.pack("<H", 1) + struct.pack("<HHII", 0xB001, 4, 1, 2**31)
        ),
        "flashpix": segment(0xE2, b"FPXR\0" + bytes(65_000)),
        "empty": segment(0xE5, b""),
    }
    for name, part in parts.items():
        for times in (1, 16, 250):
            heavy = times == 250 and len(part) > 9_999
            yield Malformed(
                "metadata", f"{name}-{times}.jpg", PICTURE, lambda p=part, n=times: behind_start(jpg, p * n), heavy
            )
    yield Malformed(
        "metadata",
        "empty-18-megabytes.jpg",
        EITHER,
        lambda: behind_start(jpg, segment(0xE5, b"") * (18 * MEGABYTE // 4)),
        heavy=True,
    )
    yield Malformed("metadata", "fill.jpg", PICTURE, lambda: behind_start(jpg, b"\xff" * 5_000))
    yield Malformed(
        "metadata", "fill-18-megabytes.jpg", EITHER, lambda: behind_start(jpg, b"\xff" * 18 * MEGABYTE), heavy=True
    )
    yield Malformed("metadata", "junk.jpg", EITHER, lambda: behind_start(jpg, b"junk" * 5_000))
    yield Malformed(
        "metadata", "junk-18-megabytes.jpg", EITHER, lambda: behind_start(jpg, b"j" * 18 * MEGABYTE), heavy=True
    )
    yield Malformed("metadata", "segment-too-short.jpg", EITHER, lambda: behind_start(jpg, b"\xff\xe1\0\1"))
    block = b"\xff" + b"c" * 255
    for size, heavy in ((10_000, False), (2 * MEGABYTE, True), (18 * MEGABYTE, True)):
        yield Malformed(
            "metadata",
            f"comment-{size}.gif",
            PICTURE,
            lambda n=size: few[:25] + b"!\xfe" + block * (n // 256) + b"\0" + few[25:],
            heavy,
        )
        yield Malformed(
            "metadata",
            f"comments-{size}.gif",
            EITHER,
            lambda n=size: few[:25] + b"!\xfe\x01c\0" * (n // 5) + few[25:],
            heavy,
        )
        yield Malformed(
            "metadata",
            f"application-{size}.gif",
            PICTURE,
            lambda n=size: few[:25] + b"!\xff\x0bNETSCAPE2.0" + block * (n // 256) + b"\0" + few[25:],
            heavy,
        )
        yield Malformed(
            "metadata",
            f"control-{size}.gif",
            EITHER,
            lambda n=size: few[:25] + b"!\xf9\4\1\0\0\0\0" * (n // 8) + few[25:],
            heavy,
        )
    webp = encoded(picture, "WEBP", lossless=True)[12:]
    lossless = (b"VP8L", webp[8 : 8 + struct.unpack("<I", webp[4:8])[0]])
    canvas = (b"VP8X", b"\x2c\0\0\0" + bytes([15, 0, 0, 11, 0, 0]))
    for name, part in (("ICCP", bytes(MEGABYTE)), ("XMP ", b"<x/>" * 99_999), ("TEST", b"x" * 999)):
        yield Malformed(
            "metadata",
            f"{name.strip()}.webp",
            EITHER,
            lambda k=name, p=part: riff(canvas, (k.encode(), p), lossless, (k.encode(), p)),
        )
    yield Malformed(
        "metadata",
        "2000000-chunks.webp",
        EITHER,
        lambda: riff(canvas, lossless, *[(b"TEST", b"")] * 2_000_000),
        heavy=True,
    )
    frame = (
        bytes(6) + bytes([15, 0, 0, 11, 0, 0]) + bytes(4) + b"VP8L" + struct.pack("<I", len(lossless[1])) + lossless[1]
    )
    frame += b"\0" * (len(lossless[1]) % 2)
    animated = (b"VP8X", b"\x02\0\0\0" + bytes([15, 0, 0, 11, 0, 0])), (b"ANIM", bytes(6))
    for count, heavy in ((300, False), (18 * MEGABYTE // len(frame), True)):
        yield Malformed(
            "frames",
            f"{'many' if heavy else count}.webp",
            EITHER if heavy else PICTURE,
            lambda n=count: riff(*animated, *[(b"ANMF", frame)] * n),
            heavy,
        )
        body = few[few.index(b",") : -1]
        yield Malformed(
            "frames",
            f"{'many' if heavy else count}.gif",
            PICTURE,
            lambda n=count, body=body: few[:-1] + body * n + b";",
            heavy,
        )


# ---- scans, LZW, polyglots, names


def many_scans(width: int, height: int, count: int) -> bytes:
    """A progressive JPEG with its second scan so many times."""
    data = encoded(Image.new("RGB", (width, height), (90, 140, 200)), "JPEG", progressive=True)
    starts = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"] if len(data) < 9_999 else []
    starts = starts or _starts(data)
    one = data[starts[1] : starts[2]]
    return data[: starts[1]] + one * count + data[starts[2] :]


def _starts(data: bytes) -> list[int]:
    """Where the scans of a JPEG start."""
    found, at = [], data.find(b"\xff\xda")
    while at >= 0:
        found.append(at)
        at = data.find(b"\xff\xda", at + 2)
    return found


def scans() -> Iterator[Malformed]:
    """Progressive JPEGs with few scans, many, and far too many."""
    for count in (1, 10, 90, 3_000):
        expected = PICTURE if count <= 10 else REFUSAL if count > 1_000 else EITHER
        yield Malformed("scans", f"{count}.jpg", expected, lambda n=count: many_scans(64, 48, n))
    yield Malformed("scans", "megapixel-3000.jpg", REFUSAL, lambda: many_scans(1_000, 1_000, 3_000))
    for count in (10, 3_000):
        expected = REFUSAL if count > 1_000 else EITHER
        yield Malformed(
            "scans", f"40-megapixels-{count}.jpg", expected, lambda n=count: many_scans(8_000, 5_000, n), heavy=True
        )
    plain = encoded(pattern(64, 48), "JPEG")
    yield Malformed("scans", "none.jpg", REFUSAL, lambda: plain[: plain.index(b"\xff\xda")] + b"\xff\xd9")
    for count in (2, 3_000):
        yield Malformed(
            "scans",
            f"baseline-{count}.jpg",
            EITHER,
            lambda n=count: plain[:-2] + plain[plain.index(b"\xff\xda") : -2] * n + b"\xff\xd9",
        )


def lzw(rng) -> Iterator[Malformed]:
    """GIFs whose compressed data is nonsense."""
    for size in (0, 1, 2, 7, 8, 9, 11, 12, 13, 200, 255):
        for turn in range(3):
            codes = rng.bytes(200)
            yield Malformed(
                "lzw", f"{size}-{turn}.gif", EITHER, lambda s=size, c=codes: gif(40, 30, (0, 0, 40, 30), s, c)
            )
    for name, codes in {"empty": b"", "clear": b"\x24\x49\x92" * 300, "end": b"\x05", "zeros": bytes(300)}.items():
        yield Malformed("lzw", f"{name}.gif", EITHER, lambda c=codes: gif(40, 30, (0, 0, 40, 30), 2, c))
    yield Malformed("lzw", "no-end.gif", EITHER, lambda: gif(40, 30, (0, 0, 40, 30), 2, bytes(300))[:-2])


def polyglots(small: dict[str, bytes]) -> Iterator[Malformed]:
    """Files that are two things."""
    html, script = b"<html><script>alert(1)</script></html>", b"*/=1;alert(1)//"
    for name in ("rgb.png", "plain.jpg", "lossy.webp", "plain.gif", "rgb.bmp"):
        data = small[name]
        yield Malformed("polyglot", f"behind.html.{name}", PICTURE, lambda d=data: d + html)
        yield Malformed("polyglot", f"behind.zip.{name}", PICTURE, lambda d=data: d + b"PK\5\6" + bytes(18))
        yield Malformed("polyglot", f"before.{name}", REFUSAL, lambda d=data: html + d)
        yield Malformed("polyglot", f"twice.{name}", PICTURE, lambda d=data: d + d)
        yield Malformed("polyglot", f"pdf.{name}", REFUSAL, lambda d=data: b"%PDF-1.4\n" + d)
    yield Malformed("polyglot", "comment.jpg", PICTURE, lambda: behind_start(small["plain.jpg"], segment(0xFE, html)))
    yield Malformed("polyglot", "script.gif", EITHER, lambda: b"GIF89a/*" + small["plain.gif"][8:] + script)
    yield Malformed(
        "polyglot", "php.png", EITHER, lambda: behind_header(small["rgb.png"], chunk(b"tEXt", b"a\0<?php ?>"))
    )


NAMES = {
    "newline": "a\nb.png",
    "return": "a\rb.png",
    "tab": "a\tb.png",
    "escape": "a\x1b[2J\x1b]0;owned\x07.png",
    "bell": "\x07.png",
    "delete": "a\x7f.png",
    "right-to-left": "photo\u202egnp.exe",
    "isolates": "\u2066\u2069a.png",
    "zero-width": "a\u200bb\ufeff.png",
    "line-separator": "a\u2028b.png",
    "emoji": "\U0001f408\u200d\u2b1b.png",
    "chinese": "图片.png",
    "combining": "e" + "\u0301" * 80 + ".png",
    "long": "a" * 251 + ".png",
    "long-chinese": "图" * 83 + ".png",
    "spaces": "   .png",
    "dots": "...png",
    "hidden": ".png",
    "quotes": "a'b\"c`d.png",
    "html": "<img src=x onerror=alert(1)>.png",
    "template": "{{7*7}}${7*7}%s%n.png",
    "option": "--model.png",
    "dash": "-.png",
    "backslash": "a\\..\\b.png",
    "percent": "%2e%2e%2fa.png",
    "shell": "$(touch owned);a.png",
    "surrogate": "a\udcff.png",
    "reserved": "con.png",
    "query": "a.png?b=c#d",
}


def named() -> Iterator[Malformed]:
    """A good picture and a bad one under every name that is a nuisance."""
    picture = pattern(16, 12)
    for name in NAMES.values():
        yield Malformed("named", name, PICTURE, lambda: encoded(picture, "PNG"))
        yield Malformed("named-bad", name, REFUSAL, lambda: b"no picture")


def places(folder: Path) -> dict[str, str]:
    """Paths that lead to no ordinary file, made in a folder; all but `link` are to be refused."""
    good = folder / "good.png"
    good.write_bytes(encoded(pattern(16, 12), "PNG"))
    (folder / "link.png").symlink_to(good)
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "dangling.png").symlink_to(folder / "nothing")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "fifo.png")
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(folder / "socket"))
    names = ("link.png", "loop.png", "dangling.png", "device.png", "folder.png", "fifo.png", "socket", "none.png")
    made = {name.partition(".")[0]: str(folder / name) for name in names}
    return made | {
        "zero": "/dev/zero",
        "null": "/dev/null",
        "random": "/dev/urandom",
        "memory": "/proc/self/mem",
        "root": "/",
        "empty": "",
        "dot": ".",
        "too-long": str(folder / ("a" * 300)),
        "far-too-long": str(folder / ("a/" * 3_000)),
        "nul": str(folder / "a\0b.png"),
        "below-a-file": str(good / "a.png"),
        "address": "http://169.254.169.254/latest/meta-data",
        "file-address": f"file://{good}",
    }


if (
    __name__ == "__main__"
):  # every one of them into a folder, under its number: what they take to make is not the reader's
    for n, file in enumerate(files(heavy=True)):
        (Path(sys.argv[1]) / str(n)).write_bytes(file.make())
