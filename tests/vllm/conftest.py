"""What tests against a real vLLM share: one pair of servers, because a start takes half a minute, and a trained
adapter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reference.vllm_process import VllmProcess
from tests.reference.whole_run import GRPO, train

MAX_LORA_RANK = 8


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `pytest -n 2 --dist loadgroup` one process has all tests of the servers, and each other file is whole."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            group = "servers" if "pair" in getattr(item, "fixturenames", ()) else item.path.name
            item.add_marker(pytest.mark.xdist_group(group))


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
