"""How soon the page is there and how soon it answers: `python -m demo.measure`, on this machine, in a real browser.

Starts `app.py` as a visitor's server would be started, opens it in the system's Chromium, presses Run. Needs
playwright (tests/requirements.txt) and Chromium.
"""

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import sync_playwright

APP = Path(__file__).parents[1] / "app.py"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SLOWEST = 120  # seconds that a start may take
GOALS = {"start": 15.0, "ready": 2.5, "first token": 0.5, "hover": 0.016}  # seconds, on two cores
FIRST_TOKEN = """() => new Promise(done => {
  const start = performance.now();
  const said = () => [...document.querySelectorAll('.lane .answer span')].some(s => s.innerText.trim());
  new MutationObserver((_, me) => said() && (me.disconnect(), done((performance.now() - start) / 1000)))
    .observe(document.querySelector('#columns'), {subtree: true, childList: true, characterData: true});
  document.querySelector('#run').click(); })"""
HOVER = """() => { const picture = document.querySelector('#column-2 .picture'), box = picture.getBoundingClientRect();
  const start = performance.now();
  for (let i = 0; i < 200; i++) picture.dispatchEvent(new PointerEvent('pointermove', {bubbles: true,
    clientX: box.left + 5 + (37 * i) % (box.width - 10), clientY: box.top + 5 + (53 * i) % (box.height - 10)}));
  return (performance.now() - start) / 200 / 1000; }"""


@contextmanager
def started(flags: list[str]):
    """The page's address and the seconds until it answered."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    begun, url = time.perf_counter(), f"http://127.0.0.1:{port}"
    server = subprocess.Popen([sys.executable, str(APP), "--port", str(port), *flags], stdout=subprocess.DEVNULL)
    try:
        while not _answers(url):
            if server.poll() is not None or time.perf_counter() - begun > SLOWEST:
                raise RuntimeError(f"app.py did not come up within {SLOWEST} seconds")
            time.sleep(0.05)
        yield url, time.perf_counter() - begun
    finally:
        server.terminate()
        server.wait(10)


def measure(repeat: int, flags: list[str]) -> dict[str, list[float]]:
    """Seconds: start of app.py until it serves; opening the page until it can be used; click until the first streamed
    token; the script of one hover, both columns."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        raise RuntimeError("there is no Chromium: on Debian, apt-get install chromium")
    taken = {name: [] for name in GOALS}
    with started(flags) as (url, seconds), sync_playwright() as driver:
        taken["start"].append(seconds)
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for _ in range(repeat + 1):
            tab = browser.new_page(viewport={"width": 1440, "height": 900})
            begun = time.perf_counter()
            tab.goto(url, wait_until="commit")
            tab.get_by_role("button", name="Run", exact=True).wait_for()
            tab.locator("#column-2 .picture image").wait_for()
            taken["ready"].append(time.perf_counter() - begun)
            tab.wait_for_timeout(1000)
            taken["first token"].append(tab.evaluate(FIRST_TOKEN))
            tab.get_by_text("Done. Change anything").wait_for()
            tab.wait_for_timeout(500)
            taken["hover"].append(tab.evaluate(HOVER))
            tab.close()
        browser.close()
    return {name: times if name == "start" else times[1:] for name, times in taken.items()}  # the first warms up


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/config", timeout=1) as reply:
            return reply.status == 200
    except OSError:
        return False


def main():
    """Print the table, then one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m demo.measure", description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5, help="visits that count, after one that warms up")
    arguments, flags = parser.parse_known_args()
    taken = measure(arguments.repeat, flags)
    medians = {name: statistics.median(times) for name, times in taken.items()}
    for name, goal in GOALS.items():
        print(f"{name:12} {1000 * medians[name]:8.1f} ms   goal {1000 * goal:8.1f} ms   n = {len(taken[name])}")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    machine = {
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "load": load,
        "python": platform.python_version(),
    }
    print(json.dumps({"seconds": taken, "medians": medians} | machine))


if __name__ == "__main__":
    main()
