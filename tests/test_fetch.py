"""An image at an address: only a public one, only as much as is read, and nothing told of who answered."""

import asyncio
import gzip
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import gradio as gr

from demo import api, fetch

PUBLIC = "93.184.216.34"
META = {"_type": "gradio.FileData"}
PICTURE = Path(__file__).parents[1] / "assets" / "examples" / "place.png"


class Site(BaseHTTPRequestHandler):
    """What a picture's host may do, well and badly."""

    asked: ClassVar[list[str]] = []

    def do_GET(self):
        self.asked.append(self.headers["host"] + self.path)
        getattr(self, self.path.strip("/").partition("?")[0])()

    def answer(self, status=200, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def picture(self):
        self.answer()
        self.wfile.write(PICTURE.read_bytes())

    def elsewhere(self):
        self.answer(302, location="http://169.254.169.254/latest/meta-data")

    def missing(self):
        self.answer(404)
        self.wfile.write(b"secret words of an internal host")

    def bomb(self):
        self.answer(content_encoding="gzip")
        self.wfile.write(gzip.compress(bytes(2**26)))

    def endless(self):
        self.answer()
        self._until_closed(bytes(2**20), 0)

    def drip(self):
        self.answer()
        self._until_closed(b"x", 0.05)

    def silent(self):
        time.sleep(1)

    def _until_closed(self, piece: bytes, pause: float):
        try:
            for _ in range(2_000):
                self.wfile.write(piece)
                time.sleep(pause)
        except OSError:
            return

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def site():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()


class Here(httpx.AsyncHTTPTransport):
    """The public internet, which is this machine: remembers who was connected to."""

    def __init__(self, port: int):
        super().__init__()
        self.port, self.connected = port, []

    async def handle_async_request(self, request):
        self.connected.append(request.url.host)
        request.url = request.url.copy_with(scheme="http", host="127.0.0.1", port=self.port)
        return await super().handle_async_request(request)


@pytest.fixture
def get(site, monkeypatch, tmp_path):
    """Fetch an address while every name stands for these IPs; returns the bytes and who was connected to."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))

    def get_(url: str, *ips: str):
        internet = Here(site)

        async def resolve(host, port):
            return list(ips)

        try:
            file = asyncio.run(fetch.stored(url, resolve, internet))
        finally:
            get_.connected = internet.connected
        return file.read_bytes()

    return get_


def left(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() or not any(path.iterdir())]


@pytest.mark.parametrize("url", ["http://site.example/picture", "https://site.example/picture?a=1#b"])
def test_a_picture_comes_from_the_address_that_was_looked_at(get, url):
    assert get(url, "2606:2800:220:1::1", PUBLIC) == PICTURE.read_bytes()
    assert get.connected == [PUBLIC] and Site.asked[-1].startswith("site.example/picture")


@pytest.mark.parametrize(
    "ips",
    [
        *(["127.0.0.1"], ["10.1.2.3"], ["172.16.0.1"], ["192.168.1.1"], ["169.254.169.254"], ["100.100.100.200"]),
        *(["0.0.0.0"], ["224.0.0.1"], ["255.255.255.255"], ["240.0.0.1"], ["192.0.2.1"], ["198.18.0.1"], ["0.1.2.3"]),
        *(["::1"], ["::"], ["fe80::1"], ["fe80::1%eth0"], ["fc00::1"], ["fec0::1"], ["ff02::1"], ["2001:db8::1"]),
        *(["::ffff:127.0.0.1"], ["::ffff:8.8.8.8"], ["::127.0.0.1"], ["64:ff9b::7f00:1"], ["2002:7f00:1::"]),
        *(["2001:0:4136:e378:8000:63bf:3fff:fdd2"], [PUBLIC, "127.0.0.1"], ["::1", PUBLIC], []),
    ],
    ids=lambda ips: " ".join(ips) or "nothing",
)
def test_no_name_leads_inside(get, tmp_path, ips):
    with pytest.raises(fetch.NoFile) as refusal:
        get("http://site.example/picture", *ips)
    assert str(refusal.value) == fetch.NO_FILE and not get.connected and not left(tmp_path)


def test_a_name_is_looked_up_once_so_it_cannot_change_its_mind(site, monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    answers, internet = [["127.0.0.1"], [PUBLIC]], Here(site)

    async def resolve(host, port):
        return answers.pop()

    assert asyncio.run(fetch.stored("http://rebinds.example/picture", resolve, internet)).is_file()
    assert internet.connected == [PUBLIC] and answers == [["127.0.0.1"]]


@pytest.mark.parametrize(
    "url",
    [
        *("file:///etc/passwd", "ftp://site.example/a.png", "gopher://site.example/", "data:image/png;base64,AAAA"),
        *("//site.example/picture", "site.example", "", "http://", "http:///picture", "http://a\0b/"),
        *(
            "http://user@site.example/picture",
            "http://site.example:pass@127.0.0.1/",
            "http://127.0.0.1\\@site.example/",
        ),
        *("http://site.example:22/picture", "https://site.example:80/picture", "http://site.example:99999/"),
        *("http://0177.0.0.1/", "http://①②⑦.⓪.⓪.①/", "http://" + "a" * 70_000, "http://[::1/"),
    ],
    ids=lambda url: ascii(url)[:40],
)
def test_an_address_that_is_none(get, tmp_path, url):
    with pytest.raises(fetch.NoFile) as refusal:
        get(url, PUBLIC)
    assert str(refusal.value) == fetch.NO_FILE and not get.connected and not left(tmp_path)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "localhost.", "2130706433", "0x7f000001", "0x7f.1", "127.1", "0", "[::1]", "[::]"],
)
def test_numbers_that_mean_this_machine(host, site, monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    internet = Here(site)
    with pytest.raises(fetch.NoFile) as refusal:
        asyncio.run(fetch.stored(f"http://{host}/picture", fetch.resolved, internet))
    assert str(refusal.value) == fetch.NO_FILE and not internet.connected


@pytest.mark.parametrize(
    "path, sentence",
    [
        ("elsewhere", "it must be there itself, not behind a redirect"),
        ("missing", "it must be there itself, not behind a redirect"),
        ("bomb", "it must be there itself, not behind a redirect"),
        ("endless", "is too large a file: at most 20 MB"),
        ("silent", "did not arrive within 0.4 seconds"),
        ("drip", "did not arrive within 0.4 seconds"),
    ],
)
def test_a_host_that_plays_games(get, monkeypatch, tmp_path, path, sentence):
    if "arrive" in sentence:
        monkeypatch.setattr(fetch, "SECONDS", 0.4)
    with pytest.raises(fetch.NoFile, match=sentence) as refusal:
        get(f"http://site.example/{path}", PUBLIC)
    assert get.connected == [PUBLIC] and "secret" not in str(refusal.value) and not left(tmp_path)


def test_an_event_has_its_address_replaced_before_gradio_sees_it(monkeypatch, tmp_path):
    asked = []

    async def stored(url):
        asked.append(url)
        return tmp_path / "image"

    monkeypatch.setattr(fetch, "stored", stored)
    file = {"path": "http://site.example/a.png", "url": "http://site.example/a.png", "meta": META}
    other = [{"path": "a.png", "meta": META}, {"path": "http://site.example/a.png"}, "http://site.example", None, 3]
    brought = asyncio.run(fetch.brought([{"deep": [file]}, *other]))
    assert brought == [{"deep": [{"path": str(tmp_path / "image"), "url": None, "meta": META}]}, *other]
    with pytest.raises(fetch.NoFile):
        asyncio.run(fetch.brought([file, [file]]))
    assert len(asked) == 2


@pytest.mark.parametrize("visibility", ["public", "private"])
def test_gradio_never_fetches(monkeypatch, visibility):
    """Neither for the API nor for an event of the page that somebody posts by hand."""

    async def theirs(*arguments, **options):
        pytest.fail("Gradio fetched")

    async def resolve(host, port):
        return ["10.0.0.1"]

    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_download", theirs)
    monkeypatch.setattr(fetch.stored, "__defaults__", (resolve, None))
    with api.Blocks() as blocks:
        image = gr.JSON()
        image.change(lambda value: value, image, None, api_visibility=visibility)
    (event,) = blocks.fns.values()
    given = json.loads(json.dumps({"a": {"path": "http://site.example/a.png", "meta": META}}))
    with pytest.raises(gr.Error, match="The image cannot be used"):
        asyncio.run(blocks.preprocess_data(event, [given], None))
