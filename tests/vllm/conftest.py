"""What tests against a real vLLM share: one pair of servers and a trained adapter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

from tests.reference.vllm_process import VllmProcess
from tests.reference.whole_run import GRPO, no_pixels, train

MAX_LORA_RANK = 8
WITH_SERVERS = {f"test_vllm_{what}.py" for what in ("judge", "outages", "reject", "server", "teacher")}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    """With `pytest -n 2` one process has all files that start servers, which is half of the work, and each other file
    is whole."""

    class ServersTogether(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = str(super()._split_scope(nodeid))
            return "servers" if Path(file).name in WITH_SERVERS else file

    return ServersTogether(config, log)


@pytest.fixture(scope="module", autouse=True)
def _no_pixels() -> Iterator[None]:
    with no_pixels():
        yield


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[VllmProcess]]:
    folder = tmp_path_factory.mktemp("vllm")
    (folder / "chat.jinja").write_text("{% for message in messages %}{{ message['content'] }}\n{% endfor %}")
    arguments = [
        "--max-model-len", "256", "--logprobs-mode", "processed_logprobs", "--enable-lora", "--max-lora-rank",
        str(MAX_LORA_RANK), "--api-key", "sesame", "--chat-template", str(folder / "chat.jinja")]
    variables = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    pair = [VllmProcess(folder / f"server{number}.log", arguments, variables) for number in range(2)]
    try:
        yield pair
    finally:
        for server in pair:
            server.kill()


@pytest.fixture
def pair(processes: list[VllmProcess], monkeypatch: pytest.MonkeyPatch) -> list[VllmProcess]:
    """Two servers on models/tiny-arith with its own weights. A test may kill them; the key is in SERVER_KEY."""
    monkeypatch.setenv("SERVER_KEY", "sesame")
    monkeypatch.setenv("WRONG_KEY", "open up")
    lost = [server for server in processes if not server.is_healthy()]
    for server in lost:
        server.kill()
        server.start()
    for server in lost:
        server.wait_until_healthy()
    for server in processes:
        server.restore_base()
    return processes


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("adapter") / "run"
    words = (*GRPO, f"lora.rank={MAX_LORA_RANK}", "optim.lr=5e-3", "steps=3", "evaluation.path=null")
    assert train(run, *words) == 0
    return run / "checkpoints" / "step-000003" / "adapter"
