"""Graded samples of a base -> what it can do before training, and which kind of training has something to work with.

EMPO pulls each question towards what most completions of a group answer, right or wrong. So the majority that counts is
that of as many completions as a run's groups have, however many are sampled here. `Figures` are what can be counted,
`case_of` draws the lines between the cases, `CASES` says what each means and what to do. The bounds are constants;
where nothing was measured between two bases that went different ways, a round number between them is taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from eval.records import GradedQuestion
from eval.scoring import score_questions
from rl.questions.splits import Split, normalised_entropy
from rl.runs.intervals import Interval
from rl.selection import ROUNDING

Case = Literal["latent", "often_wrong", "nearly_always_wrong", "settled", "no_format", "no_labels"]

ANSWERED = 0.5
"""Least share of completions with an answer: below it the commonest thing that a group has in common is no answer. The
base without the format has 0.00, the other three have 0.99 and more."""
NEARLY_ALWAYS_WRONG = 0.2
"""maj@G below it: four majorities in five teach a wrong answer. Of groups of 8, tiny-arith-brief, at 0.10, gained
nothing; tiny-arith-1300, at 0.43, did."""
OFTEN_RIGHT = 0.5
"""maj@G from which on more questions pull towards right answers than towards wrong ones."""
FAR_MORE = 0.1
"""Least maj@G - avg, which is what agreement can add. Of groups of 8, tiny-arith-brief has 0.03, tiny-arith-1300
0.23."""
FEW_LABELS = 20
"""Below so many questions the 95% interval of a share of a half is wider than 0.4, hence than any case."""
CUT = 0.1
"""Share of completions cut before they answer, from which on it is told: the limit, not the model, may be at fault."""


@dataclass(frozen=True, slots=True)
class Groups:
    """What entropy bounds, both exclusive, do with groups of `size` completions; shares of all groups. splits: the
    commonest, each with its share."""

    size: int
    low: float
    high: float
    too_low: float
    trained: float
    too_high: float
    splits: tuple[tuple[Split, float], ...]


@dataclass(frozen=True, slots=True)
class Figures:
    """avg, maj, passed: avg@k, maj@k, pass@k over the questions with an answer; None where there is none. group_maj: of
    as many completions as groups.size, drawn from the k. The rest is over all questions. answered, cut: shares of
    completions; cut ones reached the limit before they answered. entropy in nats, the normalised one / ln k: means over
    questions, each completion without an answer a cluster of its own."""

    k: int
    num_questions: int
    num_labelled: int
    avg: Interval | None
    maj: Interval | None
    group_maj: Interval | None
    passed: Interval | None
    answered: float
    cut: float
    entropy: float
    normalised_entropy: float
    groups: Groups


def measure(labelled: Sequence[GradedQuestion], others: Sequence[GradedQuestion], size: int, low: float, high: float
            ) -> Figures:
    """labelled: questions whose verdicts are against a gold answer; others: those without one. All have k samples,
    which are cut into groups of `size` <= k. Raises ValueError where there is no question at all."""
    together = [*labelled, *others]
    overall = score_questions(together, ())
    k = overall.num_samples
    scores = score_questions(labelled, (k, size)) if labelled else None
    samples = [sample for question in together for sample in question.samples]
    return Figures(
        k=k, num_questions=len(together), num_labelled=len(labelled), avg=None if scores is None else scores.avg,
        maj=None if scores is None else scores.maj_at[k], group_maj=None if scores is None else scores.maj_at[size],
        passed=None if scores is None else scores.pass_at[k],
        answered=sum(sample.answer is not None for sample in samples) / len(samples),
        cut=sum(sample.answer is None and sample.truncated for sample in samples) / len(samples),
        entropy=overall.semantic_entropy, normalised_entropy=overall.normalised_semantic_entropy,
        groups=_groups(together, size, low, high))


def _groups(questions: Sequence[GradedQuestion], size: int, low: float, high: float) -> Groups:
    """What a run sees: each `size` completions, in the order in which they were sampled, are one group of a run."""
    found: Counter[Split] = Counter()
    for question in questions:
        clusters = [sample.cluster for sample in question.samples]
        for start in range(0, len(clusters) - size + 1, size):
            found[tuple(sorted(Counter(clusters[start:start + size]).values(), reverse=True))] += 1
    total = found.total()
    entropies = {split: normalised_entropy(split) for split in found}
    too_low = sum(count for split, count in found.items() if entropies[split] <= low + ROUNDING) / total
    too_high = sum(count for split, count in found.items() if entropies[split] >= high - ROUNDING) / total
    commonest = sorted(found.items(), key=lambda item: (-item[1], entropies[item[0]]))[:4]
    return Groups(size, low, high, too_low, 1 - too_low - too_high, too_high,
                  tuple((split, count / total) for split, count in commonest))


def case_of(figures: Figures) -> Case:
    if figures.answered < ANSWERED:
        return "no_format"
    if figures.group_maj is None or figures.avg is None:
        return "no_labels"
    return _case_with(figures.group_maj.value, figures.avg.value)


def _case_with(maj: float, avg: float) -> Case:
    if maj < NEARLY_ALWAYS_WRONG:
        return "nearly_always_wrong"
    if maj - avg < FAR_MORE:
        return "settled"
    return "latent" if maj >= OFTEN_RIGHT else "often_wrong"


@dataclass(frozen=True, slots=True)
class Advice:
    """title, meaning: what the case is. steps: what to do, one after the other."""

    title: str
    meaning: str
    steps: tuple[str, ...]


CASES: dict[Case, Advice] = {
    "latent": Advice(
        "The ability is latent: EMPO is for this model.",
        "The majority of a group is far more often right than one sample, and on most questions. EMPO raises accuracy "
        "towards that of larger majorities (models/tiny-arith, with maj@8 0.85 and maj@16 0.97: from 0.40 to 0.94 in "
        "30 steps).",
        ("configs/empo_math.yaml with your data, and selection.low=0.2 selection.high=0.9 selection.mode=refill",
         "the labelled questions as evaluation=FILE, so that the watchdog sees reward rise while accuracy falls")),
    "often_wrong": Advice(
        "In between: the majority of a group beats one sample, and is wrong on more than half of the questions.",
        "Agreement pulls towards right answers on some questions and towards wrong ones on more. Share alone may "
        "destroy such a model, by rate: models/tiny-arith-1300 (0.20) ended at 0.04 to 0.26. The votes of the model of "
        "the start do not move with it: with them it ended at 0.44 to 0.47, at two rates four times apart (300 steps).",
        ("configs/label_free.yaml: rewarded is what votes of the start agree with (docs/label_free.md)",
         "labels, where they can be had: GRPO on them (configs/grpo_math.yaml) went to 0.52 on the same base",
         "other labelled questions as evaluation=FILE, so that the watchdog sees reward rise while accuracy falls")),
    "nearly_always_wrong": Advice(
        "Pre-trained too briefly for these questions: EMPO is not for this model.",
        "The majority is wrong nearly always: agreement would teach wrong answers, whatever pass@k says. On "
        "models/tiny-arith-brief reward rose and nothing was gained; GRPO with answers gained 4 points.",
        ("a stronger base, or easier questions",
         "solutions: configs/warmup_math.yaml, then this forecast again with --adapter RUN",
         "labels: configs/grpo_math.yaml")),
    "settled": Advice(
        "Little to elicit: the majority is hardly more often right than one sample.",
        "EMPO raises accuracy towards the majority's, and that is where it is already.",
        ("harder questions, on which the samples differ",
         "labels, which can go beyond the majority: configs/grpo_math.yaml")),
    "no_format": Advice(
        "Without the format: most completions state no answer.",
        "No reward can tell them apart. models/tiny-arith-plain: stopped at step 3; after a warm-up on 64 solutions "
        "(0.58) EMPO took it to 0.90.",
        ("another --prompt first: the one of the model's own training, or with worked examples",
         "a warm-up on a few solutions: configs/warmup_math.yaml, then this forecast again with --adapter RUN")),
    "no_labels": Advice(
        "Undecided: no question has an answer.",
        "Without labels only the answered share and the entropy are known. They say that answers come and how far they "
        "agree, not whether what they agree on is right.",
        ("answers to some 30 of these questions (field \"answer\"), then this forecast again",)),
}


def notes_on(figures: Figures) -> list[str]:
    """What makes the case less sure than it looks."""
    notes = []
    if figures.cut >= CUT:
        notes.append(f"{figures.cut:.0%} of the completions were cut at --max-tokens before they answered: what they "
                     "would have answered is not known. Raise --max-tokens before you conclude anything")
    maj, avg, here = figures.group_maj, figures.avg, case_of(figures)
    if maj is None or avg is None or here == "no_format":
        return notes
    if figures.num_labelled < FEW_LABELS:
        notes.append(f"{figures.num_labelled} question(s) with an answer are few: expected {FEW_LABELS} or more")
    # Harder or easier questions move both: the gap stays.
    near = {_case_with(end, end - maj.value + avg.value) for end in (maj.low, maj.high)} - {here}
    for case in sorted(near):
        notes.append(
            f"another case lies within the 95% interval of maj@{figures.groups.size}: \"{CASES[case].title}\" More "
            "questions with an answer (--limit) decide")
    return notes
