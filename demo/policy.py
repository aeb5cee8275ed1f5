"""What a browser is held to: the headers of every response, and the scripts that a page may run."""

import re
from base64 import b64encode
from hashlib import sha256
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders

SHARED = "https://gradio.s3-us-west-2.amazonaws.com"  # where Gradio's page for a share link has its scripts
SPACES = ("https://huggingface.co", "https://*.hf.space")
POLICY = """default-src 'none'; base-uri 'self'; form-action 'self'; manifest-src 'self';
script-src 'self' 'unsafe-eval' {shared} {scripts}; style-src 'self' 'unsafe-inline' {shared};
img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data: {shared};
connect-src 'self' data: blob: {shared}; worker-src 'self' blob:; frame-ancestors 'self' {framing}"""
# 'unsafe-eval': gr.HTML makes functions of its templates. Styles: Svelte writes style attributes.
BARE = (
    "default-src 'none'; style-src 'unsafe-inline'; sandbox; frame-ancestors 'none'"  # opened by itself, nothing runs
)
INLINE = re.compile(rb"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL)
FILE = "/gradio_api/file="
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # an address holds the question
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=(), display-capture=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def of(html: bytes, framing: tuple[str, ...] = (), shared: bool = False) -> str:
    """The content policy of a page: its own inline scripts by their hashes, no others. `framing`: sites that may frame
    it; `shared`: it is opened through a share link."""
    digests = [b64encode(sha256(script).digest()).decode() for script in INLINE.findall(html)]
    scripts = " ".join(f"'sha256-{digest}'" for digest in digests)
    allowed = {"scripts": scripts, "shared": SHARED if shared else "", "framing": " ".join(framing)}
    return " ".join(POLICY.format(**allowed).split())


def dress(headers: MutableHeaders, path: str):
    """Add ours to the headers of a response; a page's policy comes with its body."""
    for name, value in HEADERS.items():
        headers[name] = value
    if not headers.get("content-type", "").startswith(("text/html", "text/javascript", "application/javascript")):
        headers["Content-Security-Policy"] = BARE
    if path.startswith(FILE):
        headers["Cache-Control"] = "private"
    elif not path.startswith(("/static/", "/assets/")):
        headers.setdefault("Cache-Control", "no-store")
    if "location" in headers:  # within this site, whatever the request said of its host
        headers["location"] = urlsplit(headers["location"]).path or "/"
