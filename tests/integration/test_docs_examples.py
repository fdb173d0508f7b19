"""docs/rewards.md: its code is that of docs/examples/, its commands run, and each example trains the tiny model."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rewards.check import main as check
from rewards.explain import main as explain
from rewards.loading import load
from rl.paths import project_root
from rl.runs.folder import RunFolder
from rl.runs.tracking import read_json_lines
from tests.reference.whole_run import metrics_of, train, trained_steps

EXAMPLES = project_root() / "docs" / "examples"
PAGE = (project_root() / "docs" / "rewards.md").read_text(encoding="utf-8")
OPEN = ("steps=2", "selection.low=null", "selection.high=null", "evaluation.path=null")


def completions_of(run_dir: Path) -> list[dict[str, object]]:
    lines = read_json_lines(RunFolder(run_dir).rollouts_file)
    return [completion for line in lines for completion in line["completions"]]  # type: ignore[union-attr, misc]


class Service(BaseHTTPRequestHandler):
    """Scores a completion by its length; answers 503 to the first `failures_left` calls."""

    asked: list[str] = []  # noqa: RUF012
    failures_left = 0

    def do_POST(self) -> None:
        given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        cls = type(self)
        cls.asked.append(given["completion"])
        if cls.failures_left > 0:
            cls.failures_left -= 1
            self.send_error(503)
            return
        body = json.dumps({"score": len(given["completion"]) % 7 / 7}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Service.asked, Service.failures_left = [], 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/score"
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_pages_code_is_the_examples() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    files = sorted(set(EXAMPLES.glob("*.py")) - {EXAMPLES / "grpo_one_page.py"})  # which is a page of its own
    assert len(blocks) == len(files) == 3
    assert {block.strip() for block in blocks} == {file.read_text(encoding="utf-8").strip() for file in files}


def test_the_page_names_every_built_in_reward_that_it_lists() -> None:
    uses = re.findall(r"^\| `(rewards\.\w+:\w+)`", PAGE, re.MULTILINE)
    assert len(uses) >= 6
    for use in uses:
        assert callable(load(use))


def test_the_function_in_a_file_trains_and_its_metric_is_logged(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    rewards = f"rewards=[{{use: {EXAMPLES}/show_work.py:show_work, weight: 2, arguments: {{bonus: 0.5}}}}]"
    assert train(run_dir, *OPEN, rewards) == 0
    assert trained_steps(run_dir) == [1, 2]
    assert {completion["reward"] for completion in completions_of(run_dir)} <= {0.0, 1.0}
    assert next(line for line in metrics_of(run_dir) if line["kind"] == "train")["reward/show_work/median_lines"] >= 1  # type: ignore[operator]


def test_the_async_call_trains_against_a_real_service_that_stumbles(tmp_path: Path, url: str) -> None:
    run_dir = tmp_path / "run"
    Service.failures_left = 2
    assert (
        train(run_dir, *OPEN, f'rewards=[{{use: {EXAMPLES}/ask_service.py:judged, arguments: {{url: "{url}"}}}}]') == 0)
    completions = completions_of(run_dir)
    assert len(completions) == 2 * 8 * 4 and len(Service.asked) == len(completions) + 2
    assert all(completion["reward"] == len(str(completion["text"])) % 7 / 7 for completion in completions)


def test_a_service_that_is_down_stops_the_run_and_scores_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    words = f'rewards=[{{use: {EXAMPLES}/ask_service.py:judged, arguments: {{url: "http://127.0.0.1:9/score"}}}}]'
    assert train(run_dir, *OPEN, words) == 2
    shown = capfd.readouterr().err
    assert "reward 'judged'" in shown and "Connection refused" in shown and "Traceback" not in shown
    assert not RunFolder(run_dir).rollouts_file.exists() or completions_of(run_dir) == []


def test_the_trl_function_trains_unchanged(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert train(run_dir, *OPEN, f"rewards=[{{use: {EXAMPLES}/trl_reward.py:ends_early, style: trl}}]") == 0
    for completion in completions_of(run_dir):
        if str(completion["text"]).strip():
            assert completion["reward"] == 1.0 - min(int(str(completion["num_tokens"])), 40) / 40


def test_the_examples_keep_the_contract(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check([f"{EXAMPLES}/show_work.py:show_work"]) == 0
    assert check([f"{EXAMPLES}/trl_reward.py:ends_early", "--style", "trl", "--arguments", '{"limit": 100}']) == 0
    assert (
        check([f"{EXAMPLES}/ask_service.py:judged", "--arguments", json.dumps({"url": url})]) == 0
    ), capsys.readouterr().out


def test_the_pages_explanation_is_what_the_command_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        explain(
            [
                "--reward", "rewards.accuracy:accuracy", "--question", "1/4 + 1/4?", "--answer", "1/2", "--completion",
                r"\boxed{0.5}", "--completion", "It is 0.6."])
        == 0)
    shown = capsys.readouterr().out
    assert "extracted  0.5   by rule: boxed" in shown and "extracted  nothing" in shown
