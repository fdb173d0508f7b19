"""`python -m eval.answer --model M [--adapter A] -k 16 "question"`: the answer that most of k samples agree on, with
how sure that is.

The samples are clustered by their final answers. Printed are the majority's answer, its share of all samples, the
semantic entropy over the clusters (0: all agree, 1: all differ, normalised by ln k) as a measure of doubt, and the
shortest completion that supports the answer.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from eval.errors import run_command
from eval.options import Parser, add_model, add_prompt, add_sampler, add_votes


@dataclass(frozen=True, slots=True)
class Agreement:
    """answer: of the largest cluster, None where no sample has one; of tied ones the first sampled, with `ties` the
    others' answers.
    share: of all samples. entropy in nats. others: (answer, share) of the other clusters, largest first.
    num_unanswered: samples without an answer. support: the shortest completion of the answer's cluster."""

    answer: str | None
    share: float
    ties: tuple[str, ...]
    entropy: float
    normalised_entropy: float
    others: tuple[tuple[str, float], ...]
    num_samples: int
    num_unanswered: int
    support: str


def agree(completions: Sequence[str], last_number: bool = False) -> Agreement:
    """What the completions [k] agree on. last_number: let a completion's last number count as its answer where nothing
    else is stated."""
    from rewards.clustering import cluster
    from rewards.extraction import extract_answers

    answers = extract_answers(list(completions), last_number)
    clusters = cluster(answers)
    k = len(answers)
    order = sorted((label for label in range(clusters.num_clusters) if clusters.answered[clusters.labels.index(label)]),
                   key=lambda label: -clusters.sizes[label])
    named = {label: str(answers[clusters.labels.index(label)]) for label in order}
    chosen = order[0] if order else None
    supporting = [
        text for text, label in zip(completions, clusters.labels, strict=True) if chosen is None or label == chosen]
    return Agreement(
        answer=None if chosen is None else named[chosen], share=0.0 if chosen is None else clusters.sizes[chosen] / k,
        ties=tuple(named[label] for label in clusters.majority if label != chosen), entropy=clusters.entropy,
        normalised_entropy=clusters.normalised_entropy,
        others=tuple((named[label], clusters.sizes[label] / k) for label in order[1:]), num_samples=k,
        num_unanswered=answers.count(None), support=min(supporting, key=len))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Raises ConfigError."""
    parser = Parser("python -m eval.answer", __doc__ or "")
    parser.add_argument("question")
    add_model(parser)
    add_votes(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object with all completions")
    add_prompt(parser, several=False)
    add_sampler(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code (see run_command)."""
    return run_command(parse, _main, arguments)


def _main(options: argparse.Namespace) -> int:
    completions = sample(options)
    found = agree([text for text, _ in completions], options.last_number)
    if options.json:
        print(
            json.dumps(
                {
                    "question": options.question, "answer": found.answer, "share": found.share,
                    "ties": list(found.ties), "semantic_entropy": found.entropy,
                    "normalised_semantic_entropy": found.normalised_entropy,
                    "others": [list(other) for other in found.others], "support": found.support,
                    "completions": [{"text": text, "truncated": truncated} for text, truncated in completions]},
                ensure_ascii=False))
    else:
        print(render(found, sum(truncated for _, truncated in completions)))
    return 0


def render(found: Agreement, num_truncated: int) -> str:
    """For people, a few lines and the supporting completion."""
    k = found.num_samples
    lines = [f"answer      {found.answer if found.answer is not None else 'none: no completion states one'}"]
    if found.ties:
        lines.append(f"tied with   {', '.join(found.ties)}")
    lines.append(f"agreement   {round(found.share * k)} of {k} completions ({found.share:.0%})")
    lines.append(
        f"entropy     {found.entropy:.3f} nats, {found.normalised_entropy:.3f} of the largest possible (0: all agree, "
        "1: all differ)")
    if found.others:
        shown = ", ".join(f"{answer} ({share:.0%})" for answer, share in found.others[:5])
        lines.append(f"others      {shown}{', ...' if len(found.others) > 5 else ''}")
    shortcomings = ((found.num_unanswered, "without an answer"), (num_truncated, "cut at --max-tokens"))
    without = [f"{count} {what}" for count, what in shortcomings if count]
    if without:
        lines.append(f"of them     {', '.join(without)}")
    return "\n".join(
        [
            *lines, "", "shortest completion that supports it:" if found.answer is not None else "shortest completion:",
            "", found.support.strip()])


def sample(options: argparse.Namespace) -> list[tuple[str, bool]]:
    """(text, whether it was cut) of k completions. Raises what names the option that is wrong."""
    from eval.sampler import Sampler

    with closing(Sampler(options)) as sampler:
        return sampler.sample(options)


if __name__ == "__main__":
    sys.exit(main())
