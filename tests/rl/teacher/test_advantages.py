"""On-policy distillation: what a teacher adds to each token's advantage, and its way through selection, batching and
the update."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from rewards.errors import named
from rl.collect import Collected
from rl.config import RunConfig, TeacherModelSection
from rl.configuration.loading import load, to_yaml
from rl.errors import ConfigError, GeneratorError
from rl.memory.estimate import check_memory, estimate_memory
from rl.paths import resolve_path
from rl.policy.forward import PolicyForward
from rl.policy.policy import Policy, PolicyError
from rl.records import Group, PromptCompletion, ScoredGroup, TrainingGroup
from rl.selection import select
from rl.teacher.advantages import distilled_advantages, with_teacher
from rl.teacher.teacher import LocalTeacher, check_teacher, in_words_of, load_teacher, vocabulary_difference
from rl.training_groups import make_training_groups
from rl.update import Updater
from tests.reference.tiny_run import (
    inputs,
    literal_logprobs,
    make_updater,
    sampled_groups,
    tiny_config,
    tiny_policy,
    trained,
    with_advantages,
)

torch.set_num_threads(1)
SCALE = 0.05
PURE = ("teacher=models/tiny-arith", "rewards=[]")
NAN = math.nan


def distilling(*overrides: str) -> RunConfig:
    """`tiny_config` without its reward: the teacher is all there is to learn from."""
    words = [word for word in to_words(tiny_config()) if not word.startswith("rewards")]
    return load(None, [*words, *PURE, *overrides])


def to_words(config: RunConfig) -> list[str]:
    return [
        f"data.path={config.data.path}", "data.limit=24", "model.dtype=float32", "lora.rank=4",
        "sampling.questions_per_step=4", "sampling.group_size=4", "sampling.max_completion_tokens=24", "steps=4"]


def teacher_of(policy: Policy) -> LocalTeacher:
    return LocalTeacher(policy, PolicyForward(policy, temperature=1.0), max_tokens=200, description="a test's")


@pytest.fixture(scope="module")
def student() -> Policy:
    return tiny_policy(adapter_scale=SCALE)


@pytest.fixture(scope="module")
def groups(student: Policy) -> list[Group]:
    return sampled_groups(student, 4)


@pytest.fixture(scope="module")
def teacher() -> LocalTeacher:
    """The base, from which the student's adapter differs."""
    return teacher_of(tiny_policy())


def taught(groups: Sequence[Group], teacher: LocalTeacher, *, rewards: bool = False) -> list[TrainingGroup]:
    batch = with_advantages(groups, zero=() if rewards else range(len(groups)))
    return with_teacher(teacher, batch, [True] * len(batch), rank=0, num_ranks=1)


