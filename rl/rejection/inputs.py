"""What rejection sampling reads before it loads a model: rewards, questions, prompts, files to mix in. Loads the
tokenizer, no weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rewards.errors import named
from rewards.scoring import RewardSum
from rl.errors import ConfigError
from rl.generate.protocol import SamplingParameters
from rl.generate.servers.client import read_key
from rl.generate.vllm_engine import check_version
from rl.paths import resolve_path
from rl.policy.model_identity import model_identity, rewards_digest
from rl.policy.policy import end_of_sequence_ids, load_generation_config
from rl.questions.inputs import (
    check_lengths,
    check_stop_tokens,
    load_model_config,
    load_tokenizer,
    prompts_digest,
    read_questions,
)
from rl.questions.order import QuestionOrder
from rl.questions.prompting import PromptRenderer
from rl.records import Json, Prompt, Rollout
from rl.rejection.config import RejectConfig, RejectSamplingSection
from rl.rejection.mix import MixFile, read_mix
from rl.rejection.samples import TURN_ENDS
from rl.scoring.rewarding import build_rewards
from rl.supervised.solutions import completion_tokens


@dataclass(frozen=True, slots=True)
class RejectInputs:
    """prompts: in the file's order. chunks: their positions, as they are sampled together. dropped: how many rows of
    the questions were left out, by reason. turn_ends: ids at which a completion ends for the chat template's sake
    alone. identity: what the samples belong to, by the configuration's key."""

    tokenizer: PreTrainedTokenizerBase
    model_config: PretrainedConfig
    renderer: PromptRenderer
    rewards: RewardSum
    prompts: tuple[Prompt, ...]
    chunks: tuple[tuple[int, ...], ...]
    mix: tuple[MixFile, ...]
    parameters: SamplingParameters
    eos_token_ids: tuple[int, ...]
    turn_ends: tuple[int, ...]
    dropped: Mapping[str, int]
    identity: Mapping[str, Json]

    @property
    def max_tokens(self) -> int:
        """Of the longest prompt with the longest completion."""
        return max(len(prompt.token_ids) for prompt in self.prompts) + self.parameters.max_completion_tokens

    def is_exact(self, prompt: Prompt, rollout: Rollout) -> bool:
        """Whether a warm-up on the completion's text trains on the tokens that were sampled, up to the end of the
        text."""
        trained = completion_tokens(self.renderer, prompt, rollout.text)
        if rollout.token_ids[-1] in self.eos_token_ids:
            return trained == rollout.token_ids[:-1]
        return trained == rollout.token_ids[:len(trained)]

    def without_turn_ends(self) -> RejectInputs:
        """The same for samples of an earlier version, whose completions went on behind a turn of the chat template."""
        added = self.turn_ends
        parameters = replace(self.parameters, stop_token_ids=_without(self.parameters.stop_token_ids, added))
        identity = {key: value for key, value in self.identity.items() if key != TURN_ENDS}
        return replace(self, parameters=parameters, eos_token_ids=_without(self.eos_token_ids, added),
                       turn_ends=(), identity=identity)


def read_reject_inputs(config: RejectConfig) -> RejectInputs:
    """Everything but the model. Raises ConfigError, DataError, PromptError, PolicyError, GeneratorError or RewardError
    with the remedy."""
    sampling, backend = config.sampling, config.generator.backend
    if backend == "vllm":
        check_version()
    if backend == "vllm_server":
        read_key(config.generator.api_key_env)
    rewards = build_rewards(config.rewards, sampling.max_completion_tokens)
    _check_rewards(rewards, backend)
    mix = read_mix(config.mix)
    tokenizer, model_config = load_tokenizer(config.model), load_model_config(config.model)
    loaded = read_questions(config.data, config.prompt, rewards, tokenizer)
    check_lengths(sampling.max_completion_tokens, model_config, loaded.prompts)
    check_stop_tokens(sampling.stop_token_ids, len(tokenizer))
    path = str(resolve_path(config.model.path))
    model_ends = end_of_sequence_ids(load_generation_config(path, config.model.revision), tokenizer, path)
    turn_ends = _without(loaded.renderer.turn_end_ids, (*model_ends, *sampling.stop_token_ids))
    identity = _identity(config, model_config, loaded.prompts, rewards) | {TURN_ENDS: list(turn_ends)}
    return RejectInputs(
        tokenizer=tokenizer, model_config=model_config, renderer=loaded.renderer, rewards=rewards,
        prompts=loaded.prompts, chunks=_chunks(config, len(loaded.prompts)), mix=tuple(mix),
        parameters=_parameters(sampling, loaded.renderer, rewards),
        eos_token_ids=(*model_ends, *loaded.renderer.turn_end_ids), turn_ends=turn_ends,
        dropped=loaded.dropped, identity=identity)


def _without(ids: Sequence[int], others: Sequence[int]) -> tuple[int, ...]:
    return tuple(one for one in ids if one not in others)


def _check_rewards(rewards: RewardSum, backend: str) -> None:
    """Raises ConfigError where one needs of the policy what the sampler does not tell."""
    if rewards.needs_policy or (rewards.needs_token_statistics and backend != "transformers"):
        others = "" if rewards.needs_policy else f", or {named('generator.backend', 'transformers')}"
        raise ConfigError(
            f"one of {', '.join(rewards.names)} asks for the policy's own probabilities, which rejection sampling with "
            f"{named('generator.backend', backend)} does not have",
            where=named("rewards"),
            remedy="a reward that reads the completions, such as rewards.accuracy:accuracy or "
                   f"rewards.majority:majority_vote{others}")


def _chunks(config: RejectConfig, num_prompts: int) -> tuple[tuple[int, ...], ...]:
    """Positions of the prompts that are sampled together, chunk by chunk."""
    order = QuestionOrder(num_prompts, config.seed, config.data.shuffle).next(num_prompts)
    size = config.sampling.questions_per_chunk
    return tuple(tuple(order[start : start + size]) for start in range(0, num_prompts, size))


def _parameters(sampling: RejectSamplingSection, renderer: PromptRenderer, rewards: RewardSum) -> SamplingParameters:
    stop_strings = tuple(dict.fromkeys([*renderer.template.stop_strings, *sampling.stop_strings]))
    return SamplingParameters(
        sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_completion_tokens,
        tuple(dict.fromkeys([*sampling.stop_token_ids, *renderer.turn_end_ids])), stop_strings,
        token_statistics=rewards.needs_token_statistics)


def _identity(
    config: RejectConfig, model_config: PretrainedConfig, prompts: Sequence[Prompt], rewards: RewardSum
) -> dict[str, Json]:
    """What samples belong to, by the configuration's key; see rl/rejection/samples.py."""
    model = model_identity(config.model, model_config)
    return {
        "model.path": model["weights"], "model.adapter": model["adapter_weights"],
        "model.dtype": f"{model['dtype']} on {model['device']}", "data.path": prompts_digest(prompts),
        "rewards": rewards_digest(rewards)}
