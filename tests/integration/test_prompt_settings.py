"""Whole runs under a chat template that prints the date and ends turns with another token than the model's own: the
same prompts a week later, completions that end with the turn, and evaluations under the run's own prompt."""

from __future__ import annotations

import datetime
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from eval import answer
from eval import run as evaluation
from rl import train as training
from rl.errors import ConfigError
from rl.export import export
from rl.paths import project_root
from rl.questions import chat, run_prompt
from rl.runs.tracking import read_json_lines
from tests.reference.reject import reject
from tests.reference.warmup import warm_up
from tests.reference.whole_run import SMALL, in_process, train

# The brace of \boxed{9} is made the token that ends a turn; the model's own end is <eos> alone.
END = "}"
TEMPLATE = """\
{%- if not date_string is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif -%}
{{ date_string }}#
{%- for message in messages -%}
{{ message.content }}{% if message.role == "assistant" %}}{% endif %}
{%- endfor %}"""
TODAY = datetime.date.today()
PROMPT_OF_TODAY = f"{TODAY:%d %b %Y}#"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("dated") / "model"
    shutil.copytree(project_root() / "models" / "tiny-arith", folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken(END, special=True)])
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def run(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    assert train(folder, f"model={model}", "steps=1", "evaluation.path=null") == 0
    return folder


def a_week_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """For this project, and for templates that ask transformers."""
    later = TODAY + datetime.timedelta(days=7)

    class Day(datetime.date):
        @classmethod
        def today(cls) -> Day:
            return cls(later.year, later.month, later.day)

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Clock:
            return cls(later.year, later.month, later.day)

    monkeypatch.setattr(run_prompt, "datetime", SimpleNamespace(date=Day))
    monkeypatch.setattr(
        chat, "datetime", SimpleNamespace(date=Day, datetime=datetime.datetime, time=datetime.time))
    monkeypatch.setattr(chat_template_utils, "datetime", Clock)


def evaluate(out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return in_process(
        evaluation.main, "--benchmarks", "tiny_arith", "--limit", "4", "-k", "2", "--no-plots", "--out", str(out),
        *words)


def protocol(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "settings.json").read_text())["tasks"]["tiny_arith"]
    return found


def test_a_run_goes_on_a_week_later_under_the_same_prompts(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy, symlinks=True)
    a_week_later(monkeypatch)
    assert train(copy, "--resume", str(copy), "steps=2", "evaluation.path=null") == 0
    prompts = [record["prompt"] for record in read_json_lines(copy / "rollouts.jsonl")]
    assert all(str(prompt).startswith(PROMPT_OF_TODAY) for prompt in prompts)
    assert {record["step"] for record in read_json_lines(copy / "rollouts.jsonl")} == {1, 2}


def test_the_day_of_a_run_that_did_not_keep_it_can_be_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy, symlinks=True)
    stored = copy / "config.resolved.yaml"
    stored.write_text(re.sub(r"  chat_template_kwargs: .*\n  date: .*\n", "", stored.read_text()))
    a_week_later(monkeypatch)
    words = ("--resume", str(copy), "steps=2", "evaluation.path=null")
    assert train(copy, *words) == 2
    assert "prompt.date=YYYY-MM-DD for the day on which the run began" in capsys.readouterr().err
    assert train(copy, *words, f"prompt.date={TODAY}") == 0


