"""Keys that people know from elsewhere -> ours: what `beta=0.04` is answered with, before likeness of letters.

TRL: GRPOConfig (with the TrainingArguments that it takes over), ModelConfig and ScriptArguments of TRL 1.16, and PEFT's
LoraConfig. verl: its ppo_trainer.yaml. docs/coming_from.md is made from these tables. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rewards.errors import Problem, named
from rl.config import Section
from rl.configuration.keys import all_keys, show_value


@dataclass(frozen=True, slots=True)
class Name:
    """theirs: a key there; `critic.*` stands for all below it. ours: the keys here that it becomes; none: nothing here
    corresponds. note: the conversion, or why there is nothing. values: a value there -> what is set here."""

    theirs: str
    ours: tuple[str, ...]
    note: str = ""
    values: Mapping[str, str] = field(default_factory=dict)


def _is(theirs: str, ours: str, note: str = "", **values: str) -> Name:
    return Name(theirs, tuple(ours.split()), note, values)


def _none(theirs: str, why: str) -> Name:
    return Name(theirs, (), why)


_SERVERS = "an engine lies within one process; servers may be of any parallelism: generator.backend=vllm_server"
_NO_STEP_BATCH = "what shares a forward pass is cut by optim.micro_batch_tokens and changes no gradient"
_TOKENS = "counts tokens of one forward pass, padding included, not rows"
_STEPS = "= epochs * questions / sampling.questions_per_step"
_DDP = "processes are replicas (DistributedDataParallel)"
_FIXED_REFERENCE = "the reference is the base, or the weights that full training began with, and stays"
_EACH_TRAINS = "each process has its own sampler: accelerate launch --num_processes N"
_ONE_DISTRIBUTION = "the trainer's log-probabilities would not be those that are sampled from"

TRL = (
    # The model
    _is("model_name_or_path", "model.path"), _is("model_revision", "model.revision"),
    _is("dtype", "model.dtype", "of the frozen base; trained weights are float32"),
    _is("torch_dtype", "model.dtype", "of the frozen base; trained weights are float32"),
    _is("bf16", "model.dtype", "auto is bfloat16 on a GPU", true="model.dtype=bfloat16", false="model.dtype=float32"),
    _none("fp16", "its range needs loss scaling; a GPU gets bfloat16"),
    _is("attn_implementation", "model.attention", "leave it at auto: completions then share their prompt's pass"),
    _is("trust_remote_code", "model.trust_remote_code"),
    _is("model_init_kwargs", "model.dtype model.attention model.revision", "each has a key of its own"),
    _is("gradient_checkpointing", "model.gradient_checkpointing", "off by default",
        true="model.gradient_checkpointing=full", false="model.gradient_checkpointing=off"),
    _is("cast_lm_head_to_fp32", "model.head_dtype", true="model.head_dtype=float32", false="model.head_dtype=null"),
    _is("load_in_4bit", "model.quantization", true="model.quantization=nf4", false="model.quantization=null"),
    _none("load_in_8bit", "a frozen base is held in its dtype or in 4 bits (model.quantization=nf4)"),
    _none("use_liger_kernel", "log-probabilities are computed in chunks over tokens already"),
    _none("router_aux_loss_coef", "mixtures of experts train without their balancing loss"),
    # LoRA
    _is("use_peft", "lora.enabled", "true by default"), _is("lora_r", "lora.rank"), _is("r", "lora.rank"),
    _is("lora_alpha", "lora.alpha"), _is("lora_dropout", "lora.dropout"),
    _is("lora_target_modules", "lora.targets"), _is("target_modules", "lora.targets"),
    _is("use_rslora", "lora.alpha", "the update is scaled by alpha / rank: alpha * sqrt(rank) gives rsLoRA's scale"),
    _none("use_dora", "adapters are plain LoRA"),
    _none("modules_to_save", "an adapter trains its low-rank matrices alone, or lora.enabled=false all weights"),
    _none("lora_modules_to_save", "an adapter trains its low-rank matrices alone, or lora.enabled=false all weights"),
    _is("disable_dropout", "lora.dropout", "0 by default"),
    # Data and prompts
    _is("dataset_name", "data.path"), _is("dataset_config", "data.subset"), _is("dataset_train_split", "data.split"),
    _is("dataset_test_split", "evaluation.split"), _is("shuffle_dataset", "data.shuffle"),
    _is("max_prompt_length", "data.max_prompt_tokens", "longer prompts are dropped and counted, none is cut"),
    _is("chat_template_kwargs", "prompt.chat_template_kwargs"),
    _none("remove_unused_columns", "all columns of a row reach the rewards by their names"),
    _is("seed", "seed"), _is("data_seed", "seed", "one seed decides order, sampling and initial adapter"),
    # Sampling
    _is("num_generations", "sampling.group_size"),
    _is("per_device_train_batch_size", "sampling.questions_per_step",
        "it counts completions of one device, here questions of all: questions_per_step = per_device_train_batch_size "
        "* devices * gradient_accumulation_steps / num_generations"),
    _none("gradient_accumulation_steps", _NO_STEP_BATCH + "; the batch is sampling.questions_per_step questions"),
    _is("generation_batch_size", "sampling.questions_per_step",
        "it counts completions: questions_per_step = generation_batch_size / num_generations"),
    _is("steps_per_generation", "optim.minibatches",
        "minibatches = steps_per_generation / gradient_accumulation_steps: the updates that one sampled batch is split "
        "into"),
    _is("max_completion_length", "sampling.max_completion_tokens"), _is("temperature", "sampling.temperature"),
    _is("top_p", "sampling.top_p", "below 1 the gradient is biased"),
    _is("top_k", "sampling.top_k", "above 0 the gradient is biased"),
    _none("min_p", _ONE_DISTRIBUTION), _none("repetition_penalty", _ONE_DISTRIBUTION),
    _is("generation_kwargs", "sampling.stop_strings sampling.stop_token_ids",
        "what ends a completion; other settings of the sampler have keys under sampling"),
    # vLLM
    _is("use_vllm", "generator.backend", true="generator.backend=vllm", false="generator.backend=transformers"),
    _is("vllm_mode", "generator.backend", colocate="generator.backend=vllm", server="generator.backend=vllm_server"),
    _is("vllm_server_base_url", "generator.urls", "a list of servers: generator.urls=[http://localhost:8000]"),
    _is("vllm_server_host", "generator.urls", "with the port: generator.urls=[http://HOST:PORT]"),
    _is("vllm_server_port", "generator.urls", "with the host: generator.urls=[http://HOST:PORT]"),
    _is("vllm_server_timeout", "generator.start_timeout_s"),
    _none("vllm_group_port", "new weights travel to servers as files (generator.exchange_dir)"),
    _is("vllm_gpu_memory_utilization", "generator.memory_share", "null: what the memory estimate leaves"),
    _none("vllm_max_model_length", "it is the longest prompt with sampling.max_completion_tokens"),
    _none("vllm_tensor_parallel_size", _SERVERS),
    _is("vllm_enable_sleep_mode", "generator.sleep", true="generator.sleep=offload", false="generator.sleep=off"),
    _none("vllm_model_impl", "vLLM chooses it"),
    _none("vllm_structured_outputs_regex", _ONE_DISTRIBUTION),
    _is("vllm_importance_sampling_correction", "loss.correction.mode", "none by default, and a difference that is too "
        "large stops the run", true="loss.correction.mode=mask_sequence", false="loss.correction.mode=none"),
    _is("vllm_importance_sampling_mode", "loss.correction.mode", "mask_sequence tests a sequence's geometric mean, TRL "
        "the product of its ratios", token_truncate="loss.correction.mode=truncate",
        token_mask="loss.correction.mode=mask_token", sequence_mask="loss.correction.mode=mask_sequence"),
    _is("vllm_importance_sampling_clip_max", "loss.correction.cap loss.correction.high",
        "cap of truncate, high of the masks"),
    _is("vllm_importance_sampling_cap", "loss.correction.cap"),
    _is("vllm_importance_sampling_clip_min", "loss.correction.low", "of the masks"),
    # Rewards and advantages
    _is("reward_funcs", "rewards.N.use", "style: trl takes a TRL function as it is"),
    _is("reward_weights", "rewards.N.weight", "each reward has its own"),
    _is("scale_rewards", "advantage.name", "batch divides by the deviation from the groups' means, TRL by that of the "
        "rewards", group="advantage.name=grpo", true="advantage.name=grpo", batch="advantage.name=reinforce++",
        none="advantage.name=dr_grpo", false="advantage.name=dr_grpo"),
    _is("multi_objective_aggregation", "advantage.normalise", sum_then_normalize="advantage.normalise=sum",
        normalize_then_sum="advantage.normalise=each"),
    # Loss
    _is("beta", "loss.kl_weight"), _is("use_bias_correction_kl", "loss.kl_weight", "the penalty is k3 as it stands, as "
        "TRL's with use_bias_correction_kl=false"),
    _is("epsilon", "loss.clip_low loss.clip_high", "both, where epsilon_high is not given"),
    _is("epsilon_high", "loss.clip_high", "with loss.name=cispo the bound is 1 + clip_high: clip_high = epsilon_high - "
        "1"),
    _none("delta", "the ratio of negative advantages has no upper bound"),
    _is("loss_type", "loss.aggregation loss.name", "denominators are those of the whole update, whatever the "
        "micro-batches; sapo, luspo and vespo are not here", grpo="loss.aggregation=sequence",
        dapo="loss.aggregation=token", bnpo="loss.aggregation=token",
        dr_grpo="loss.aggregation=constant advantage.name=dr_grpo", cispo="loss.name=cispo loss.aggregation=token"),
    _is("importance_sampling_level", "loss.name", token="loss.name=clip",
        sequence="loss.name=gspo loss.aggregation=sequence"),
    _is("mask_truncated_completions", "loss.mask_truncated"),
    _is("top_entropy_quantile", "loss.top_entropy_share", "a share above 0"),
    _is("entropy_coef", "loss.entropy_bonus"),
    _none("use_adaptive_entropy", "the weight loss.entropy_bonus is constant"),
    _none("off_policy_mask_threshold", "see loss.correction for the sampler's differences"),
    _none("sync_ref_model", _FIXED_REFERENCE), _none("ref_model_mixup_alpha", _FIXED_REFERENCE),
    _none("ref_model_sync_steps", _FIXED_REFERENCE),
    # The optimiser and steps
    _is("learning_rate", "optim.lr"), _is("weight_decay", "optim.weight_decay"),
    _is("adam_beta1", "optim.betas", "the first of two"), _is("adam_beta2", "optim.betas", "the second of two"),
    _is("adam_epsilon", "optim.eps"), _is("max_grad_norm", "optim.max_grad_norm"),
    _is("lr_scheduler_type", "optim.schedule", "others are not here", constant="optim.schedule=constant",
        constant_with_warmup="optim.schedule=constant", linear="optim.schedule=linear", cosine="optim.schedule=cosine"),
    _is("warmup_steps", "optim.warmup_steps", "whole steps, no share"),
    _is("warmup_ratio", "optim.warmup_steps", "warmup_steps = warmup_ratio * steps"),
    _none("optim", "the optimiser is AdamW; `optim` is the section with its settings"),
    _is("num_iterations", "optim.epochs", "passes over each sampled batch"),
    _is("max_steps", "steps", "a step is a sampled batch with all its updates, there an update"),
    _is("num_train_epochs", "steps", "steps " + _STEPS),
    # Evaluation, checkpoints, logs
    _is("eval_steps", "evaluation.every"), _is("eval_strategy", "evaluation.every", "with evaluation.path"),
    _none("eval_on_start", "a run with evaluation.path is always evaluated before and after"),
    _is("num_generations_eval", "evaluation.samples"),
    _is("per_device_eval_batch_size", "generator.max_sequences", "as many as are decoded at the same time, in training "
        "too"),
    _is("output_dir", "run_dir", "an earlier run there is moved aside"),
    _is("overwrite_output_dir", "run_dir", "an earlier run there is moved aside, never overwritten"),
    _is("run_name", "run_dir", "its last part names the run"),
    _is("save_steps", "checkpoint.every"), _is("save_total_limit", "checkpoint.keep", "the best is kept beside them"),
    _is("save_strategy", "checkpoint.every", "the last step always saves"),
    _is("load_best_model_at_end", "checkpoint.best_by", "the best checkpoint is kept as checkpoints/best"),
    _is("metric_for_best_model", "checkpoint.best_by"),
    _none("save_only_model", "a checkpoint can always be resumed from"),
    _none("resume_from_checkpoint", "the option --resume RUN goes on with a run"),
    _is("report_to", "tracking.trackers", "a list", wandb="tracking.trackers=[wandb]",
        tensorboard="tracking.trackers=[tensorboard]", trackio="tracking.trackers=[trackio]",
        none="tracking.trackers=[]"),
    _is("project", "tracking.project"),
    _none("logging_steps", "every step is a line of metrics.jsonl"),
    _none("logging_first_step", "every step is a line of metrics.jsonl"),
    _is("log_completions", "tracking.rollouts_every", "all completions are in rollouts.jsonl, some go to trackers"),
    _none("push_to_hub", "python -m rl.export RUN OUT --push OWNER/NAME, after the run"),
    _none("hub_model_id", "python -m rl.export RUN OUT --push OWNER/NAME, after the run"),
    # The machine
    _none("torch_compile", "the trainer runs as it is written"), _none("deepspeed", _DDP), _none("fsdp", _DDP),
)

_ACTOR, _ROLLOUT = "actor_rollout_ref.actor.", "actor_rollout_ref.rollout."

VERL = (
    # The model
    _is("actor_rollout_ref.model.path", "model.path"),
    _is("actor_rollout_ref.model.trust_remote_code", "model.trust_remote_code"),
    _is("actor_rollout_ref.model.enable_gradient_checkpointing", "model.gradient_checkpointing", "off by default",
        true="model.gradient_checkpointing=full", false="model.gradient_checkpointing=off"),
    _is("actor_rollout_ref.model.lora_rank", "lora.rank", "0 there trains all parameters: lora.enabled=false"),
    _is("actor_rollout_ref.model.lora_alpha", "lora.alpha"),
    _is("actor_rollout_ref.model.target_modules", "lora.targets"),
    _is("actor_rollout_ref.model.lora_adapter_path", "model.adapter"),
    _none("actor_rollout_ref.model.use_remove_padding", "padding is avoided wherever the model allows it"),
    _none("actor_rollout_ref.model.custom_chat_template", "the chat template is the tokenizer's"),
    # Data and prompts
    _is("data.train_files", "data.path", "one file or dataset"), _is("data.val_files", "evaluation.path", "one file"),
    _is("data.prompt_key", "data.columns.question", "the question's text; the template in prompt.template makes the "
        "prompt of it"),
    _is("data.train_batch_size", "sampling.questions_per_step"),
    _is("data.gen_batch_size", "sampling.questions_per_step", "as many; selection.mode=refill samples further ones"),
    _is("data.max_prompt_length", "data.max_prompt_tokens", "longer prompts are dropped and counted"),
    _is("data.max_response_length", "sampling.max_completion_tokens"),
    _is("data.filter_overlong_prompts", "data.max_prompt_tokens", "longer prompts are always dropped and counted"),
    _none("data.truncation", "a prompt is never cut: longer ones are dropped"),
    _is("data.train_max_samples", "data.limit", "the first so many; -1 there is null"),
    _is("data.val_max_samples", "evaluation.num_questions", "the first so many; -1 there is null"),
    _is("data.apply_chat_template_kwargs", "prompt.chat_template_kwargs"), _is("data.seed", "seed"),
    _none("data.reward_fn_key", "each reward sees every row, with all its columns"),
    _none("data.image_key", "questions are text"),
    # Sampling
    _is(_ROLLOUT + "name", "generator.backend", "sglang is not here", vllm="generator.backend=vllm",
        hf="generator.backend=transformers"),
    _is(_ROLLOUT + "n", "sampling.group_size"), _is(_ROLLOUT + "temperature", "sampling.temperature"),
    _is(_ROLLOUT + "top_p", "sampling.top_p", "below 1 the gradient is biased"),
    _is(_ROLLOUT + "top_k", "sampling.top_k", "all tokens: -1 there, 0 here"),
    _is(_ROLLOUT + "response_length", "sampling.max_completion_tokens"),
    _is(_ROLLOUT + "prompt_length", "data.max_prompt_tokens"),
    _is(_ROLLOUT + "gpu_memory_utilization", "generator.memory_share", "null: what the memory estimate leaves"),
    _is(_ROLLOUT + "enforce_eager", "generator.eager"),
    _is(_ROLLOUT + "free_cache_engine", "generator.sleep", true="generator.sleep=offload", false="generator.sleep=off"),
    _is(_ROLLOUT + "max_num_seqs", "generator.max_sequences"),
    _none(_ROLLOUT + "max_model_len", "it is the longest prompt with sampling.max_completion_tokens"),
    _none(_ROLLOUT + "tensor_model_parallel_size", _SERVERS),
    _none(_ROLLOUT + "calculate_log_probs", "the sampler's log-probabilities are always recorded"),
    _is(_ROLLOUT + "val_kwargs.n", "evaluation.samples"),
    _is(_ROLLOUT + "val_kwargs.temperature", "evaluation.temperature", "above 0; null is the training's"),
    _none(_ROLLOUT + "multi_turn.*", "a completion is one turn"),
    # Rewards and advantages
    _is("custom_reward_function.path", "rewards.N.use", "FILE.py:NAME, both in one"),
    _is("custom_reward_function.name", "rewards.N.use", "FILE.py:NAME, both in one"),
    _is("reward.custom_reward_function.path", "rewards.N.use", "FILE.py:NAME, both in one"),
    _is("reward.custom_reward_function.name", "rewards.N.use", "FILE.py:NAME, both in one"),
    _none("reward_model.*", "rewards are functions; judges behind an endpoint are rewards too (docs/free_form.md)"),
    _is("algorithm.adv_estimator", "advantage.name", "there is no value network; verl whitens over tokens where "
        "reinforce++ divides by a deviation over completions", grpo="advantage.name=grpo", rloo="advantage.name=rloo",
        reinforce_plus_plus_baseline="advantage.name=reinforce++"),
    _is("algorithm.norm_adv_by_std_in_grpo", "advantage.name", true="advantage.name=grpo",
        false="advantage.name=dr_grpo"),
    _is("algorithm.filter_groups.enable", "selection.mode", "groups of equal rewards never train",
        true="selection.mode=refill", false="selection.mode=zero"),
    _is("algorithm.filter_groups.max_num_gen_batches", "selection.max_refills",
        "max_refills = max_num_gen_batches - 1: it counts the further rounds"),
    _none("algorithm.gamma", "a completion has one reward, at its end"),
    _none("algorithm.lam", "there is no value network"), _none("critic.*", "there is no value network"),
    # Loss
    _is(_ACTOR + "clip_ratio", "loss.clip_low loss.clip_high"), _is(_ACTOR + "clip_ratio_low", "loss.clip_low"),
    _is(_ACTOR + "clip_ratio_high", "loss.clip_high"),
    _none(_ACTOR + "clip_ratio_c", "the ratio of negative advantages has no upper bound"),
    _is(_ACTOR + "loss_agg_mode", "loss.aggregation", "denominators are those of the whole update; constant divides by "
        "sampling.max_completion_tokens", **{
            "token-mean": "loss.aggregation=token", "seq-mean-token-mean": "loss.aggregation=sequence",
            "seq-mean-token-sum-norm": "loss.aggregation=constant"}),
    _is(_ACTOR + "policy_loss.loss_mode", "loss.name loss.covariance.mode", "others are not here", **{
        "vanilla": "loss.name=clip", "gspo": "loss.name=gspo", "clip-cov": "loss.covariance.mode=clip",
        "clip_cov": "loss.covariance.mode=clip", "kl-cov": "loss.covariance.mode=kl",
        "kl_cov": "loss.covariance.mode=kl"}),
    _is(_ACTOR + "policy_loss.clip_cov_ratio", "loss.covariance.share"),
    _is(_ACTOR + "policy_loss.clip_cov_lb", "loss.covariance.low"),
    _is(_ACTOR + "policy_loss.clip_cov_ub", "loss.covariance.high"),
    _is(_ACTOR + "policy_loss.kl_cov_ratio", "loss.covariance.share"),
    _is(_ACTOR + "policy_loss.ppo_kl_coef", "loss.covariance.weight"),
    _is(_ACTOR + "entropy_coeff", "loss.entropy_bonus"),
    _is(_ACTOR + "use_kl_loss", "loss.kl_weight", "above 0 there is a penalty"),
    _is(_ACTOR + "kl_loss_coef", "loss.kl_weight"),
    _none(_ACTOR + "kl_loss_type", "the penalty is k3, verl's low_var_kl"),
    _is("algorithm.kl_ctrl.kl_coef", "loss.kl_weight", "a penalty in the loss; there is none in the reward"),
    _is("algorithm.use_kl_in_reward", "loss.kl_weight", "a penalty in the loss; there is none in the reward"),
    _is("algorithm.rollout_correction.rollout_is", "loss.correction.mode", token="loss.correction.mode=truncate"),
    _is("algorithm.rollout_correction.rollout_is_threshold", "loss.correction.cap"),
    # The optimiser and steps
    _is(_ACTOR + "ppo_mini_batch_size", "optim.minibatches",
        "it counts prompts, here updates: minibatches = train_batch_size / ppo_mini_batch_size"),
    _is(_ACTOR + "ppo_epochs", "optim.epochs"),
    _is(_ACTOR + "ppo_micro_batch_size_per_gpu", "optim.micro_batch_tokens", _TOKENS),
    _is(_ACTOR + "ppo_micro_batch_size", "optim.micro_batch_tokens", _TOKENS),
    _is(_ACTOR + "ppo_max_token_len_per_gpu", "optim.micro_batch_tokens", "padding included"),
    _none(_ACTOR + "use_dynamic_bsz", _NO_STEP_BATCH),
    _is(_ROLLOUT + "log_prob_micro_batch_size_per_gpu", "optim.micro_batch_tokens", _TOKENS),
    _is("actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu", "optim.micro_batch_tokens", _TOKENS),
    _is(_ACTOR + "optim.lr", "optim.lr"), _is(_ACTOR + "optim.weight_decay", "optim.weight_decay", "0 by default"),
    _is(_ACTOR + "optim.betas", "optim.betas"), _is(_ACTOR + "optim.clip_grad", "optim.max_grad_norm"),
    _is(_ACTOR + "grad_clip", "optim.max_grad_norm"),
    _is(_ACTOR + "optim.lr_warmup_steps", "optim.warmup_steps", "-1 there is 0"),
    _is(_ACTOR + "optim.lr_warmup_steps_ratio", "optim.warmup_steps", "warmup_steps = ratio * steps"),
    _is(_ACTOR + "optim.lr_scheduler_type", "optim.schedule", constant="optim.schedule=constant",
        cosine="optim.schedule=cosine"),
    _is(_ACTOR + "optim.warmup_style", "optim.schedule", constant="optim.schedule=constant",
        cosine="optim.schedule=cosine"),
    _is("trainer.total_training_steps", "steps"), _is("trainer.total_epochs", "steps", "steps " + _STEPS),
    # Evaluation, checkpoints, logs
    _is("trainer.test_freq", "evaluation.every", "-1 there is 0"),
    _none("trainer.val_before_train", "a run with evaluation.path is always evaluated before and after"),
    _is("trainer.save_freq", "checkpoint.every"), _is("trainer.max_actor_ckpt_to_keep", "checkpoint.keep"),
    _is("trainer.default_local_dir", "run_dir", "checkpoints/ lies in it"),
    _none("trainer.resume_mode", "the option --resume RUN goes on with a run"),
    _none("trainer.resume_from_path", "the option --resume RUN goes on with a run"),
    _is("trainer.logger", "tracking.trackers", "a list of tensorboard, wandb, trackio; the console needs no name"),
    _is("trainer.project_name", "tracking.project"),
    _is("trainer.experiment_name", "run_dir", "its last part names the run"),
    _is("trainer.rollout_data_dir", "tracking.rollouts_every", "all completions are in the run's rollouts.jsonl"),
    _none("trainer.log_val_generations", "completions of benchmarks are in evaluations/ of the run's folder"),
    # The machine
    _none("trainer.n_gpus_per_node", _EACH_TRAINS), _none("trainer.nnodes", _EACH_TRAINS),
    _none(_ACTOR + "strategy", _DDP), _none(_ACTOR + "fsdp_config.*", _DDP), _none(_ACTOR + "megatron.*", _DDP),
    _none("actor_rollout_ref.ref.*", _FIXED_REFERENCE),
    _none(_ACTOR + "ulysses_sequence_parallel_size", "a sequence lies on one device"),
    _none("ray_kwargs.*", "there is no Ray: accelerate launch starts the processes"),
)


def known_elsewhere(key: str, root: type[Section]) -> tuple[str, Name] | None:
    """Whose key it is, TRL's or verl's, and what it is here, in a configuration of the class `root`; None where neither
    has it, or its meaning is not this configuration's.

    TRL's keys may stand in a section of ours (optim.learning_rate), verl's may lack what stands before (rollout.n)."""
    own = {found.name for found in all_keys(root)}
    is_run = "sampling.questions_per_step" in own  # what is said beside a key is about training runs
    key = key.lstrip("+")  # Hydra's form of a key that is new
    own_endings = {name.rpartition(".")[2] for name in own}
    for source, name in _candidates(key, own_endings):
        if is_run or (name.ours and not name.note and not name.values and own.issuperset(name.ours)):
            return source, name
    return None


def _candidates(key: str, own_endings: set[str]) -> Iterator[tuple[str, Name]]:
    _, dot, ending = key.rpartition(".")
    yield from (("TRL", name) for name in TRL if name.theirs == key)
    if dot or key not in own_endings:
        yield from (("verl", name) for name in VERL if name.theirs.endswith(f".{key}") or name.theirs == key)
    yield from (("verl", name) for name in VERL if name.theirs.endswith(".*") and
                key.startswith(name.theirs.removesuffix("*")))
    if dot and ending not in own_endings:
        yield from (("TRL", name) for name in TRL if name.theirs == ending)


def answer(key: str, value: Any, root: type[Section]) -> Problem | None:
    """What to say of a key that is not ours but TRL's or verl's, given this value (None: unknown, or a section)."""
    found = known_elsewhere(key, root)
    if found is None:
        return None
    source, name = found
    shown = show_value(value)
    what = f"unknown key; {source}'s {name.theirs.removesuffix('.*')} "
    if not name.ours:
        return Problem(f"{what}has no counterpart here: {name.note}", named(key))
    if (settings := name.values.get(shown.strip("'\"").lower())) is not None:
        return Problem(f"{what}{shown} is {_marked(settings)} here", named(key))
    units = {found.name: found.unit for found in all_keys(root)}
    ours = " and ".join(named(own) + (f" ({units[own]})" if units[own] else "") for own in name.ours)
    if name.values:
        chosen = ", ".join(f"{theirs}: {_marked(settings)}" for theirs, settings in name.values.items())
        return Problem(f"{what}is {ours} here", named(key), expected=chosen)
    # A value that is the same there and here is told as it would be typed.
    is_same = value is not None and not isinstance(value, dict) and not name.note and len(name.ours) == 1
    return Problem(f"{what}is {ours} here" + (f": {name.note}" if name.note else ""), named(key),
                   remedy=named(name.ours[0], shown) if is_same else "")


def _marked(settings: str) -> str:
    return " ".join(named(*setting.split("=", 1)) for setting in settings.split())
