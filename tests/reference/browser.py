"""Pages in a real browser, headless, for tests of view/: Debian's chromium (`make install-browser`), driven by
playwright."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SIZE = {"width": 1280, "height": 860}


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Skips the test, with the reason, where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser ({', '.join(NAMES)}): make install-browser")
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=found)
        yield started
        started.close()


@contextlib.contextmanager
def watched_page(browser: Browser, address: str) -> Iterator[Page]:
    """The page at `address`, in the light theme. In the end: nothing was written to the console as an error or warning,
    nothing was thrown, and nothing was asked of anybody but that address's own server or folder."""
    page = browser.new_page(viewport=SIZE, color_scheme="light")  # type: ignore[arg-type]
    page.set_default_timeout(15_000)
    faults: list[str] = []
    home = urlsplit(address)
    page.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))

    def note_request(url: str) -> None:
        where = urlsplit(url)
        if where.scheme != "data" and (where.scheme, where.netloc) != (home.scheme, home.netloc):
            faults.append(f"asked {url}")

    page.on("request", lambda request: note_request(request.url))
    page.goto(address)
    yield page
    assert page.evaluate("document.title") != "taken", "a completion became a script"
    assert faults == []
    page.close()


def file_address(path: Path) -> str:
    return path.resolve().as_uri()
