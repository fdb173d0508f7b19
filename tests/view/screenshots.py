"""The pictures of docs/viewing.md: `python -m tests.view.screenshots docs` draws them anew; a test of the page draws
them too."""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from playwright.sync_api import Page

from tests.reference.browser import browser, watched_page
from tests.reference.viewed import train_two_runs
from view.library import Library
from view.server import PageServer

NAMES = ("view_overview", "view_rollouts", "view_group", "view_two_runs", "view_group_dark")

LARGER = ("steps=24", "sampling.questions_per_step=16", "sampling.group_size=8", "evaluation.every=4",
          "evaluation.num_questions=64", "evaluation.samples=4")


def take(page: Page, url: str, folder: Path) -> list[Path]:
    """One run's curves, its rollouts, a group, two runs over each other, the group in dark; in NAMES' order."""
    def shoot(name: str) -> Path:
        page.mouse.move(950, 20)  # off what lights up below it
        page.wait_for_timeout(150)  # the canvas is drawn in the next frame
        out = folder / f"{name}.png"
        page.screenshot(path=out)
        return out

    page.goto(f"{url}#curves?source=grpo")
    page.get_by_label("draw the curves of empo").uncheck()
    page.locator("main th", has_text="empo").wait_for(state="hidden")
    found = [shoot(NAMES[0])]
    page.goto(f"{url}#rollouts?source=grpo&right=some&first_step=2")
    page.locator("tbody a").first.wait_for()
    found.append(shoot(NAMES[1]))
    page.locator("tbody a").nth(1).click()
    page.get_by_label("Order").select_option("cluster")
    found.append(shoot(NAMES[2]))
    group = page.url
    page.goto(f"{url}#curves?source=grpo")
    page.get_by_label("draw the curves of empo").check()
    page.locator("main th", has_text="empo").wait_for()
    found.append(shoot(NAMES[3]))
    page.emulate_media(color_scheme="dark")
    page.goto(group)
    page.locator(".card").first.wait_for()
    return [*found, shoot(NAMES[4])]


def main(words: Sequence[str]) -> None:
    """words: the folder to draw into."""
    with tempfile.TemporaryDirectory() as temporary, browser() as started:
        server = PageServer(Library(train_two_runs(Path(temporary), *LARGER), cached=False))
        serving = threading.Thread(target=server.serve)
        serving.start()
        with watched_page(started, server.url) as page:
            for path in take(page, server.url, Path(words[0])):
                print(path, path.stat().st_size)
        server.shutdown()
        serving.join()


if __name__ == "__main__":
    main(sys.argv[1:])
