"""What a file holds beside its picture is left out before anything decodes it: the picture alone, and its upright turn.

A decoder that never sees profiles, texts, comments, thumbnails and later frames has no work with them, however many and
however compressed they are. Of EXIF one value is read, as a browser reads it. What is cut short stays so.
"""

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

MOST_PARTS = 100_000  # chunks, segments or blocks of metadata walked through
MOST_SCANS = 64  # of a progressive JPEG, each a pass over the whole; encoders write about ten
ORIENTATION, SHORT = 0x0112, 3  # a tag of EXIF, and the type of its value
BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
MARKER = re.compile(rb"\xff+([^\xff])", re.DOTALL)  # of a JPEG, whatever fills the place before it
PROGRESSIVE, RUN_LENGTH = "progressive JPEG", "run-length BMP"

Part = tuple[bytes, int, int]  # kind, and where the whole of it starts and ends


@dataclass(frozen=True, eq=False)
class Bare:
    """A file with its picture alone: its kind, "" where it is none of ours, and the EXIF orientation, 1 to 8."""

    data: bytes
    kind: str = ""
    turn: int = 1


def bare(data: bytes) -> Bare:
    """The picture of a PNG, JPEG, WEBP, GIF or BMP file. Raises ValueError with the reason where it has no end of parts
    or scans."""
    for magic, only in KINDS:
        if magic.match(data):
            return only(data)
    return Bare(data)


def _png(data: bytes) -> Bare:
    """PNG (W3C, third edition): chunks of length, kind, body and sum."""
    kept, turn = [data[:8]], 1
    for kind, start, end in _walk(data, 8, _chunk):
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND") or not kind.isalpha():
            kept.append(data[start:end])
        elif kind == b"eXIf":
            turn = orientation(data[start + 8 : end - 4])
        if kind == b"IEND":
            break
    return Bare(b"".join(kept), "PNG", turn)


def _chunk(data: bytes, at: int) -> Part:
    return data[at + 4 : at + 8], at, at + 12 + int.from_bytes(data[at : at + 4], "big")


def _jpeg(data: bytes) -> Bare:
    """JPEG (ITU T.81): segments, then from the first scan on what the decoder needs as it stands, to its end marker."""
    kept, turn, kind = [data[:2]], 1, "JPEG"
    for marker, start, end in _walk(data, 2, _segment):
        code = marker[0]
        if code == 0xDA:
            end = data.find(b"\xff\xd9", start)
            rest = data[start : end + 2] if end >= 0 else data[start:]
            scans = rest.count(b"\xff\xda")
            if scans > MOST_SCANS:
                raise ValueError(f"has {scans:,} scans, more than the {MOST_SCANS} that are read")
            return Bare(b"".join((*kept, rest)), kind if scans == 1 else PROGRESSIVE, turn)
        body = data[start + 4 : end]
        if code == 0xE1 and body.startswith(b"Exif\0\0") and turn == 1:
            turn = orientation(body)
        metadata = 0xE0 <= code <= 0xEF or code == 0xFE
        if not metadata or body.startswith((b"JFIF", b"Adobe")):  # these two tell how colours are meant
            kept.append(data[start:end])
        kind = PROGRESSIVE if code == 0xC2 else kind
    return Bare(b"".join(kept), kind, turn)


def _segment(data: bytes, at: int) -> Part | None:
    found = MARKER.search(data, at)
    if found is None:
        return None
    start, end = found.end() - 2, found.end()
    alone = found[1] <= b"\x01" or b"\xd0" <= found[1] <= b"\xd9"
    return found[1], start, end if alone else end + max(2, int.from_bytes(data[end : end + 2], "big"))


def _webp(data: bytes) -> Bare:
    """WEBP (RFC 9649): chunks of kind, length and body. Of an animation the first frame."""
    kept, turn, framed = [], 1, False
    for kind, start, end in _walk(data, 12, _riff):
        if kind == b"VP8X":
            flags = data[start + 8 : start + 9]
            kept.append(data[start : start + 8] + bytes(flag & 0x12 for flag in flags) + data[start + 9 : end])
        elif kind in (b"VP8 ", b"VP8L", b"ALPH", b"ANIM") or (kind == b"ANMF" and not framed):
            kept.append(data[start:end])
            framed = framed or kind == b"ANMF"
        elif kind == b"EXIF":
            turn = orientation(data[start + 8 : end])
    body = b"WEBP" + b"".join(kept)
    return Bare(b"RIFF" + struct.pack("<I", len(body)) + body, "WEBP", turn)


def _riff(data: bytes, at: int) -> Part:
    length = int.from_bytes(data[at + 4 : at + 8], "little")
    return data[at : at + 4], at, at + 8 + length + length % 2


def _gif(data: bytes) -> Bare:
    """GIF89a: the screen, the last control block before the first image, and all from there on, which is not read."""
    flags = int.from_bytes(data[10:11], "big")
    begin = 13 + (6 << (flags & 7)) * (flags >> 7)
    control = b""
    for kind, start, end in _walk(data, begin, _block):
        if kind == b",":
            return Bare(data[:begin] + control + data[start:], "GIF")
        if kind == b"!\xf9":
            control = data[start:end]
        if kind == b";":
            break
    return Bare(data[:begin] + control, "GIF")


def _block(data: bytes, at: int) -> Part:
    if data[at : at + 1] != b"!":
        return data[at : at + 1], at, at + 1
    end = at + 2
    for _ in range(MOST_PARTS):
        size = data[end] if end < len(data) else 0
        end += 1 + size
        if not size:
            return data[at : at + 2], at, end
    raise ValueError(_endless())


def _bmp(data: bytes) -> Bare:
    """BMP as it is; of one that is run-length encoded no more than two bytes a pixel, and two a row, can be of use."""
    if data[14:15] == b"\x0c" or data[30:34] not in (b"\1\0\0\0", b"\2\0\0\0"):
        return Bare(data, "BMP")
    width, height = (abs(length) for length in struct.unpack_from("<ii", data, 18))
    return Bare(data[: 2_000 + 2 * (width + 1) * height], RUN_LENGTH)


def _walk(data: bytes, at: int, part: Callable[[bytes, int], Part | None]) -> Iterator[Part]:
    """One part after another. Raises ValueError where there are too many."""
    for _ in range(MOST_PARTS):
        if at >= len(data) or (found := part(data, at)) is None:
            return
        yield found
        at = found[2]
    raise ValueError(_endless())


def _endless() -> str:
    return f"has more than {MOST_PARTS:,} parts, few of which can be picture"


def orientation(exif: bytes) -> int:
    """The direction that an EXIF block gives, 1 to 8; 1 where it gives none of sense. Source: EXIF 2.32, TIFF 6."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = BYTE_ORDERS.get(exif[:4])
    if order is None or len(exif) < 8:
        return 1
    start = struct.unpack_from(order + "I", exif, 4)[0]
    if start + 2 > len(exif):
        return 1
    count = struct.unpack_from(order + "H", exif, start)[0]
    for at in range(start + 2, min(start + 2 + 12 * count, len(exif) - 11), 12):
        tag, kind, values, value = struct.unpack_from(order + "HHIH", exif, at)
        if tag == ORIENTATION:
            return value if (kind, values) == (SHORT, 1) and 1 <= value <= 8 else 1
    return 1


KINDS = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), _png),
    (re.compile(rb"\xff\xd8\xff"), _jpeg),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), _webp),
    (re.compile(rb"GIF8[79]a"), _gif),
    (re.compile(rb"BM"), _bmp),
)
