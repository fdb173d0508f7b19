"""Which side is wrong -> the words that say so: what to check, for each back end and way of bringing versions, and the
remedy."""

from __future__ import annotations

from rl.config import RunConfig
from rl.generate.weight_sync import Way
from rl.proof.diagnosis import Diagnosis
from rl.proof.distances import Distances

GO_ON = "mend that and go on with --resume, which begins with this proof"
UNDERSTOOD = (
    "a higher generator.max_mismatch only where the difference is understood (loss.correction then corrects for it)")


def describe(diagnosis: Diagnosis, config: RunConfig, way: Way, *, version: int) -> str:
    """Sentences: the side, what to check, the remedy. version: that the sampler should have; 0: no update has been made
    yet."""
    if diagnosis.cause == "trainer":
        return _trainer(diagnosis)
    fresh = diagnosis.fresh
    if fresh is None:
        return (
            f"The sampler could not be asked again ({diagnosis.error}), so that it is open which side is wrong. Check: "
            "its log. Remedy: bring it back and go on with --resume, which begins with this proof")
    if diagnosis.cause == "sampling":
        return _sampling(diagnosis, fresh, config)
    key = (config.generator.backend, way)
    if diagnosis.cause == "base":
        return (
            "The sampler's side is wrong: the adapter never reached the sampler, which has the base's weights "
            f"({_numbers(fresh)}). Check: {_NEVER_REACHED[key]}. Remedy: {GO_ON}, or another generator.sync in a "
            "new run")
    if version == 0:
        return _other_model(fresh, config)
    share = "" if fresh.share is None else f", and show {fresh.share:.0%} of the policy's move from its base"
    lacks = "does not have this version" if fresh.from_base is None else "has neither this version nor the base"
    return (
        f"The sampler's side is wrong: it {lacks}, so an earlier version, another model or another precision "
        f"({_numbers(fresh)}{share}). Check: {_STUCK[key]}. Remedy: {GO_ON}; {UNDERSTOOD}")


def _trainer(diagnosis: Diagnosis) -> str:
    sampler = "" if diagnosis.fresh_from_plain is None else (
        f"; the sampler's differ from these by {diagnosis.fresh_from_plain:.3g}")
    return (
        f"The trainer's side is wrong: its log-probabilities differ by {diagnosis.own:.3g} nats on average from those "
        f"of the model's own forward with PEFT's own LoRA layers and eager attention{sampler}. Check: "
        "rl/policy/fused_lora.py, model.attention (auto: rl/policy/shared_prompts.py), rl/policy/forward.py, "
        "rl/policy/logprobs.py. Remedy: tell which of them it is by a new run with model.attention=eager, and by one "
        "with lora.dropout=0.01, which leaves the LoRA layers to PEFT; nothing that this run has learnt so far is to "
        "be trusted")


def _sampling(diagnosis: Diagnosis, fresh: Distances, config: RunConfig) -> str:
    backend, temperature = config.generator.backend, config.sampling.temperature
    start = f"The sampler's side is wrong, though it has the right weights ({_numbers(fresh)}). "
    if diagnosis.at_temperature_1:
        return (
            f"{start}What it recorded with its samples is at temperature 1, and not at "
            f"sampling.temperature={temperature:g}. Check: {_PROCESSED[backend]}. Remedy: {GO_ON}")
    cache = "" if backend == "transformers" else (
        "a stale prefix cache (each version needs a name of its own, or the cache is emptied with the swap); ")
    return (
        f"{start}What it sampled came from something else. Check: {cache}the settings under which it sampled and "
        f"recorded log-probabilities (temperature {temperature:g}, before top_p and top_k: {_PROCESSED[backend]}); "
        f"whether the weights came only after it had sampled. Remedy: {GO_ON}")


def _other_model(fresh: Distances, config: RunConfig) -> str:
    model = config.model
    if config.generator.backend == "vllm_server":
        return (
            f"The server serves another model than model.path={model.path} ({_numbers(fresh)}). Check: the name, "
            "revision, precision and quantisation with which it was started (--model, --revision, --dtype, "
            f"--quantization) against model.path, model.revision={model.revision} and model.dtype={model.dtype}. "
            f"Remedy: the same model on both sides; {UNDERSTOOD}")
    return (
        f"The sampler has another model than model.path={model.path}, or computes in another precision "
        f"({_numbers(fresh)}). Check: that nothing has changed the model's files while the run started; "
        f"model.revision={model.revision}, model.dtype={model.dtype}. Remedy: start again; {UNDERSTOOD}")


def _numbers(fresh: Distances) -> str:
    from_base = "" if fresh.from_base is None else f" and from the base's by {fresh.from_base:.3g}"
    return (
        f"computed afresh, its log-probabilities differ from the trainer's by {fresh.agreement:.3g} nats on "
        f"average{from_base}")


_ADAPTER = (
    "whether the adapter's module names are those of vLLM's model, which passes silently over names that it does not "
    "know (adapter_model.safetensors), and whether requests name the adapter")
_NEVER_REACHED: dict[tuple[str, Way], str] = {
    ("transformers", "shared"): "whether something left the adapter switched off (PEFT's disable_adapter)",
    ("transformers", "merge"): (
        "whether take_over writes the merged weights into the copy (rl/policy/policy.py: merged_weights)"),
    ("vllm", "adapter"): _ADAPTER,
    ("vllm", "merge"): (
        "whether the merged weights were loaded into the engine, whose model must have their names, and whether "
        "something has loaded the base's again (generator.sleep)"),
    ("vllm_server", "adapter"): f"{_ADAPTER}; whether every server lists the version under /v1/models",
    ("vllm_server", "merge"): (
        "whether every server took the weights: one that was started again has the base's until they are pushed again"),
}
_STUCK: dict[tuple[str, Way], str] = {
    ("transformers", "shared"): "take_over",
    ("transformers", "merge"): "take_over (rl/policy/policy.py: merged_weights)",
    ("vllm", "adapter"): (
        "that each version has a name and a number of its own, that requests name the newest, and model.dtype"),
    ("vllm", "merge"): "that every changed weight was loaded under its name, and model.dtype",
    ("vllm_server", "adapter"): (
        "that every server lists the newest version under /v1/models and serves the same base in the same "
        "precision (--dtype, --quantization)"),
    ("vllm_server", "merge"): (
        "that every server took the newest weights, that no other run pushes to it, and that it computes in the "
        "same precision (--dtype, --quantization)"),
}
_PROCESSED = {
    "transformers": "rl/generate/token_sampling.py",
    "vllm": "rl/generate/vllm_generator.py",
    "vllm_server": (
        "the server's --logprobs-mode, and --generation-config, whose defaults may replace what a request leaves out"),
}
