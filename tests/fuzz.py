"""The decoder under atheris, a fuzzer led by coverage: any bytes become a picture or a sentence.

It is not among the tests' requirements: pip install atheris (Linux and macOS, Python up to 3.12). From the root:

    python tests/fuzz.py FOUND                                  # a new folder: ten minutes from the malformed files on
    python tests/fuzz.py -merge=1 tests/corpus FOUND            # keep the fewest that cover as much

`test_hostile_images` sends tests/corpus through the decoder.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import atheris

with atheris.instrument_imports(include=["PIL", "longtail.bare", "longtail.image"]):
    from malformed import files
    from PIL import Image

    from longtail import image

    Image.init()  # the plugins of all formats

LARGEST = 3_000  # bytes of a file to begin with
LIMITS = ["-max_total_time=600", "-max_len=4096", "-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"]
image.MAX_PIXELS = 100_000  # a larger picture tells no more, and takes as many times as long
image.FEWER = dict.fromkeys(image.FEWER, image.MAX_PIXELS)


def decode(data: bytes):
    """One input: an upright RGB picture, or BadImage with a sentence. Anything else is a find."""
    try:
        picture = image.open_picture(data, lambda size: (24, 24)).image
    except image.BadImage as refusal:
        assert str(refusal).isprintable() and len(str(refusal)) < 300, str(refusal)
        return
    assert picture.mode == "RGB" and picture.width * picture.height <= image.MAX_PIXELS
    assert len(picture.tobytes()) == 3 * picture.width * picture.height


def begin(folder: Path):
    """A folder of what is small among the malformed files."""
    folder.mkdir()
    for n, file in enumerate(files()):
        if len(data := file.make()) <= LARGEST:
            (folder / f"malformed-{n}").write_bytes(data)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if len(arguments) == 1 and not Path(arguments[0]).exists():
        begin(Path(arguments[0]))
        arguments += LIMITS
    atheris.Setup([f"{sys.executable} {sys.argv[0]}", *arguments], decode)  # it calls itself to merge
    atheris.Fuzz()
