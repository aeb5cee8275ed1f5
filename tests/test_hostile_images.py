"""More than a thousand malformed files through the decoder, a sample of them through page, API and command line.

`python tests/hostile.py` is the whole: every file everywhere, the heavy ones, times and memory.
"""

from pathlib import Path

import hostile
import malformed
import pytest
from hostile import PICTURE, REFUSAL, Said

from longtail import BadImage, open_image

CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())
GONE = "The image is no longer on this server, which deletes uploads after an hour: drop it in again."


@pytest.fixture(scope="module")
def site(llava):
    with hostile.served(llava) as served:
        yield served


@pytest.fixture(scope="module")
def sample():
    return hostile.sample(60)


def faults(way, some) -> list[str]:
    return [said.fault for said in hostile.sent(way, some) if said.fault]


def test_they_are_the_same_for_the_same_seed():
    first, second, other = malformed.files(), malformed.files(), malformed.files(1)
    assert len(first) > 1_000 and [file.name for file in first] == [file.name for file in second]
    assert all(a.make() == b.make() for a, b in zip(first[::9], second[::9], strict=True))
    assert any(a.make() != b.make() for a, b in zip(first[::9], other[::9], strict=True))


def test_a_fault_is_seen():
    file = malformed.Malformed("kind", "a.png", REFUSAL, bytes)
    assert "was expected" in Said(file, PICTURE, "", 0).fault
    assert "no sentence" in Said(file, REFUSAL, "no", 0).fault and "500" in Said(file, "500", "", 0).fault
    assert not Said(file, REFUSAL, "a.png is damaged or cut short", 0).fault


def test_the_decoder_takes_them_all():
    assert not faults(hostile.decoder, malformed.files())


@pytest.mark.parametrize(
    "name", ["iCCP-18-megabytes.png", "empty-18-megabytes.jpg", "comment-18874368.gif", "many.gif"]
)
def test_the_decoder_takes_what_once_took_minutes(name):
    heavy = [file for file in malformed.files(heavy=True) if file.heavy and file.file == name]
    assert len(heavy) == 1 and not faults(hostile.decoder, heavy)


def test_what_the_fuzzer_found():
    assert len(CORPUS) > 50 and sum(path.stat().st_size for path in CORPUS) < 300_000
    for path in CORPUS:
        try:
            assert open_image(path.read_bytes()).mode == "RGB"
        except BadImage as refusal:
            assert str(refusal).isprintable() and hostile.REASONS.search(str(refusal))


def test_the_page_takes_them(site, sample):
    assert not faults(site.page, sample)


def test_the_api_takes_them(site, sample):
    assert not faults(site.answer, sample)


def test_the_command_line_takes_them(llava, sample):
    with hostile.command_line(llava) as way:
        assert not faults(way, sample)


def test_a_process_refuses_in_one_line_before_a_model_is_loaded(tmp_path):
    (tmp_path / "a\n.png").write_bytes(b"no picture")
    outcome, words = hostile.process(tmp_path / "a\n.png", "no-such-model")
    assert outcome == REFUSAL and "is not a readable" in words


def test_places_that_are_no_files(tmp_path, llava):
    made = malformed.places(tmp_path)
    assert open_image(made.pop("link")).size == (16, 12)
    with hostile.command_line(llava):
        for name, path in made.items():
            outcome, words = hostile.said_by(["answer", path, "What is it?"])
            assert outcome == REFUSAL and hostile.REASONS.search(words), (name, outcome, words)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "{root}/README.md", "{root}/assets/tiny/results.json", "/", "a\0b", "x" * 300]
)
def test_the_page_opens_no_file_that_an_event_names(site, path):
    """Nor says whether there is one; the examples are everybody's."""
    path = path.format(root=hostile.ROOT)
    assert site.posted({"path": path}) == (REFUSAL, GONE)
    assert site.asked({"path": path})[0] == REFUSAL
    assert site.posted({"path": str(hostile.ROOT / "assets" / "examples" / "place.png")}) == (PICTURE, "")
