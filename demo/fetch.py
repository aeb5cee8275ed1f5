"""The image at a public address, fetched for a caller of the API: from no network but the public one, 20 MB at most.

Gradio would fetch it too, wholly into memory and without an end. Here every address that a name stands for is public,
the one that was looked at is the one connected to, and a redirect, a compressed body, a byte too many or 10 seconds end
it. What is said of that never tells what answered.
"""

import asyncio
import ipaddress
import socket
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
from gradio.utils import get_upload_folder
from gradio_client.utils import async_traverse, is_file_obj_with_meta, is_http_url_like

NO_FILE = (
    "The image cannot be used: give a file of yours, from Python by gradio_client's handle_file(path), "
    "or a public http(s) address."
)
MOST, SECONDS = 20_000_000, 10
PORTS = {"http": 80, "https": 443}
PLAIN = {"accept": "image/*", "accept-encoding": "identity", "user-agent": "LongTail"}
UNICAST, SIX_TO_FOUR = ipaddress.ip_network("2000::/3"), ipaddress.ip_network("2002::/16")

Resolve = Callable[[str, int], Awaitable[list[str]]]


class NoFile(ValueError):
    """An image that cannot be had; the message is for the caller."""

    def __init__(self, sentence: str = NO_FILE):
        super().__init__(sentence)


async def resolved(host: str, port: int) -> list[str]:
    """Every address that a name stands for."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [address[0] for *_, address in found]


async def brought(inputs: list) -> list:
    """The inputs of an event, an address in place of a file's path fetched. Raises NoFile with a sentence, also for
    more than one."""
    found = []

    def address(value) -> bool:
        return is_file_obj_with_meta(value) and is_http_url_like(value["path"])

    async def bring(value: dict) -> dict:
        found.append(value)
        if len(found) > 1:
            raise NoFile
        return value | {"path": str(await stored(value["path"])), "url": None}

    return await async_traverse(inputs, bring, address)


async def stored(url: str, resolve: Resolve = resolved, transport: httpx.AsyncBaseTransport | None = None) -> Path:
    """The image at an address as a file among the uploads, which are deleted after an hour. Raises NoFile with a
    sentence."""
    file = Path(tempfile.mkdtemp(dir=_uploads())) / "image"
    try:
        with file.open("wb") as out:
            await asyncio.wait_for(_fetch(url, out.write, resolve, transport), SECONDS)
    except BaseException as error:
        file.unlink()
        file.parent.rmdir()
        if isinstance(error, asyncio.TimeoutError):
            raise NoFile(f"The image at that address did not arrive within {SECONDS} seconds.") from None
        if isinstance(error, socket.gaierror | httpx.HTTPError | httpx.InvalidURL | UnicodeError):
            raise NoFile from None
        raise
    return file


def public(address: str) -> bool:
    """Whether an IP address is one that anybody on the internet reaches under it; no translated or tunnelled one is."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 6:
        return ip in UNICAST and ip not in SIX_TO_FOUR and ip.is_global
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)


async def _fetch(url: str, write: Callable[[bytes], object], resolve: Resolve, transport):
    """Write what stands at an address, piece by piece."""
    place = httpx.URL(url)
    port = place.port or PORTS.get(place.scheme)
    if (place.scheme, port) not in PORTS.items() or place.userinfo or not place.host:
        raise NoFile
    addresses = await resolve(place.host, port)
    if not addresses or not all(map(public, addresses)):
        raise NoFile
    pinned = place.copy_with(host=min(addresses, key=lambda address: ":" in address))  # IPv4 where there is one
    headers, named = PLAIN | {"host": place.netloc.decode()}, {"sni_hostname": place.host}
    async with httpx.AsyncClient(transport=transport, trust_env=False, timeout=SECONDS) as client:
        async with client.stream("GET", pinned, headers=headers, extensions=named) as answer:
            await _take(answer, write)


async def _take(answer: httpx.Response, write: Callable[[bytes], object]):
    if answer.status_code != 200 or answer.headers.get("content-encoding", "identity") != "identity":
        raise NoFile("The image at that address cannot be used: it must be there itself, not behind a redirect.")
    taken = 0
    async for piece in answer.aiter_raw():
        taken += len(piece)
        if taken > MOST:
            raise NoFile(f"The image at that address is too large a file: at most {MOST // 1_000_000} MB.")
        write(piece)


def _uploads() -> Path:
    folder = Path(get_upload_folder())
    folder.mkdir(parents=True, exist_ok=True)
    return folder