def one_gradient(
    config: RunConfig, batch: Sequence[TrainingGroup], *, version: int = 0
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    policy = tiny_policy(config, adapter_scale=SCALE)
    updater = make_updater(config, policy)
    seen: list[dict[str, torch.Tensor]] = []
    updater._optimizer.optimizer.register_step_pre_hook(  # type: ignore[attr-defined]
        lambda *_: seen.append(
            {name: p.grad.clone() for name, p in policy.trainable_parameters().items() if p.grad is not None}))
    report = updater.update(batch, step=0, policy_version=version)
    assert report.num_updates == 1
    return seen[0], report.metrics


def test_the_advantage_of_a_token_is_the_completions_and_the_weighted_difference_by_hand() -> None:
    found = distilled_advantages(
        torch.tensor([1.0, 1.0, -0.5, 0.0]),
        torch.tensor([-1.0, -2.0, -0.5, -3.0]),
        torch.tensor([-1.5, -0.5, -0.5, NAN]),
        weight=2.0)
    assert found.tolist() == [1.0 - 1.0, 1.0 + 3.0, -0.5, 0.0]


def test_the_cap_bounds_what_the_teacher_adds_and_not_the_rewards_advantage() -> None:
    found = distilled_advantages(
        torch.tensor([5.0, 5.0, 0.0]),
        torch.tensor([-1.0, -9.0, -1.0]),
        torch.tensor([-9.0, -1.0, -1.25]),
        weight=0.5,
        cap=1.5)
    assert found.tolist() == [3.5, 6.5, -0.125]


def test_no_gradient_flows_through_the_advantage() -> None:
    logprobs = torch.tensor([-1.0], requires_grad=True)
    assert not distilled_advantages(torch.zeros(1), logprobs, torch.tensor([-2.0]), weight=1.0).requires_grad


@pytest.mark.slow
def test_a_local_teacher_scores_at_temperature_1_as_a_literal_forward(
    groups: list[Group], teacher: LocalTeacher
) -> None:
    base = tiny_policy()
    for item in taught(groups, teacher):
        assert item.teacher_logprobs is not None
        for rollout, found in zip(item.group.rollouts, item.teacher_logprobs, strict=True):
            expected = literal_logprobs(base, item.group.prompt.token_ids, rollout.token_ids)
            torch.testing.assert_close(torch.tensor(found), expected, atol=2e-5, rtol=1e-4)


def test_a_teachers_adapter_is_merged_into_it(tmp_path: Path, groups: list[Group], student: Policy) -> None:
    student.model.save_pretrained(str(tmp_path / "adapter"))
    section = TeacherModelSection(path="models/tiny-arith", adapter=str(tmp_path / "adapter"), dtype="float32")
    policy = load_teacher(section, "teacher", inputs().tokenizer, torch.device("cpu"))
    assert not policy.trainable_parameters()
    prompt, rollout = groups[0].prompt.token_ids, groups[0].rollouts[0].token_ids
    torch.testing.assert_close(
        literal_logprobs(policy, prompt, rollout), literal_logprobs(student, prompt, rollout), atol=2e-5, rtol=1e-4)


def test_the_teacher_is_asked_once_for_equal_completions_and_not_about_groups_that_do_not_train(
    groups: list[Group],
) -> None:
    asked: list[PromptCompletion] = []

    class Counting(LocalTeacher):
        def logprobs(self, rows: Sequence[PromptCompletion]) -> list[tuple[float, ...]]:
            asked.extend(rows)
            return super().logprobs(rows)

    policy = tiny_policy()
    counting = Counting(policy, PolicyForward(policy, temperature=1.0), max_tokens=200, description="counts")
    twice = dataclasses.replace(
        groups[0], rollouts=(groups[0].rollouts[0], groups[0].rollouts[0], groups[0].rollouts[1]))
    batch = with_advantages([twice, groups[1]])
    found = with_teacher(counting, batch, [True, False], rank=0, num_ranks=1)
    assert asked == [(twice.prompt.token_ids, rollout.token_ids) for rollout in twice.rollouts[1:]]
    assert found[0].teacher_logprobs is not None and found[0].teacher_logprobs[0] == found[0].teacher_logprobs[1]
    assert found[1] == batch[1] and found[1].teacher_logprobs is None


def test_a_teacher_that_computes_no_numbers_stops_the_run(groups: list[Group]) -> None:
    broken = tiny_policy()
    with torch.no_grad():
        next(broken.model.parameters()).fill_(math.nan)
    with pytest.raises(
        FloatingPointError, match=r"log-probability nan; expected finite numbers. Remedy: teacher.dtype=float32"
    ):
        taught(groups, teacher_of(broken))


def test_an_id_beyond_the_teachers_outputs_is_refused_with_a_remedy(teacher: LocalTeacher) -> None:
    """A student whose outputs are padded to more rows than the teacher's can sample one of them."""
    num_outputs = AutoConfig.from_pretrained(resolve_path("models/tiny-arith")).vocab_size
    [(found,)] = teacher.logprobs([((1, 2), (num_outputs - 1,))])
    assert math.isfinite(found)
    with pytest.raises(
        GeneratorError, match=rf"sampled the id {num_outputs}, .*a test's\) has {num_outputs} outputs: .*Remedy"
    ):
        teacher.logprobs([((1, 2), (3,)), ((1, 2), (num_outputs, 5))])


def test_groups_with_equal_rewards_train_under_a_teacher_and_only_there(groups: list[Group]) -> None:
    scored = [ScoredGroup(group, (0.0,) * 4, {}, (None,) * 4, (0, 1, 2, 3), 0.0, {}) for group in groups]
    unjudged = dataclasses.replace(scored[0], skipped=True)
    assert [reason for _, reason in select(scored, None, None).refused] == ["equal_rewards"] * 4
    kept = select([*scored, unjudged], None, None, keep_equal=True)
    assert kept.kept == tuple(scored) and [reason for _, reason in kept.refused] == ["skipped"]


def test_equal_rewards_give_every_token_the_teachers_advantage_and_an_update(
    groups: list[Group], teacher: LocalTeacher
) -> None:
    scored = tuple(ScoredGroup(group, (1.0,) * 4, {}, (None,) * 4, (0, 1, 2, 3), 0.0, {}) for group in groups)
    batch = make_training_groups(
        distilling(), Collected(scored, select(scored, None, None, keep_equal=True), scored, 0), teacher)
    assert all(item.advantages == (0.0,) * 4 and item.teacher_logprobs is not None for item in batch)
    policy = tiny_policy(distilling(), adapter_scale=SCALE)
    before = trained(policy)
    assert make_updater(distilling(), policy).update(batch, step=0, policy_version=0).num_updates == 1
    assert any(not torch.equal(weights, before[name]) for name, weights in trained(policy).items())


def advantages_through_batching(
    updater: Updater, policy: Policy, batch: Sequence[TrainingGroup]
) -> dict[tuple[int, int], torch.Tensor]:
    """What the loss of each completion is given."""
    found: dict[tuple[int, int], torch.Tensor] = {}
    for micro_batch in updater.micro_batches_of(batch):
        present_T = updater._logprobs(micro_batch, updater._forward).logprobs_N.detach()
        parts = updater._advantages(micro_batch, present_T).split(list(micro_batch.sequence_lengths))
        found |= {(s.group, s.rollout): part for s, part in zip(micro_batch.sequences, parts, strict=True)}
    return found


@pytest.mark.parametrize("micro_batch_tokens", [40, 150, 4096])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_per_token_advantages_through_batching_equal_a_literal_loop(
    groups: list[Group], teacher: LocalTeacher, micro_batch_tokens: int, temperature: float
) -> None:
    """The student's log-probabilities are those at the sampling temperature, the teacher's at 1."""
    config = distilling(
        f"optim.micro_batch_tokens={micro_batch_tokens}",
        f"sampling.temperature={temperature}",
        "teacher.weight=0.6",
        "teacher.cap=0.5")
    policy, base = tiny_policy(config, adapter_scale=SCALE), tiny_policy()
    repeated = dataclasses.replace(groups[0], rollouts=(*groups[0].rollouts[:3], groups[0].rollouts[0]))
    batch = taught([repeated, *groups[1:]], teacher, rewards=True)
    found = advantages_through_batching(make_updater(config, policy), policy, batch)
    assert len(found) == 16
    num_capped = 0
    for (g, r), advantages in found.items():
        prompt, completion = batch[g].group.prompt.token_ids, batch[g].group.rollouts[r].token_ids
        ours = literal_logprobs(policy, prompt, completion, temperature).tolist()
        theirs = literal_logprobs(base, prompt, completion).tolist()
        for t, advantage in enumerate(advantages.tolist()):
            added = max(-0.5, min(0.5, 0.6 * (theirs[t] - ours[t])))
            num_capped += abs(added) == 0.5
            assert advantage == pytest.approx(batch[g].advantages[r] + added, abs=5e-5)
    assert num_capped > 0


@pytest.mark.parametrize(
    "overrides", [(), ("loss=cispo",), ("optim.micro_batch_tokens=60",), ("loss.aggregation=sequence",)]
)
def test_the_gradient_is_that_of_a_literal_loop_over_tokens(
    groups: list[Group], teacher: LocalTeacher, overrides: tuple[str, ...]
) -> None:
    config = distilling("optim.max_grad_norm=1e9", *overrides)
    batch = taught(groups, teacher, rewards=True)
    found, metrics = one_gradient(config, batch)
    policy = tiny_policy(config, adapter_scale=SCALE)
    num_tokens = sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts)
    differences: list[float] = []
    for item in batch:
        assert item.teacher_logprobs is not None
        for rollout, advantage, theirs in zip(item.group.rollouts, item.advantages, item.teacher_logprobs, strict=True):
            prompt = item.group.prompt.token_ids
            logits = policy.causal_lm(input_ids=torch.tensor([[*prompt, *rollout.token_ids]]), use_cache=False).logits[
                0]
            logprobs = torch.log_softmax(logits, dim=-1)[len(prompt) - 1 : -1]
            ours = logprobs.gather(1, torch.tensor(rollout.token_ids)[:, None]).squeeze(1)
            token_weight = (
                1 / (len(rollout.token_ids) * 16) if "loss.aggregation=sequence" in overrides else 1 / num_tokens)
            per_token = advantage + torch.tensor(theirs) - ours.detach()
            differences += (ours.detach() - torch.tensor(theirs)).tolist()
            (-token_weight * (per_token * ours).sum()).backward()
    expected = {name: p.grad for name, p in policy.trainable_parameters().items() if p.grad is not None}
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-4 * weight.abs().max().item())
    assert metrics["distillation/reverse_kl"] == pytest.approx(sum(differences) / num_tokens, rel=1e-4)
    assert "distillation/capped_share" not in metrics


