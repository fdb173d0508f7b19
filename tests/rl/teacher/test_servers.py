"""A teacher on several servers, against scripted ones. Against a real server: tests/vllm/test_vllm_teacher.py."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rl.config import TeacherSection
from rl.errors import GeneratorError
from rl.generate.servers import replicas
from rl.generate.servers import start as server_start
from rl.teacher.advantages import with_teacher
from rl.teacher.servers import ServerTeacher
from tests.reference.scripted_vllm import LOGPROB, ScriptedVllm
from tests.reference.tiny_run import inputs, sampled_groups, tiny_policy, with_advantages


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "FIRST_WAIT_S", 0.02)
    monkeypatch.setattr(replicas, "LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr(server_start, "START_WAIT_S", 0.1)


@contextmanager
def teacher_on(*servers: ScriptedVllm, **settings: object) -> Iterator[ServerTeacher]:
    section = TeacherSection.model_validate(
        {
            "path": "models/tiny-arith", "backend": "vllm_server", "urls": [server.url for server in servers],
            "start_timeout_s": 20, **settings})
    teacher = ServerTeacher(section, inputs().tokenizer, [], 100)
    try:
        yield teacher
    finally:
        teacher.close()


def test_servers_of_different_models_are_refused_by_the_first_ones_name() -> None:
    with (ScriptedVllm(models={"big": 256}) as first, ScriptedVllm(models={"other": 256, "third": 256}) as second,
          pytest.raises(GeneratorError) as error, teacher_on(first, second)):
        pass
    assert str(error.value).startswith(
        f"teacher.urls: {second.url} serves other, third, but the teacher is big, which {first.url} listed first at the"
        " start")
    assert "Remedy: that model under that name (--served-model-name) on every server" in str(error.value)


def test_the_first_servers_first_model_scores_on_every_server() -> None:
    """Also where the first answers last, and another lists another model first."""
    with (
        ScriptedVllm(models={"big": 256, "other": 256}) as first,
        ScriptedVllm(models={"other": 256, "big": 256}) as second,
    ):
        first.delay_s = 0.2
        with teacher_on(first, second) as teacher:
            assert teacher.description == "2 vLLM servers, big"
            assert teacher.logprobs([((1, 2), (3 + i, 4)) for i in range(8)]) == [(LOGPROB, LOGPROB)] * 8
        assert first.bodies and second.bodies
        assert {body["model"] for server in (first, second) for body in server.bodies if "model" in body} == {"big"}


def test_the_stand_in_for_minus_infinity_stops_the_run() -> None:
    policy = tiny_policy()
    with ScriptedVllm() as server, teacher_on(server) as teacher:
        server.weights = "-09990"  # what it adds to LOGPROB
        assert teacher.logprobs([((1, 2), (3,))]) == [(-math.inf,)]
        with pytest.raises(
            FloatingPointError, match=r"\(1 vLLM server, tiny\) gives a token the log-probability -inf; expected finite"
        ):
            with_teacher(teacher, with_advantages(sampled_groups(policy, 1)), [True], rank=0, num_ranks=1)


async def lose_second(teacher: ServerTeacher) -> None:
    assert teacher._pool is not None
    teacher._pool.lose(teacher._pool.replicas[1], "gone")


def test_a_server_that_comes_back_with_another_model_is_not_taken_back() -> None:
    with (
        ScriptedVllm(models={"big": 256}) as first, ScriptedVllm(models={"big": 256}) as second,
        teacher_on(first, second) as teacher,
    ):
        told: list[str] = []
        teacher.on_message = told.append
        second.models = {"other": 256}
        teacher._loop.run(lose_second(teacher))
        deadline = time.monotonic() + 20
        while not any("is not taken back" in text for text in told):
            assert time.monotonic() < deadline, told
            assert teacher.logprobs([((1, 2), (3 + i, 4)) for i in range(8)]) == [(LOGPROB, LOGPROB)] * 8
        [text] = [text for text in told if "is not taken back" in text]
        assert f"{second.url} serves other, but the teacher is big" in text
