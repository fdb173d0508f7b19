"""Questions with their choices -> report.json and report.md: what share was kept by difficulty, why the rest was not,
and lengths.

Difficulty is the share of a question's completions whose reward is high enough, whatever else became of them: with an
accuracy reward the share of right ones, with a majority reward the share of the majority. Everything but `wall_s` is
determined by samples and configuration.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from rewards.errors import named
from rl.errors import ConfigError
from rl.rejection.config import KeepSection
from rl.rejection.keep import REASONS, Choice, Reason, has_reward
from rl.rejection.samples import SampledQuestion

BUCKETS = ("none", "up to 1/4", "up to 1/2", "up to 3/4", "below 1", "all")
"""Of the share of a question's completions with the reward; each begins where the one before ends."""

MEANING: Mapping[Reason, str] = {
    "unjudged": "a reward gave no verdict",
    "entropy_low": "semantic entropy not above keep.low",
    "entropy_high": "semantic entropy not below keep.high",
    "truncated": "cut at sampling.max_completion_tokens",
    "empty": "no text",
    "reward": "reward below keep.reward_at_least",
    "near_duplicate": "too like a kept one of its question",
    "over_limit": "beyond keep.per_question",
}


@dataclass(frozen=True, slots=True)
class Bucket:
    """Questions of like difficulty. kept_share: kept / completions; 0 where there are none."""

    rewarded_share: str
    questions: int
    completions: int
    kept: int
    kept_share: float
    questions_kept: int


@dataclass(frozen=True, slots=True)
class Lengths:
    """In tokens, the stop token included. p90: the 90th percentile, linear between neighbours."""

    completions: int
    mean: float
    median: float
    p90: float
    max: int


@dataclass(frozen=True, slots=True)
class MixedIn:
    path: str
    rows: int
    rows_in_file: int


@dataclass(frozen=True, slots=True)
class Report:
    """questions, completions: sampled. questions_kept: those with a kept completion. dropped: completions by reason,
    each counted once.

    lengths_*: None where there are none. retokenised: kept completions of whose text a warm-up makes other tokens than
    were sampled (the text is the same). rows: of solutions.jsonl, those mixed in included. wall_s: of this process."""

    questions: int
    questions_kept: int
    completions: int
    kept: int
    kept_share: float
    mean_reward: float
    dropped: Mapping[Reason, int]
    difficulty: tuple[Bucket, ...]
    lengths_kept: Lengths | None
    lengths_dropped: Lengths | None
    retokenised: int
    mix: tuple[MixedIn, ...]
    rows: int
    seed: int
    wall_s: float


@dataclass(slots=True)
class _Counts:
    questions: int = 0
    completions: int = 0
    kept: int = 0
    questions_kept: int = 0


@dataclass(slots=True)
class Tally:
    """Counts questions as they come; no text is kept."""

    keep: KeepSection
    dropped: Counter[Reason] = field(default_factory=Counter)
    retokenised: int = 0
    _best_refused: float = -math.inf
    _rewards: list[float] = field(default_factory=list)
    _buckets: dict[str, _Counts] = field(default_factory=lambda: {name: _Counts() for name in BUCKETS})
    _all: _Counts = field(default_factory=_Counts)
    _kept_lengths: list[int] = field(default_factory=list)
    _dropped_lengths: list[int] = field(default_factory=list)

    def add(self, question: SampledQuestion, choice: Choice) -> None:
        completions = question.completions
        for counts in (self._all, *([self._buckets[bucket_of(question, self.keep)]] if question.judged else [])):
            counts.questions += 1
            counts.completions += len(completions)
            counts.kept += len(choice.kept)
            counts.questions_kept += bool(choice.kept)
        for completion, reason in zip(completions, choice.reasons, strict=True):
            if question.judged:
                self._rewards.append(completion.reward)
            (self._kept_lengths if reason is None else self._dropped_lengths).append(completion.num_tokens)
            if reason is not None:
                self.dropped[reason] += 1
                if reason == "reward":
                    self._best_refused = max(self._best_refused, completion.reward)
            elif not completion.exact:
                self.retokenised += 1

    @property
    def kept(self) -> int:
        return self._all.kept

    def check(self, resume: str) -> None:
        """Raises ConfigError where nothing was kept: what it failed by, and what would keep something. resume: the
        words to choose again by other settings."""
        if self._all.kept:
            return
        counted = sorted(self.dropped.items(), key=lambda item: (-item[1], REASONS.index(item[0])))
        most = counted[0][0]
        raise ConfigError(
            f"nothing is left of {self._all.completions:,} completions of {self._all.questions:,} questions, so no "
            f"file is written: {', '.join(f'{count:,} {MEANING[reason]}' for reason, count in counted)}",
            where=named("keep"), remedy=self._remedy(most, resume))

    def _remedy(self, most: Reason, resume: str) -> str:
        again = f"{resume} (chooses again among the samples that are there)"
        if most == "reward":
            return (
                f"the highest of these rewards is {self._best_refused:g}: keep.reward_at_least={self._best_refused:g} "
                f"or less with {again}; or, in a new run, more sampling.samples, or a better policy")
        if most in ("entropy_low", "entropy_high"):
            return f"keep.{most.removeprefix('entropy_')}=null, or a wider bound, with {again}"
        if most == "truncated":
            return "a higher sampling.max_completion_tokens in a new run"
        if most == "unjudged":
            return "a new run when the reward's service answers, or another reward"
        return "another prompt.template in a new run: the policy ends its completions at once"

    def report(self, mix: Sequence[MixedIn], seed: int, wall_s: float) -> Report:
        everything = self._all
        return Report(
            questions=everything.questions,
            questions_kept=everything.questions_kept,
            completions=everything.completions,
            kept=everything.kept,
            kept_share=_share(everything.kept, everything.completions),
            mean_reward=math.fsum(self._rewards) / max(1, len(self._rewards)),
            dropped={reason: self.dropped[reason] for reason in REASONS},
            difficulty=tuple(
                Bucket(
                    name, counts.questions, counts.completions, counts.kept, _share(counts.kept, counts.completions),
                    counts.questions_kept)
                for name, counts in self._buckets.items()),
            lengths_kept=_lengths(self._kept_lengths),
            lengths_dropped=_lengths(self._dropped_lengths),
            retokenised=self.retokenised,
            mix=tuple(mix),
            rows=everything.kept + sum(entry.rows for entry in mix),
            seed=seed,
            wall_s=wall_s)


