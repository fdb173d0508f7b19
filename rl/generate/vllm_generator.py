"""The vLLM engine next to the trainer, on the same device: `generator: vllm`. With several training processes each has
its own.

Policy versions come to it as an adapter (a fresh name and path each) or as merged weights (see
rl/generate/weight_sync.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from rl.config import GeneratorSection
from rl.generate.completions import CompletedGroups
from rl.generate.generator_plan import GPU_RESERVE, GeneratorPlan, engine_cache_bytes
from rl.generate.protocol import Finished, Request, SamplingParameters
from rl.generate.version_files import VersionFiles, adapter_bytes, open_with_room, place_with_room
from rl.generate.vllm_engine import Engine, EngineSettings
from rl.generate.weight_sync import Sync
from rl.policy.policy import Policy, all_weights, base_weights, lora_rank, lora_targets
from rl.ranks import ranks_here
from rl.records import Group, PromptCompletion


class VllmGenerator:
    """Generator (rl/generate/protocol.py) on an engine in this process."""

    def __init__(self, config: GeneratorSection, policy: Policy, plan: GeneratorPlan, sync: Sync) -> None:
        self.policy_version = 0
        self._policy = policy
        self._sync = sync
        self._asleep = False
        self._sleep_level = {"off": 0, "offload": 1, "discard": 2}[config.sleep]
        self._adapters = 0  # loaded so far; the number of each is its identity in the engine
        device = next(policy.model.parameters()).device
        on_gpu = device.type == "cuda"
        if self._sleep_level and not on_gpu:
            self._sleep_level = 0  # there is nothing to gain on a CPU, and vLLM has no such mode there
        # Before the engine: without room it need not start. Nothing is made there before the run's folder is.
        self._num_bytes = adapter_bytes(policy) * ranks_here() if sync.way == "adapter" else 0
        self._last_resort = plan.run_dir / "sampler"
        self._files: VersionFiles | None = None
        place_with_room(self._num_bytes, self._last_resort)
        self._engine = Engine(
            EngineSettings(
                model=plan.base_path, revision=plan.revision, trust_remote_code=plan.trust_remote_code,
                dtype=policy.dtype, max_tokens=plan.max_tokens, max_sequences=config.max_sequences,
                lora_rank=lora_rank(policy) if sync.way == "adapter" else None, lora_targets=lora_targets(policy),
                logprobs_mode=plan.logprobs_mode, memory_share=_memory_share(config, plan, device) if on_gpu else None,
                cache_bytes=engine_cache_bytes(config, plan.max_tokens, plan.cache_bytes_per_token, on_gpu=on_gpu),
                eager=config.eager if config.eager is not None else not on_gpu, can_sleep=self._sleep_level > 0,
                num_ranks=plan.num_ranks, seed=plan.seed, float32_head=plan.float32_head,
                nf4=policy.quantization is not None))
        self.description = (
            f"sampler: vLLM {self._engine.version} in this process; new versions by {sync.way}: {sync.reason}")

    def generate(
        self, requests: Sequence[Request], parameters: SamplingParameters, finished: Finished | None = None
    ) -> list[Group]:
        self._wake()
        return sample_groups(
            self._engine, requests, parameters, self._policy.tokenizer, self._policy.eos_token_ids, self.policy_version,
            finished)

    def logprobs(self, pairs: Sequence[PromptCompletion]) -> list[tuple[float, ...]]:
        self._wake()
        return self._engine.logprobs(pairs)

    def take_over(self, policy: Policy, version: int) -> None:
        self._policy = policy
        self._wake(push=False)
        self._push(version)
        self.policy_version = version

    def rest(self) -> None:
        if self._sleep_level and not self._asleep:
            self._engine.sleep(self._sleep_level)
            self._asleep = True

    def metrics(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        self._engine.close()
        if self._files is not None:
            self._files.close()

    def _wake(self, *, push: bool = True) -> None:
        """Bring back what discarding has dropped: base and adapter, or merged weights. push: false where a new version
        follows at once."""
        if self._asleep:
            # the blocks of the trainer's allocator that are free now: the engine takes its memory elsewhere
            torch.cuda.empty_cache()
            self._engine.wake()
            self._asleep = False
            if self._sleep_level == 2 and self._sync.way == "adapter":
                self._engine.load_weights(base_weights(self._policy))
            if self._sleep_level == 2 and push:
                self._push(self.policy_version)

    def _push(self, version: int) -> None:
        if self._sync.way == "merge":
            self._engine.load_weights(all_weights(self._policy))
            return
        if self._files is None:
            self._files = open_with_room(self._num_bytes, self._last_resort)
        path = self._files.adapter(self._policy, version)
        self._adapters += 1
        self._engine.load_adapter(f"policy-{version}-{self._adapters}", self._adapters, path)
        self._files.drop(path)  # the engine has read it


def sample_groups(
    engine: Engine, requests: Sequence[Request], parameters: SamplingParameters, tokenizer: PreTrainedTokenizerBase,
    eos_token_ids: Sequence[int], version: int, finished: Finished | None,
) -> list[Group]:
    """Generator.generate on an engine."""
    completed = CompletedGroups(requests, tokenizer, parameters.stop_strings, version, finished)

    # All stop ids by name: vLLM reads one end-of-sequence id from the checkpoint, and models may have several.
    stop_ids = sorted({*eos_token_ids, *parameters.stop_token_ids})
    engine.sample(
        [request.prompt.token_ids for request in requests for _ in request.seeds],
        [seed for request in requests for seed in request.seeds], parameters, stop_ids, completed.add)
    return completed.groups()


def _memory_share(config: GeneratorSection, plan: GeneratorPlan, device: torch.device) -> float | None:
    """Of the GPU's memory: all that is free less what the trainer will still allocate while the engine is awake:
    everything, or of an engine that sleeps while training what the trainer keeps between its turns."""
    if config.memory_share is not None:
        return config.memory_share
    free, total = torch.cuda.mem_get_info(device)
    beside = plan.trainer_bytes if config.sleep == "off" else plan.kept_bytes
    still_to_come = max(0, beside - torch.cuda.memory_reserved(device))
    return max(0.05, GPU_RESERVE * (free - still_to_come) / total)
