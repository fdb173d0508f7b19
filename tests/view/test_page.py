"""The page in a real browser. No test may leave an error on the console or ask anybody but the page's own server."""

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from playwright.sync_api import Browser, Page, expect

from tests.reference.browser import browser, file_address, watched_page
from tests.reference.viewed import HOSTILE, lines_of, write_evaluation
from tests.view.screenshots import NAMES, take
from view import main
from view.library import Library
from view.server import PageServer

pytestmark = pytest.mark.slow

SHOWN_HOSTILE = HOSTILE.partition(" \ud83d")[0]  # before a lone surrogate, which the driver cannot send


@pytest.fixture(scope="module")
def started() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def folders(
    tmp_path_factory: pytest.TempPathFactory, started: Browser, request: pytest.FixtureRequest
) -> tuple[Path, ...]:
    # Asked for here, where a browser is known to be there: without one nothing is trained.
    return *request.getfixturevalue("two_runs"), write_evaluation(tmp_path_factory.mktemp("viewed") / "evaluation", 250)


@pytest.fixture(scope="module")
def server(folders: tuple[Path, ...]) -> Iterator[PageServer]:
    server = PageServer(Library(folders, cached=False))
    thread = threading.Thread(target=server.serve)
    thread.start()
    yield server
    server.shutdown()
    thread.join()


@pytest.fixture
def page(started: Browser, server: PageServer) -> Iterator[Page]:
    with watched_page(started, server.url) as found:
        yield found


def go(page: Page, view: str, **parameters: object) -> None:
    query = "&".join(f"{key}={value}" for key, value in parameters.items())
    page.goto(re.sub("#.*", "", page.url) + f"#{view}?{query}")


def test_two_runs_are_drawn_over_each_other_hovered_zoomed_smoothed_and_explained(
    page: Page, folders: tuple[Path, ...]
) -> None:
    figure = page.locator("figure").filter(has=page.get_by_text("reward", exact=True))
    rewards = [[line["reward"] for line in lines_of(folder / "metrics.jsonl") if line["kind"] == "train"]
               for folder in folders[:2]]
    for name, values in zip(("grpo", "empo"), rewards, strict=True):
        expect(figure.locator(".readout")).to_contain_text(f"{name} {float(f'{values[-1]:.3g}'):g} at step 3")
    over = figure.locator(".u-over")
    over.hover(position={"x": 130, "y": 60})
    expect(figure.locator(".readout")).to_contain_text("at step 1")
    box = over.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.99, box["y"] + 50, steps=4)
    page.mouse.up()
    expect(page.get_by_label("From step")).to_have_value("2")
    over.dblclick()
    expect(page.get_by_label("From step")).to_have_value("0")
    page.get_by_label("log scale").check()
    page.get_by_label("Smoothing: steps on either side").fill("1")
    expect(page.locator("output")).to_have_text("± 1")
    figure.locator("summary").press("Enter")
    expect(figure).to_contain_text("Mean weighted reward over all completions")
    page.get_by_label("Find a metric").fill("effective_sample")
    expect(page.locator("figcaption")).to_have_text(re.compile("mismatch/effective_sample_share"))
    page.get_by_label("draw the curves of empo").uncheck()
    expect(page.locator("main th", has_text="empo")).to_have_count(0)


def test_the_table_of_steps_has_the_files_numbers_and_sorts_them(page: Page, folders: tuple[Path, ...]) -> None:
    go(page, "steps", source="grpo")
    rows = page.locator("tbody tr:not(.space)")
    expect(rows).to_have_count(4)
    page.get_by_role("button", name="reward").click()
    rewards = sorted(line["reward"] for line in lines_of(folders[0] / "metrics.jsonl") if line["kind"] == "train")
    expect(rows.nth(1)).to_contain_text(f"{float(f'{rewards[0]:.3g}'):g}")
    page.get_by_label("all metrics").check()
    expect(page.locator("thead")).to_contain_text("mismatch/effective_sample_share")


