"""How fast does the page of `python -m view` open on a large run? `python benchmarks/view_large_run.py RUN OUT`.

Repeats the lines of a real run, with longer texts, until OUT is a run of 1,250 steps with 32 groups each (0.4 GB); then
opens it in headless Chromium with an empty cache and again with the index built, and prints seconds of wall-clock time.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from rl.runs.folder import RunFolder
from view.index import Query
from view.library import Library
from view.server import PageServer

STEPS, GROUPS = 1250, 32
PADDING = "First I write the sum down and then add the numbers from left to right, carefully. " * 16


def write_large_run(source: RunFolder, target: RunFolder) -> None:
    """Three of four groups get long texts."""
    target.path.mkdir(parents=True, exist_ok=True)
    shutil.copy(source.config_file, target.config_file)
    groups, metrics = ([json.loads(line) for line in file.read_bytes().splitlines()]
                       for file in (source.rollouts_file, source.metrics_file))
    trained = [line for line in metrics if line["kind"] == "train"]
    with target.rollouts_file.open("w") as rollouts, target.metrics_file.open("w") as numbers:
        for step in range(1, STEPS + 1):
            numbers.write(json.dumps(trained[step % len(trained)] | {"step": step}) + "\n")
            for number in range(GROUPS):
                group = groups[(step * GROUPS + number) % len(groups)] | {"step": step}
                if number % 4:
                    group["completions"] = [one | {"text": PADDING + one["text"]} for one in group["completions"]]
                rollouts.write(json.dumps(group) + "\n")


@contextmanager
def timed(what: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    print(f"{what:<55}{time.perf_counter() - began:6.2f} s", flush=True)


def look(page: Page, library: Library, server: PageServer, name: str) -> None:
    with timed("curves"):
        page.goto(server.url)
        page.locator("figure canvas").first.wait_for()
    with timed("first rows of the rollouts"):
        page.goto(f"{server.url}#rollouts?source={name}")
        page.locator("tbody a").first.wait_for()
    with timed("index"):
        while library.overview()[0]["indexed"] != 1.0:
            time.sleep(0.05)
    page.locator("main .note", has_text=f"{STEPS * GROUPS:,}").wait_for()
    with timed("scrolled to the last step"):
        page.locator(".scroll").evaluate("box => { box.scrollTop = box.scrollHeight; }")
        page.locator("tbody a", has_text=str(STEPS)).first.wait_for()
    for text in ("carefully", "\\boxed{-42}", "no such text"):
        with timed(f"search for {text!r}"):
            library.groups(name, Query(text=text))
    with timed("histograms"):
        library.histograms(name)


def main(source: Path, target: Path) -> None:
    if not RunFolder(target).rollouts_file.exists():
        write_large_run(RunFolder(source), RunFolder(target))
    print(f"{RunFolder(target).rollouts_file.stat().st_size / 1e6:.0f} MB of rollouts")
    with tempfile.TemporaryDirectory() as cache, sync_playwright() as driver:
        os.environ["XDG_CACHE_HOME"] = cache
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"))
        for when in ("empty cache", "index in the cache"):
            print(when)
            library = Library([target])
            server = PageServer(library)
            serving = threading.Thread(target=server.serve)
            serving.start()
            look(browser.new_page(), library, server, target.name)
            server.shutdown()
            serving.join()
        browser.close()
        print(f"{sum(file.stat().st_size for file in Path(cache).rglob('*.sqlite')) / 1e6:.0f} MB of index")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