def bucket_of(question: SampledQuestion, keep: KeepSection) -> str:
    """The name of the question's bucket of difficulty."""
    total = len(question.completions)
    rewarded = sum(has_reward(completion, keep) for completion in question.completions)
    if rewarded in (0, total):
        return BUCKETS[0] if rewarded == 0 else BUCKETS[-1]
    return BUCKETS[-(-4 * rewarded // total)]


def to_json(report: Report) -> str:
    return json.dumps(asdict(report), indent=2, allow_nan=False) + "\n"


def to_markdown(report: Report, title: str) -> str:
    """The report for people."""
    kept, dropped = report.lengths_kept, report.lengths_dropped
    lengths = [
        f"| {name} | {n.completions:,} | {n.mean:.1f} | {n.median:g} | {n.p90:g} | {n.max:,} |"
        for name, n in (("kept", kept), ("dropped", dropped))
        if n is not None]
    in_short = (
        f"{report.kept:,} of {report.completions:,} completions kept ({report.kept_share:.1%}), of "
        f"{report.questions_kept:,} of {report.questions:,} questions; mean reward {report.mean_reward:.3f}, seed "
        f"{report.seed}.")
    lines = [
        f"# {title}", "", in_short,
        *_section(
            "Kept by difficulty", "Difficulty: the share of a question's completions whose reward is high enough.", "",
            "| with the reward | questions | completions | kept | share kept | questions with a kept one |",
            "|---|---:|---:|---:|---:|---:|", *map(_bucket_row, report.difficulty)),
        *_section(
            "Dropped", "Each completion is counted for the first reason that applies.", "", "| reason | completions |",
            "|---|---:|", *(f"| {MEANING[reason]} | {count:,} |" for reason, count in report.dropped.items())),
        *_section(
            "Lengths in tokens", "| | completions | mean | median | 90th percentile | longest |",
            "|---|---:|---:|---:|---:|---:|", *lengths),
        *_section(
            "solutions.jsonl", f"- {report.kept:,} kept completions",
            *(f"- {entry.rows:,} of {entry.rows_in_file:,} rows of {entry.path}" for entry in report.mix),
            f"- {report.rows:,} rows in all")]
    if report.retokenised:
        lines += ["", f"Of {report.retokenised:,} kept completions a warm-up makes other tokens than were sampled: the "
                      "tokenizer splits the same text otherwise."]
    return "\n".join(lines) + "\n"


def _section(title: str, *lines: str) -> list[str]:
    return ["", f"## {title}", "", *lines]


def _bucket_row(bucket: Bucket) -> str:
    return (
        f"| {bucket.rewarded_share} | {bucket.questions:,} | {bucket.completions:,} | {bucket.kept:,} | "
        f"{bucket.kept_share:.1%} | {bucket.questions_kept:,} |")


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _lengths(tokens: Sequence[int]) -> Lengths | None:
    if not tokens:
        return None
    return Lengths(
        len(tokens), sum(tokens) / len(tokens), float(np.median(tokens)), float(np.percentile(tokens, 90)), max(tokens))
