"""Real browsers among the visitors."""

from pathlib import Path
from tempfile import TemporaryDirectory

from browsing import chromium, watch
from playwright.sync_api import TimeoutError

import longtail

from .figures import SHORT
from .stand import picture

PATIENCE = 180_000  # milliseconds


class Look:
    """What a browser asks, and what `longtail.answer` gives for it alone."""

    def __init__(self, llava, at: int):
        self.image, self.question = picture(1000 + at), f"{SHORT} Browser {at}."
        self.alone = longtail.answer(llava, self.image, self.question, longtail.Full(), max_new_tokens=128).text


def browsed(url: str, tabs: int, looks: list[Look]) -> list[str]:
    """So many browsers ask all of it at once, again and again; what was wrong."""
    wrong = []
    with chromium() as browser, TemporaryDirectory() as folder:
        opened = [browser.new_context().new_page() for _ in range(tabs)]
        for tab in opened:
            watch(tab, url, wrong)
            tab.goto(url)
            tab.wait_for_function("window.longtailFollowed")
        for first in range(0, len(looks), tabs):
            asked = dict(zip(opened, looks[first : first + tabs], strict=True))
            for at, (tab, look) in enumerate(asked.items(), first):
                (file := Path(folder) / f"{at}.png").write_bytes(look.image)
                _filled(tab, file, look.question)
            for tab in asked:
                tab.get_by_role("button", name="Run", exact=True).click()
            for tab, look in asked.items():
                said = _said(tab)
                wrong += [f"{said!r} for {look.alone!r}"] * (said.split() != look.alone.split())
    return wrong


def _filled(tab, file: Path, question: str):
    """The page asks about that file."""
    tab.get_by_role("button", name="Clear", exact=True).click()
    tab.wait_for_timeout(500)
    with tab.expect_response("**/upload*"):
        tab.locator("#ask-image input[type=file]").set_input_files(file)
    tab.wait_for_timeout(1500)  # the columns are drawn afresh
    tab.locator("#question textarea").fill(question)
    tab.locator("#message p").evaluate("it => { it.textContent = ''; }")


def _said(tab) -> str:
    """What the first column says in the end; where there is no end, what the page says instead."""
    try:
        tab.get_by_text("Done. Change anything").wait_for(timeout=PATIENCE)
    except TimeoutError:
        return f"no end: {tab.locator('#message').inner_text()!r}, {tab.locator('#trouble').inner_text()!r}"
    return tab.locator("#column-1 .answer p").inner_text()