def test_rollouts_are_filtered_searched_and_opened_by_keyboard(page: Page, folders: tuple[Path, ...]) -> None:
    lines = lines_of(folders[0] / "rollouts.jsonl")
    go(page, "rollouts", source="grpo")
    expect(page.locator("main .note")).to_contain_text(f"{len(lines)} groups.")
    page.get_by_label("From step").fill("2")
    page.get_by_label("From step").press("Enter")
    expect(page.locator("main .note")).to_contain_text(f"{sum(line['step'] >= 2 for line in lines)} groups.")
    page.get_by_label("Refused").select_option("equal_rewards")
    refused = sum(line["step"] >= 2 and line["refused"] == "equal_rewards" for line in lines)
    expect(page.locator("main .note")).to_contain_text(f"{refused} groups.")
    page.get_by_role("button", name="clear").click()
    page.get_by_label("Text in question or completion").fill("ONERROR=")
    page.get_by_label("Text in question or completion").press("Enter")
    expect(page.locator("main .note")).to_contain_text("1 groups.")
    page.locator("tbody a").press("Enter")
    expect(page.locator("main h2")).to_be_focused()
    expect(page.locator("main h2")).to_contain_text("Step 1, question ")


def test_a_hostile_completion_stays_text_with_its_answer_marked_and_its_cluster_lettered(
    page: Page, folders: tuple[Path, ...]
) -> None:
    line = lines_of(folders[0] / "rollouts.jsonl")[0]
    go(page, "rollouts", source="grpo")
    page.locator("tbody a").first.click()
    cards = page.locator(".card")
    expect(cards).to_have_count(4)
    expect(cards.first.locator("pre")).to_contain_text(SHOWN_HOSTILE)
    expect(page.locator("main section pre").first).to_have_text(line["question"])
    assert page.locator("main img, main script, main b[onclick]").count() == 0
    sizes = [one["cluster"] for one in line["completions"] if one["answer"] is not None]
    largest = max(sizes, key=sizes.count)
    for number, one in enumerate(line["completions"]):
        has_letter_a = cards.nth(number).locator(".badge").inner_text() == "A"
        assert has_letter_a == (sizes.count(one["cluster"]) == sizes.count(largest) and has_letter_a)
        expect(cards.nth(number).locator("dl")).to_contain_text(f"tokens{one['num_tokens']}")
        if number and one["answer"] is not None:
            expect(cards.nth(number).locator("mark")).to_have_text(one["answer"])
    assert len({cards.nth(n).locator(".badge").inner_text() for n in range(4)}) == len({
        one["cluster"] for one in line["completions"]})
    page.get_by_label("Order").select_option("reward")
    best = max(range(4), key=lambda number: line["completions"][number]["reward"])
    expect(cards.first).to_have_attribute("aria-label", f"Completion {best + 1}")
    page.get_by_label("shade tokens").check()
    tokens = line["completions"][1]["tokens"]
    spans = page.get_by_label("Completion 2").locator("pre span")
    expect(spans).to_have_count(len(tokens))
    for number, (_, value) in enumerate(tokens):
        expect(spans.nth(number)).to_have_class(f"p{min(5, int(-value))}")
    page.get_by_role("link", name="this question at all steps").click()
    expect(page.locator("main h2")).to_contain_text(f"Question {line['question_id']} at ")
    expect(page.locator("tbody tr").first).to_contain_text("/4")


def test_an_evaluation_scrolls_to_its_last_question_and_shows_its_result(page: Page) -> None:
    go(page, "results", source="evaluation")
    expect(page.locator("tbody")).to_contain_text("0.333 [0.2, 0.5]")
    go(page, "rollouts", source="evaluation")
    expect(page.locator("tbody")).to_contain_text("3+4+0-0=?")
    assert page.locator("tbody tr").count() < 80
    page.locator(".scroll").evaluate("box => { box.scrollTop = box.scrollHeight; }")
    expect(page.locator("tbody")).to_contain_text("3+4+249-249=?")