def test_a_teacher_that_equals_the_student_gives_exactly_no_gradient(groups: list[Group]) -> None:
    config = distilling()
    policy = tiny_policy(config, adapter_scale=SCALE)
    updater = make_updater(config, policy)
    plain = with_advantages(groups, zero=range(4))
    # The student's own numbers, of the very micro-batches that train: a teacher that computed them in other rows would
    # differ by rounding.
    own: dict[tuple[int, int], tuple[float, ...]] = {}
    everything = [
        dataclasses.replace(item, teacher_logprobs=tuple((0.0,) * len(r.token_ids) for r in item.group.rollouts))
        for item in plain]
    for micro_batch in updater.micro_batches_of(everything):
        parts = updater._logprobs(micro_batch, updater._forward).logprobs_N.split(
            list(micro_batch.sequence_lengths))
        own |= {
            (s.group, s.rollout): tuple(part.tolist()) for s, part in zip(micro_batch.sequences, parts, strict=True)}
    batch = [
        dataclasses.replace(item, teacher_logprobs=tuple(own[g, r] for r in range(4))) for g, item in enumerate(plain)]
    gradient, metrics = one_gradient(config, batch)
    assert gradient and all(not weights.any() for weights in gradient.values())
    assert metrics["distillation/reverse_kl"] == 0.0


