"""What a base model can do before training: `python models/measure.py [--model models/tiny-arith]`.

Prints sampled accuracy (avg@8 with its 95% interval), majority accuracy (maj@8; tied clusters share), the share of
questions whose one largest cluster is right (a tie is not), greedy accuracy and the mean semantic entropy over held-out
questions, the quick start's or those of `--held-out`. Where rows have a `kind`, also sampled and majority accuracy of
each kind.
"""

from __future__ import annotations

import argparse

import torch

from rewards.accuracy import grade_many
from rewards.clustering import cluster
from rl.config import LoraSection, ModelSection, RunConfig, SamplingSection
from rl.configuration.loading import load
from rl.evaluation.held_out import HeldOut
from rl.generate.build import build_generator
from rl.generate.protocol import SamplingParameters
from rl.policy.policy import load_policy
from rl.questions.inputs import read_inputs
from rl.records import Group
from rl.runs.intervals import mean_with_interval

GREEDY = 1e-4  # a temperature at which the likeliest token is always drawn


def majority_share(group: Group) -> float:
    """1 where the largest cluster of final answers is right, 1/k where k clusters tie and one is, else 0."""
    gold = group.question.answer
    assert gold is not None
    verdicts = grade_many([(rollout.text, gold) for rollout in group.rollouts])
    clusters = cluster([verdict.extracted for verdict in verdicts])
    right = {label for label, verdict in zip(clusters.labels, verdicts, strict=True) if verdict.correct}
    return len(right & set(clusters.majority)) / max(1, len(clusters.majority))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/tiny-arith")
    parser.add_argument("--held-out", default="models/tiny-arith/questions/held_out.jsonl")
    parser.add_argument("--questions", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=48, help="completions are cut at this length (default: 48)")
    arguments = parser.parse_args()
    config: RunConfig = load(None, [
        f"model={arguments.model}", f"evaluation={arguments.held_out}",
        f"sampling.max_completion_tokens={arguments.max_tokens}",
        f"evaluation.num_questions={arguments.questions}", "data.max_prompt_tokens=64"])
    inputs = read_inputs(config)
    assert inputs.grader is not None
    policy = load_policy(
        ModelSection(path=arguments.model), LoraSection(), inputs.tokenizer, seed=0, device=torch.device("cpu"),
        keep_reference=False)
    generator = build_generator(config.generator, policy)
    sampling: SamplingSection = config.sampling

    def held_out(temperature: float) -> HeldOut:
        parameters = SamplingParameters(temperature, 1.0, 0, sampling.max_completion_tokens)
        return HeldOut(inputs.held_out, inputs.grader, parameters, seed=0, rank=0, num_ranks=1)  # type: ignore[arg-type]

    sampled, greedy = held_out(1.0).evaluate(generator, 8), held_out(GREEDY).evaluate(generator, 1)
    groups = generator.generate(held_out(1.0).requests(8), held_out(1.0).parameters)
    majority = mean_with_interval([majority_share(group) for group in groups])
    rows = [("sampled, avg@8", sampled.accuracy), ("majority, maj@8", majority), ("greedy", greedy.accuracy)]
    for name, interval in rows:
        print(f"{name:<18}{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]")
    print(f"{'majority right':<18}{len(sampled.majority_right) / len(sampled.each):.3f}")
    for kind in dict.fromkeys(str(group.question.columns.get("kind", "")) for group in groups):
        members = [group for group in groups if kind and group.question.columns["kind"] == kind]
        if members:
            right = sum(map(majority_share, members)) / len(members)
            accuracy = sum(sampled.each[group.question.id] for group in members) / len(members)
            print(f"{kind:<18}avg@8 {accuracy:.3f}, maj@8 {right:.3f} of {len(members)} questions")
    print(
        f"{'semantic entropy':<18}{sampled.semantic_entropy:.2f} nats, {sampled.mean_completion_tokens:.1f} tokens a "
        "completion")


if __name__ == "__main__":
    main()