def test_warm_ups_and_rejection_sampling_keep_their_day(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert warm_up(tmp_path / "warm", f"model={model}", "steps=1", "evaluation.path=null") == 0
    asked = (f"model={model}", "data.limit=8", "keep.reward_at_least=0")
    assert reject(tmp_path / "reject", *asked) == 0
    a_week_later(monkeypatch)
    assert reject(tmp_path / "reject", *asked, "--resume", str(tmp_path / "reject")) == 0
    for name in ("warm", "reject"):
        assert f"date: '{TODAY}'" in (tmp_path / name / "config.resolved.yaml").read_text()


def test_rejection_sampling_that_went_on_behind_a_turn_still_does_when_resumed(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Begun by a version that did not stop there; the chunk that is missing is sampled as the other was."""
    words = (f"model={model}", "data.limit=8", "sampling.questions_per_chunk=4", "keep.reward_at_least=0")
    folder, samples = tmp_path / "reject", tmp_path / "reject" / "samples"
    assert reject(folder, *words) == 0
    missing, identity = samples / "chunk-00001.jsonl", json.loads((samples / "identity.json").read_text())
    (end,) = identity.pop("sampling.stop_token_ids")

    def tokens_beyond_text() -> set[int]:
        found = [found for line in missing.read_text().splitlines() for found in json.loads(line)["completions"]]
        return {one["num_tokens"] - len(one["text"]) for one in found if not one["truncated"]}

    assert tokens_beyond_text() == {1}
    missing.unlink()
    (samples / "identity.json").write_text(json.dumps(identity))
    assert reject(folder, *words, "--resume", str(folder)) == 0
    assert f"let completions go on behind {END}, which ends a turn" in capsys.readouterr().err
    assert min(tokens_beyond_text()) > 1
    (samples / "identity.json").write_text(json.dumps(identity | {"sampling.stop_token_ids": [end + 1]}))
    assert reject(folder, *words, "--resume", str(folder)) == 2
    assert "sampling.stop_token_ids: the ids that end a turn of the chat template differ" in capsys.readouterr().err


def test_completions_end_where_the_template_ends_a_turn(run: Path, model: str, tmp_path: Path) -> None:
    """Behind the brace the model writes <eos>: a token more, where only its own end counts."""
    records: list[Any] = list(read_json_lines(run / "rollouts.jsonl"))
    completions = [completion for record in records for completion in record["completions"]]
    stopped = [completion for completion in completions if completion["finish_reason"] == "stop"]
    assert len(stopped) > 10
    assert all(completion["num_tokens"] == len(completion["text"]) + 1 for completion in stopped)
    assert evaluate(tmp_path, "--model", model, "--prompt", "question_line").returncode == 0
    lines = [line for line in read_json_lines(tmp_path / "completions.jsonl") if not line["truncated"]]
    assert lines and all(line["num_tokens"] == len(str(line["completion"])) + 1 for line in lines)
    assert len(protocol(tmp_path)["stop_token_ids"]) == 1


def test_the_dry_run_shows_what_ends_a_completion(model: str, tmp_path: Path) -> None:
    words = (*SMALL, f"model={model}", f"run_dir={tmp_path}", "sampling.stop_strings=[<pad>]", "--dry-run")
    shown = in_process(training.main, *words)
    assert shown.returncode == 0, shown.stderr
    assert re.search(
        r"a completion ends at +<eos> \(1\), } \(\d+, ends a turn of the chat template\), the text '<pad>'",
        shown.stdout)


def test_a_runs_adapter_is_evaluated_under_the_runs_own_prompt_a_week_later(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evaluate(tmp_path / "now", "--adapter", str(run)).returncode == 0
    a_week_later(monkeypatch)
    adapter = run / "checkpoints" / "step-000001" / "adapter"
    later = evaluate(tmp_path / "later", "--adapter", str(adapter))
    assert later.returncode == 0 and not later.stderr.startswith("note: ")
    assert protocol(tmp_path / "now") == protocol(tmp_path / "later")
    assert protocol(tmp_path / "now")["date"] == TODAY.isoformat()


def test_an_evaluation_of_a_base_goes_on_a_week_later(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evaluate(tmp_path, "--model", model).returncode == 0
    before = protocol(tmp_path)
    a_week_later(monkeypatch)
    assert evaluate(tmp_path, "--model", model).returncode == 0
    assert protocol(tmp_path) == before
    assert evaluate(tmp_path, "--model", model, "--restart").returncode == 0
    assert protocol(tmp_path)["date"] > before["date"]


@pytest.fixture(scope="module")
def boxed_run(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its settings are none of the defaults."""
    folder = tmp_path_factory.mktemp("boxed") / "run"
    assert train(
        folder, f"model={model}", "steps=1", "evaluation.path=null", "prompt.template=boxed", "prompt.date=2024-07-26",
        "prompt.chat_template_kwargs={date_string: My day}", "sampling.stop_strings=[<pad>]",
        "sampling.stop_token_ids=[5]") == 0
    return folder


def test_every_setting_of_the_runs_prompt_counts_and_another_protocol_is_told_first(
    boxed_run: Path, tmp_path: Path
) -> None:
    found = evaluate(tmp_path, "--adapter", str(boxed_run), "--max-tokens", "32")
    assert found.stderr.startswith(
        f"note: asked with the prompt of {boxed_run}, boxed, not the protocol's (tiny_arith: question_line); its base "
        "is compared under --prompt boxed --chat-template-kwargs '{\"date_string\": \"My day\"}' --date 2024-07-26 "
        "--stop-strings '[\"<pad>\"]' --stop-token-ids 5\n")
    under = protocol(tmp_path)
    assert (under["prompt"], under["chat_template_kwargs"]) == ("boxed", {"date_string": "My day"})
    assert under["stop_strings"] == ["<pad>"] and 5 in under["stop_token_ids"] and "date" not in under


@pytest.mark.parametrize("what", ["copied adapter", "exported"])
def test_weights_that_have_left_their_run_are_asked_as_it_asked_them(
    boxed_run: Path, model: str, tmp_path: Path, what: str
) -> None:
    """By `eval.run` and `eval.answer`, which tell it in their first line."""
    adapter, exported = tmp_path / "adapter", tmp_path / "exported"
    shutil.copytree(boxed_run / "checkpoints" / "step-000001" / "adapter", adapter)
    words: tuple[str, ...] = ("--adapter", str(adapter), "--model", model)
    if what == "exported":
        export(str(boxed_run), exported)
        words = ("--model", str(exported))
    found = evaluate(tmp_path / "out", *words, "--max-tokens", "32")
    assert found.stderr.startswith(f"note: asked with the prompt of {boxed_run}, boxed, not the protocol's")
    under = protocol(tmp_path / "out")
    assert (under["prompt"], under["chat_template_kwargs"]) == ("boxed", {"date_string": "My day"})
    assert under["stop_strings"] == ["<pad>"] and 5 in under["stop_token_ids"]
    asked = in_process(answer.main, *words, "-k", "2", "--max-tokens", "32", "--json", "1+1=?")
    assert asked.stderr.startswith(f"note: asked with the prompt of {boxed_run}, boxed")


def test_a_record_that_was_edited_is_told(tmp_path: Path) -> None:
    (tmp_path / "run_prompt.json").write_text('{"run": "runs/x", "prompt": ')
    with pytest.raises(ConfigError, match=r"run_prompt\.json is no record of a run's prompt"):
        run_prompt.prompt_of_weights(tmp_path)


def test_the_command_line_goes_before_the_runs_prompt_and_a_difference_is_told_first(
    boxed_run: Path, tmp_path: Path
) -> None:
    words = (
        "--adapter", str(boxed_run), "--prompt", "question_line", "--chat-template", "never", "--stop-strings", "[]")
    found = evaluate(tmp_path, *words)
    assert found.stderr.startswith(
        f"note: another prompt than {boxed_run} was trained with: --prompt question_line (in training boxed), "
        "--chat-template never (in training auto), --stop-strings none (in training ['<pad>'])\n")
    under = protocol(tmp_path)
    assert (under["prompt"], under["chat_template"], under["stop_strings"]) == ("question_line", False, [])
    asked = in_process(answer.main, *words, "-k", "2", "--json", "1+1=?")
    assert asked.stderr == found.stderr.splitlines()[0] + "\n" and json.loads(asked.stdout)["question"] == "1+1=?"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--chat-template-kwargs", "{thinking: 1}"),
            "--chat-template-kwargs: the tokenizer's chat template has no thinking",
        ),
        (("--chat-template-kwargs", "thinking"), "saw 'thinking'; expected a mapping"),
        (("--date", "today"), "saw 'today'; expected a day, such as 2026-11-28"),
        (("--stop-token-ids", "700"), "--stop-token-ids: saw 700; expected ids below"),
    ],
)
def test_what_is_wrong_names_the_option(model: str, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    found = evaluate(tmp_path, "--model", model, *words)
    assert found.returncode == 2 and said in found.stderr