def test_several_updates_of_a_batch_keep_the_advantages_of_its_start(
    groups: list[Group], teacher: LocalTeacher
) -> None:
    """With two passes the second update's advantages must not follow the first one's policy: a literal second step
    tells."""
    config = distilling("optim.epochs=2", "optim.lr=1e-2", "optim.max_grad_norm=1e9")
    batch = taught(groups, teacher)
    policy = tiny_policy(config, adapter_scale=SCALE)
    updater = make_updater(config, policy)
    given: list[torch.Tensor] = []
    original = updater._advantages

    def noting(batch: object, present_T: torch.Tensor) -> torch.Tensor:
        given.append(original(batch, present_T))  # type: ignore[arg-type]
        return given[-1]

    updater._advantages = noting  # type: ignore[method-assign]
    assert updater.update(batch, step=0, policy_version=0).num_updates == 2
    first, second = given[: len(given) // 2], given[len(given) // 2 :]
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_tokens_of_an_older_version_are_compared_with_the_present_policy(
    groups: list[Group], teacher: LocalTeacher
) -> None:
    """The sampler's numbers are the older version's; a shift of them changes the ratio, not what the teacher is
    compared with."""
    shifted = [
        dataclasses.replace(
            group,
            rollouts=tuple(
                dataclasses.replace(rollout, logprobs=tuple(value - 0.1 for value in rollout.logprobs))
                for rollout in group.rollouts))
        for group in groups]
    config = distilling("loss.clip_high=10", "loss.clip_low=1")
    _, fresh = one_gradient(config, taught(groups, teacher), version=1)
    _, stale = one_gradient(config, taught(shifted, teacher), version=1)
    assert stale["loss/ratio"] == pytest.approx(fresh["loss/ratio"] * math.exp(0.1), rel=1e-4)
    assert stale["distillation/reverse_kl"] == pytest.approx(fresh["distillation/reverse_kl"], rel=1e-6)


def test_the_share_of_capped_tokens_is_reported(groups: list[Group], teacher: LocalTeacher) -> None:
    _, free = one_gradient(distilling("teacher.cap=1e9"), taught(groups, teacher))
    _, bound = one_gradient(distilling("teacher.cap=1e-9"), taught(groups, teacher))
    assert free["distillation/capped_share"] == 0.0 and bound["distillation/capped_share"] > 0.8


def test_refused_groups_that_stay_in_the_denominator_are_not_asked_about_and_get_no_advantage(
    groups: list[Group], teacher: LocalTeacher
) -> None:
    scored = tuple(
        ScoredGroup(group, (0.0,) * 4, {}, (None,) * 4, (0, 1, 2, 3), 0.0, {}, skipped=i == 1)
        for i, group in enumerate(groups))
    # the penalty needs a forward of the refused group too
    config = distilling("selection.mode=zero", "loss.kl_weight=0.1")
    selection = select(scored, None, None, keep_equal=True)
    batch = make_training_groups(config, Collected(scored, selection, selection.kept, 0), teacher)
    assert [item.teacher_logprobs is None for item in batch] == [False, True, False, False]
    policy = tiny_policy(config, adapter_scale=SCALE)
    found = advantages_through_batching(make_updater(config, policy), policy, batch)
    assert all(not found[1, r].any() for r in range(4)) and found[0, 0].any()


def test_a_configuration_with_a_teacher_reads_back_and_takes_overrides(tmp_path: Path) -> None:
    config = distilling("teacher.weight=0.5", "teacher.adapter=runs/x")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load(tmp_path / "config.yaml", []) == config
    assert config.teacher is not None and (config.teacher.path, config.teacher.weight) == ("models/tiny-arith", 0.5)
    assert (
        load(tmp_path / "config.yaml", ["teacher=null", "rewards=[{use: rewards.accuracy:accuracy}]"]).teacher is None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["teacher.weight=2"],
            "teacher.path: no teacher is named; expected a folder with a Hugging Face checkpoint, or a hub id",
        ),
        (
            ["rewards=[]"],
            "rewards: saw []; expected a list of sections with at least 1 entry, or a teacher (teacher.path)",
        ),
        (
            [*PURE, "selection.low=0.1"],
            "selection: low and high are bounds on the entropy over the answers that rewards cluster",
        ),
        (["teacher=x", "teacher.backend=vllm_server"], "teacher: backend vllm_server needs urls"),
        (
            ["teacher=x", "teacher.urls=[http://a:1]"],
            "teacher: urls is for backend vllm_server and is not read by local",
        ),
        (["teacher=x", "teacher.weight=0"], "teacher.weight: saw 0; expected a number > 0"),
        (
            ["teacher=x", "teacher.backend=vllm_server", "teacher.urls=[http://a:1]", "teacher.adapter=y"],
            "teacher: adapter is for backend local",
        ),
        (["teacher.wieght=2"], "teacher.wieght: unknown key; did you mean teacher.weight?"),
    ],
)
def test_a_wrong_teacher_section_is_named_with_the_remedy(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(None, words)
    assert message in str(error.value)


def other_vocabulary(folder: Path, swap: tuple[str, str] = ("7", "8")) -> Path:
    """models/tiny-arith with two tokens' ids exchanged."""
    shutil.copytree(resolve_path("models/tiny-arith"), folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary[swap[0]], vocabulary[swap[1]] = vocabulary[swap[1]], vocabulary[swap[0]]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def check(path: Path, max_tokens: int = 60) -> None:
    check_teacher(
        TeacherModelSection(path=str(path)), "teacher", tiny_config().model, inputs().tokenizer, ["1+1=?"], max_tokens,
        "do without")


def test_a_teacher_with_other_ids_is_refused_with_both_vocabularies_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        check(other_vocabulary(tmp_path / "other"))
    assert (
        str(error.value)
        == f"teacher.path: {tmp_path / 'other'} has another vocabulary (99 tokens) than the student's,"
        " model.path=models/tiny-arith (99 tokens): the token '7' has id 27 in the student and is id 28 in the "
        "teacher. Log-probabilities are compared token by token, which needs the same ids. Remedy: a teacher with "
        "the student's tokenizer; or do without")


def test_a_teacher_that_only_splits_texts_differently_is_refused(tmp_path: Path) -> None:
    """Each token has the student's id, but texts are split in another way."""
    folder = tmp_path / "other"
    shutil.copytree(resolve_path("models/tiny-arith"), folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"String": "+"}, "content": "-"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(
        ConfigError, match=r"the text '1\+1=\?' is \[21, 15, 21, 33, 35\] in the student and \[21, 17, 21, 33, 35\]"
    ):
        check(folder)


def test_tokens_that_only_the_teacher_has_do_no_harm(tmp_path: Path) -> None:
    other = AutoTokenizer.from_pretrained(str(resolve_path("models/tiny-arith")))
    other.add_tokens(["<tool>"])
    assert vocabulary_difference(inputs().tokenizer, other, ["1+1=?"]) is None
    assert vocabulary_difference(other, inputs().tokenizer, ["1+1=?"]) == (
        "the token '<tool>' has id 99 in the student and is not there in the teacher")


def test_a_teacher_with_too_short_a_context_is_refused() -> None:
    context = AutoConfig.from_pretrained(resolve_path("models/tiny-arith")).max_position_embeddings
    check(Path("models/tiny-arith"), context)
    with pytest.raises(
        ConfigError,
        match=f"teacher.path: the context of models/tiny-arith is {context} tokens, and the longest row has",
    ):
        check(Path("models/tiny-arith"), context + 1)


def test_a_teacher_that_ends_its_answers_otherwise_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(resolve_path("models/tiny-arith"), folder)
    (folder / "generation_config.json").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<pad>"}))
    with pytest.warns(UserWarning, match=r"ends its answers with \['<pad>'\] and the student with \['<eos>'\]"):
        check(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(Path("models/tiny-arith"))


def test_a_teacher_without_an_end_token_is_told_and_not_refused(tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(resolve_path("models/tiny-arith"), folder)
    (folder / "generation_config.json").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("eos_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.warns(
        UserWarning, match=r"ends its answers with no token that it names and the student with \['<eos>'\]"
    ):
        check(folder)
    load_teacher(TeacherModelSection(path=str(folder)), "teacher", inputs().tokenizer, torch.device("cpu"))


def test_errors_of_loading_name_the_teachers_keys(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"teacher\.path: there is no folder"):
        check(tmp_path / "missing")
    section = TeacherModelSection(path="models/tiny-arith", adapter=str(tmp_path))
    with pytest.raises(ConfigError, match=r"teacher\.adapter: .* holds no adapter_config.json"):
        check_teacher(section, "teacher", tiny_config().model, inputs().tokenizer, [], 10, "do without")
    shutil.copytree(resolve_path("models/tiny-arith"), tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(PolicyError, match=r"^teacher\.path: .*cut cannot be loaded"):
        load_teacher(
            TeacherModelSection(path=str(tmp_path / "cut")), "teacher", inputs().tokenizer, torch.device("cpu"))


def test_a_local_teachers_weights_are_in_the_memory_estimate() -> None:
    def estimate(*overrides: str) -> int:
        config = distilling(*overrides)
        found = estimate_memory(
            config, AutoConfig.from_pretrained(resolve_path("models/tiny-arith")), 10, bytes_per_weight=4, on_gpu=False)
        assert any("frozen teacher" in line for line in found.lines()) == bool(found.teacher)
        with pytest.raises(ConfigError):
            check_memory(config, found, found.total - 1, "cpu")
        return found.total

    without = estimate("teacher.backend=vllm_server", "teacher.urls=[http://localhost:1]")
    assert estimate() - without == 4 * 816_640
    assert estimate("teacher.dtype=bfloat16") - without == 2 * 816_640


def test_loading_names_the_teachers_own_keys_and_no_others() -> None:
    text = f"{named('model.path', 'm')} needs {named('lora.rank')} or {named('model.gradient_checkpointing')}"
    message = r"^teacher\.path=m needs lora\.rank or model\.gradient_checkpointing$"
    with pytest.raises(ConfigError, match=message), in_words_of("teacher"):
        raise ConfigError(text)
