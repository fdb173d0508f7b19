"""What rejection sampling reads before it loads a model: rewards, questions, prompts, files to mix in. Loads the
tokenizer, no weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PretrainedConfig, PreTrainedTokenizerBase

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
from rl.rejection.config import RejectConfig
from rl.rejection.mix import MixFile, read_mix
from rl.scoring.rewarding import build_rewards
from rl.supervised.solutions import completion_tokens


@dataclass(frozen=True, slots=True)
class RejectInputs:
    """prompts: in the file's order. chunks: their positions, as they are sampled together. dropped: how many rows of
    the questions were left out, by reason. identity: what the samples belong to, by the configuration's key."""

    tokenizer: PreTrainedTokenizerBase
    model_config: PretrainedConfig
    renderer: PromptRenderer
    rewards: RewardSum
    prompts: tuple[Prompt, ...]
    chunks: tuple[tuple[int, ...], ...]
    mix: tuple[MixFile, ...]
    parameters: SamplingParameters
    eos_token_ids: tuple[int, ...]
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


def read_reject_inputs(config: RejectConfig) -> RejectInputs:
    """Everything but the model. Raises ConfigError, DataError, PromptError, PolicyError, GeneratorError or RewardError
    with the remedy."""
    sampling, backend = config.sampling, config.generator.backend
    if backend == "vllm":
        check_version()
    if backend == "vllm_server":
        read_key(config.generator.api_key_env)
    rewards = build_rewards(config.rewards, sampling.max_completion_tokens)
    if rewards.needs_policy or (rewards.needs_token_statistics and backend != "transformers"):
        raise ConfigError(
            f"rewards: one of {', '.join(rewards.names)} asks for the policy's own probabilities, which rejection "
            f"sampling with generator.backend={backend} does not have. Remedy: a reward that reads the "
            "completions, such as rewards.accuracy:accuracy or rewards.majority:majority_vote"
            + ("" if rewards.needs_policy else ", or generator.backend=transformers"))
    mix = read_mix(config.mix)
    tokenizer, model_config = load_tokenizer(config.model), load_model_config(config.model)
    loaded = read_questions(config.data, config.prompt, rewards, tokenizer)
    check_lengths(sampling.max_completion_tokens, model_config, loaded.prompts)
    check_stop_tokens(sampling.stop_token_ids, len(tokenizer))
    path = str(resolve_path(config.model.path))
    model = model_identity(config.model, model_config)
    stop_strings = tuple(dict.fromkeys([*loaded.renderer.template.stop_strings, *sampling.stop_strings]))
    order = QuestionOrder(len(loaded.prompts), config.seed, config.data.shuffle).next(len(loaded.prompts))
    size = sampling.questions_per_chunk
    return RejectInputs(
        tokenizer=tokenizer,
        model_config=model_config,
        renderer=loaded.renderer,
        rewards=rewards,
        prompts=loaded.prompts,
        chunks=tuple(tuple(order[start : start + size]) for start in range(0, len(order), size)),
        mix=tuple(mix),
        parameters=SamplingParameters(
            sampling.temperature,
            sampling.top_p,
            sampling.top_k,
            sampling.max_completion_tokens,
            tuple(sampling.stop_token_ids),
            stop_strings,
            token_statistics=rewards.needs_token_statistics),
        eos_token_ids=end_of_sequence_ids(load_generation_config(path, config.model.revision), tokenizer, path),
        dropped=loaded.dropped,
        identity={
            "model.path": model["weights"], "model.adapter": model["adapter_weights"],
            "model.dtype": f"{model['dtype']} on {model['device']}", "data.path": prompts_digest(loaded.prompts),
            "rewards": rewards_digest(rewards)})
