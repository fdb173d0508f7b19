"""The whole algorithm on one page: EMPO (arXiv:2504.05812) with GRPO's advantages (arXiv:2402.03300), as a plain loop.

    .venv/bin/python docs/examples/grpo_one_page.py         two CPU cores: held-out accuracy from 0.40 to over 0.9

A small synthetic model that can do sums but mostly guesses learns from questions alone; answers are read only to
measure it. Every part is the project's own, in the order of CONTRIBUTING's picture, and the loss and the gradient of a
batch are those of the full trainer (tests/integration/test_one_page.py). What that one adds, and where: several passes
over a batch, a reference model, a teacher, several processes (rl/update.py); refilling and sampling a step ahead
(rl/collect.py); the proof that the sampler has the policy (rl/proof/); checkpoints, the watchdog, evaluation as it goes
(rl/trainer.py); vLLM (rl/generate/).

Shape legend: Q questions of a step, G completions of a question; B rows of a micro-batch, L their length; T completion
tokens of a micro-batch, one after the other; V vocabulary. A suffix says a tensor's shape: logprobs_T is [T].
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from rewards.scoring import RewardSpec, RewardSum
from rl.advantages import compute_advantages
from rl.batching import build_micro_batch, denominators_of, plan_micro_batches, trains
from rl.config import DataSection, LoraSection, LossSection, ModelSection
from rl.generate.protocol import Request, SamplingParameters, request_seed
from rl.generate.transformers_generator import TransformersGenerator
from rl.losses import LossTokens, policy_loss
from rl.paths import project_root
from rl.policy.forward import PolicyForward
from rl.policy.policy import load_policy
from rl.questions.files import load_questions
from rl.questions.inputs import load_tokenizer
from rl.questions.prompting import PromptRenderer, load_template
from rl.records import Prompt, ScoredGroup, TrainingGroup
from rl.scoring.rewarding import score_groups
from rl.selection import select

STEPS, QUESTIONS_PER_STEP, GROUP_SIZE, LEARNING_RATE = 40, 32, 8, 5e-4
LOW, HIGH = 0.1, 0.95  # questions train whose answers have an entropy between: H / ln G, 0 agreed, 1 all different
SAMPLING = SamplingParameters(temperature=1.0, top_p=1.0, top_k=0, max_completion_tokens=48)
MODEL = ModelSection(path="models/tiny-arith", dtype="float32")
FOLDER = project_root() / "models" / "tiny-arith" / "questions"

# r_i: the share of the G completions that agree with i, and 1 where i has the gold answer.
AGREEMENT = RewardSum([RewardSpec("rewards.semantic_entropy:semantic_entropy")])
ACCURACY = RewardSum([RewardSpec("rewards.accuracy:accuracy")])


def main(steps: int = STEPS, seed: int = 0) -> tuple[float, float]:
    """Train and print; returns the held-out accuracy before and after."""
    tokenizer = load_tokenizer(MODEL)
    renderer = PromptRenderer(load_template("question_line"), tokenizer)
    prompts, held_out = (
        [renderer.render(question) for question in load_questions(DataSection(path=str(FOLDER / name))).questions]
        for name in ("train.jsonl", "held_out.jsonl"))
    policy = load_policy(
        MODEL, LoraSection(rank=16), tokenizer, seed=seed, device=torch.device("cpu"), keep_reference=False)
    forward = PolicyForward(policy, temperature=SAMPLING.temperature)
    generator = TransformersGenerator(policy, merge=True, max_sequences=256)
    optimizer = torch.optim.AdamW(policy.trainable_parameters().values(), lr=LEARNING_RATE, weight_decay=0.0)
    draw = random.Random(seed)
    before = measure(generator, held_out, seed)
    print(f"held-out accuracy before: {before:.3f}")
    for step in range(steps):
        # 1. Sample: Q questions, G completions each, with their log-probabilities.
        drawn = draw.sample(prompts, QUESTIONS_PER_STEP)
        groups = generator.generate(requests(drawn, GROUP_SIZE, seed, f"step {step}"), SAMPLING)
        # 2. Score: the answers are clustered by what they mean; each completion is paid its cluster's share.
        scored = score_groups(AGREEMENT, groups)
        # 3. Select and compare: who was better than its siblings. Refused groups get 0 and stay in the denominator.
        batch = training_groups(scored)
        # 4. Update: one gradient over the whole batch, one step. Late steps train on few groups: the rate goes to 0.
        loss = backward(forward, batch, pad_token_id=policy.eos_token_ids[0])
        torch.nn.utils.clip_grad_norm_(list(policy.trainable_parameters().values()), 1.0)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / steps)
        optimizer.step()
        optimizer.zero_grad()
        # 5. Hand the new version to the sampler.
        generator.take_over(policy, step + 1)
        reward = sum(sum(group.rewards) for group in scored) / (len(scored) * GROUP_SIZE)
        print(f"step {step + 1:3d}  reward {reward:.3f}  loss {loss:+.4f}", flush=True)
    after = measure(generator, held_out, seed)
    print(f"held-out accuracy after: {after:.3f}")
    return before, after


def requests(prompts: Sequence[Prompt], count: int, seed: int, purpose: str) -> list[Request]:
    """One for each prompt, with a seed for each of `count` completions."""
    return [Request(prompt, tuple(request_seed(seed, purpose, 0, prompt.question.id, i) for i in range(count)))
            for prompt in prompts]


def training_groups(scored: Sequence[ScoredGroup]) -> list[TrainingGroup]:
    """Every group with its advantages [G]: A_i = (r_i - mean r) / std r where it trains, 0 where it is refused."""
    kept = {id(group) for group in select(scored, LOW, HIGH).kept}
    advantages = compute_advantages([group.rewards for group in scored], "grpo")
    return [TrainingGroup(group, values if id(group) in kept else (0.0,) * len(values))
            for group, values in zip(scored, advantages, strict=True)]


def backward(forward: PolicyForward, batch: Sequence[TrainingGroup], pad_token_id: int) -> float:
    """Adds the gradient of the batch's loss to the parameters, one micro-batch after the other; returns the loss."""
    settings, total = LossSection(), 0.0  # the clipped objective, one mean over all completion tokens of the batch
    denominators = denominators_of(batch, SAMPLING.max_completion_tokens)
    training = [group for group in batch if trains(group, needs_all=False)]
    for planned in plan_micro_batches(training, max_tokens=4096, layout=forward.layout):
        micro = build_micro_batch(
            training, planned.sequences, denominators, aggregation=settings.aggregation, pad_token_id=pad_token_id,
            layout=forward.layout)
        # Rows of token ids -> ln pi(token) of the T completion tokens, and the entropies of their distributions.
        computed = forward(micro.rows)
        tokens = LossTokens(
            logprobs_T=computed.logprobs_N,
            # One update per batch: the policy is still the one that sampled.
            old_logprobs_T=computed.logprobs_N.detach(),
            sampler_logprobs_T=micro.sampler_logprobs_T, advantages_T=micro.advantages_T,
            entropies_T=computed.entropies_N, weights_T=micro.weights_T, sequence_ids_T=micro.sequence_ids_T,
            num_sequences=micro.num_sequences, num_loss_tokens=micro.num_loss_tokens)
        loss = policy_loss(tokens, settings).loss  # - sum_t weight_t min(ratio_t A_t, clip(ratio_t) A_t)
        loss.backward()
        total += loss.item()
    return total


def measure(generator: TransformersGenerator, prompts: Sequence[Prompt], seed: int) -> float:
    """avg@4: the share of right answers among four of each question."""
    scored = score_groups(ACCURACY, generator.generate(requests(prompts, 4, seed, "held out"), SAMPLING))
    return sum(sum(group.rewards) for group in scored) / sum(len(group.rewards) for group in scored)


if __name__ == "__main__":
    main()