def test_the_other_views_show_what_the_files_say(page: Page, folders: tuple[Path, ...]) -> None:
    go(page, "configuration", source="grpo", other="empo", differing="true")
    expect(page.locator("tbody th", has_text="optim.lr")).to_be_visible()
    keys = page.locator("tbody th").all_inner_texts()
    assert "optim.lr" in keys and "rewards" in keys and "steps" not in keys
    go(page, "histograms", source="grpo")
    expect(page.locator("svg.histogram")).to_have_count(3)
    page.locator("summary").first.click()
    counts = page.locator("section").first.locator("tbody td.number").all_inner_texts()
    lines = lines_of(folders[0] / "rollouts.jsonl")
    assert sum(map(int, counts)) == sum(len(line["completions"]) for line in lines)
    go(page, "disagreements", source="grpo")
    expect(page.locator("main .note")).to_contain_text(re.compile(r"^\d+ groups"))
    go(page, "results", source="grpo")
    expect(page.locator("main")).to_contain_text("stop_reason")
    go(page, "glossary")
    page.get_by_label("Find").fill("staleness/p95")
    expect(page.locator("tbody tr")).to_have_count(1)


def test_a_run_that_trains_is_followed(page: Page, folders: tuple[Path, ...]) -> None:
    file = folders[1] / "metrics.jsonl"
    before = file.read_bytes()
    last = [line for line in lines_of(file) if line["kind"] == "train"][-1]
    expect(page.locator("main tr", has_text="empo").locator("td").nth(2)).to_have_text("3")
    file.write_bytes(before + json.dumps(last | {"step": 4}).encode() + b"\n")
    expect(page.locator("main tr", has_text="empo").locator("td").nth(2)).to_have_text("4")
    file.write_bytes(before)


def test_the_theme_is_the_systems_or_the_one_that_is_chosen(page: Page) -> None:
    def background() -> str:
        found = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert isinstance(found, str)
        return found

    assert background() == "rgb(255, 255, 255)"
    page.emulate_media(color_scheme="dark")
    assert background() == "rgb(22, 24, 29)"
    page.get_by_role("button", name="Colours").click()
    expect(page.get_by_role("button", name="Colours")).to_have_text("Colours: light")
    assert background() == "rgb(255, 255, 255)"


def test_the_page_can_be_heard_and_walked_through(page: Page) -> None:
    for role in ("banner", "navigation", "complementary", "main"):
        expect(page.get_by_role(role)).to_have_count(1)
    expect(page.locator("nav [aria-current=page]")).to_have_text("Curves")
    assert "reward. grpo: " in (page.locator("figure [role=img]").first.get_attribute("aria-label") or "")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, select, button')].filter(one => "
        "!one.labels?.length && !one.textContent.trim() && !one.getAttribute('aria-label')).length")
    assert unnamed == 0


def test_an_exported_file_shows_the_same_without_a_server(
    started: Browser, folders: tuple[Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "run.html"
    assert main([*map(str, folders), "--export", str(out), "--groups", "20"]) == 0
    with watched_page(started, file_address(out)) as page:
        expect(page.locator("figure").first).to_contain_text("grpo")
        go(page, "rollouts", source="grpo")
        expect(page.locator("main .note")).to_contain_text("This file holds 20 of 24 groups")
        page.locator("tbody a").first.click()
        expect(page.locator(".card").first.locator("pre")).to_contain_text(SHOWN_HOSTILE)
        page.get_by_role("link", name="next group").click()
        expect(page.locator("main h2")).to_contain_text("Step 1")
        go(page, "rollouts", source="grpo", text="ONERROR")
        expect(page.locator("main .note")).to_contain_text("1 groups.")
        go(page, "rollouts", source="grpo", refused="no", right="some", reward_min=0.2, sort="reward")
        expect(page.locator("main .note")).to_contain_text(re.compile(r"^\d+ groups"))
        for view in ("steps", "histograms", "configuration", "results", "disagreements"):
            go(page, view, source="grpo")
            expect(page.locator("main h2")).to_contain_text("grpo")


def test_the_documents_pictures_are_taken(started: Browser, server: PageServer, tmp_path: Path) -> None:
    with watched_page(started, server.url) as page:
        taken = take(page, server.url, tmp_path)
    assert [path.stem for path in taken] == list(NAMES)
    assert all(10_000 < path.stat().st_size < 150_000 for path in taken)
