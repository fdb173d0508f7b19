"""`python -m eval.grade DIR`: grade an evaluation's completions anew, without sampling: after a change of the grader,
or with another one.

`python -m eval.grade --samples FILE --out DIR` grades completions that somebody else has sampled. FILE is JSONL, a
question a line: `question`, `answer`, optionally `id`, and `samples`, texts or objects with `text` (and perhaps
`recorded`, the verdict that came with it, with which ours is then compared; --recorded names another key).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.errors import run_command
from eval.options import Parser, positive_list
from eval.records import GradedQuestion, Sample
from rewards.errors import named

RECORDED = "recorded"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Raises ConfigError."""
    parser = Parser("python -m eval.grade", __doc__ or "")
    parser.add_argument("folder", nargs="?", type=Path, metavar="DIR", help="folder of an evaluation")
    parser.add_argument("--samples", type=Path, help="JSONL with other people's completions")
    parser.add_argument("--recorded", default=RECORDED, help="key of the verdict that a sample brings with it")
    parser.add_argument(
        "--grader", help="a reward with values in [0, 1] (default: the evaluation's own, or rewards.accuracy:accuracy)")
    parser.add_argument(
        "--best-of", help="a reward; best@k is the accuracy of the completion that it likes best among k")
    parser.add_argument(
        "-k", help="the k of avg@k, pass@k and maj@k; several joined by commas (default: as before, or all samples)")
    parser.add_argument(
        "--out", type=Path, help="folder for the new result (default: the evaluation's own, whose result is replaced)")
    parser.add_argument("--no-plots", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code (see run_command)."""
    return run_command(parse, _main, arguments)


def _main(options: argparse.Namespace) -> int:
    from eval.tasks import EvaluationError

    if (options.folder is None) == (options.samples is None):
        raise EvaluationError("expected either the folder of an evaluation or --samples FILE; see --help")
    if options.samples is not None:
        return _grade_samples(options)
    return _grade_again(options)


def _grade_again(options: argparse.Namespace) -> int:
    from eval.evaluation import regrade
    from eval.result import benchmark_result, terminal_table, write_result
    from eval.store import read_completions, read_result, write_completions, write_settings
    from rl.policy.model_identity import rewards_digest

    folder: Path = options.folder
    before, questions = read_result(folder), read_completions(folder)
    benchmarks, anew = {}, []
    for name, entry in before["benchmarks"].items():
        mine = [question for question in questions if question.benchmark == name]
        protocol = dict(entry["protocol"])
        if options.grader is not None:
            protocol |= {"grader": options.grader, "grader_arguments": {}}
        if options.best_of is not None:
            protocol["best_of"] = options.best_of
        grader, ranker = _rewards(protocol["grader"], protocol["grader_arguments"]), _rewards(protocol["best_of"], {})
        judged = regrade(mine, grader, ranker)
        protocol |= {
            "grader_digest": rewards_digest(grader),
            "best_of_digest": None if ranker is None else rewards_digest(ranker)}
        changed = _changed(mine, judged)
        print(f"{name}: {changed} of {sum(len(question.samples) for question in mine)} verdicts changed")
        anew += judged
        ks = positive_list(options.k, "-k") if options.k else entry["k"]
        benchmarks[name] = benchmark_result(judged, _check_ks(ks, entry["num_samples"]), protocol)
    out = options.out or folder
    out.mkdir(parents=True, exist_ok=True)
    head = {key: value for key, value in before.items() if key not in ("benchmarks", "versions")}
    head["settings"] = {**head["settings"], "tasks": {name: entry["protocol"] for name, entry in benchmarks.items()}}
    # First, and it alone: a kill between the three leaves a folder whose evaluation says that it is another one.
    write_settings(out, head["settings"])
    write_completions(out, anew)
    write_result(out, head, benchmarks)
    _plots(options, benchmarks, anew, out)
    print(f"\n{terminal_table(benchmarks)}\n\n{'result':<14}{out / 'result.json'}")
    return 0


def _grade_samples(options: argparse.Namespace) -> int:
    from eval.evaluation import regrade
    from eval.result import benchmark_result, terminal_table, write_result
    from eval.store import write_completions

    path: Path = options.samples
    questions, recorded = read_samples(path, options.recorded)
    use = options.grader or "rewards.accuracy:accuracy"
    judged = regrade(questions, _rewards(use, {}), _rewards(options.best_of, {}))
    least = min(len(question.samples) for question in judged)
    ks = _check_ks(positive_list(options.k, "-k") if options.k else (least,), least)
    name = path.stem
    protocol = {
        "benchmark": name, "source": str(path), "samples": least, "grader": use, "grader_arguments": {},
        "best_of": options.best_of}
    benchmarks = {name: benchmark_result(judged, ks, protocol)}
    if recorded:
        pairs = [
            (sample.correct == 1.0, verdict)
            for question in judged
            for sample, verdict in zip(question.samples, recorded[question.id], strict=True)
            if verdict is not None]
        entry = benchmarks[name]
        entry["recorded_accuracy"] = sum(verdict for _, verdict in pairs) / len(pairs)
        entry["recorded_agreement"] = sum(ours == verdict for ours, verdict in pairs) / len(pairs)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        write_completions(options.out, judged)
        write_result(
            options.out, {"model": str(path), "adapter": None, "settings": {}, "seed": None, "wall_s": None}, benchmarks
        )
        _plots(options, benchmarks, judged, options.out)
    print(terminal_table(benchmarks))
    if recorded:
        entry = benchmarks[name]
        print(
            f"recorded accuracy {entry['recorded_accuracy']:.4f}; our verdicts agree with "
            f"{entry['recorded_agreement']:.2%} of {len(pairs)}")
    return 0


def read_samples(path: Path, recorded_key: str = RECORDED) -> tuple[list[GradedQuestion], dict[str, list[bool | None]]]:
    """Questions with ungraded samples, and the recorded verdicts by question id (empty where no sample has one).

    Raises EvaluationError with file and line."""
    from eval.tasks import EvaluationError

    if not path.is_file():
        raise EvaluationError(
            f"there is no file {path}", where=named("--samples"),
            expected="JSONL with question, answer and samples in each line")
    questions: list[GradedQuestion] = []
    recorded: dict[str, list[bool | None]] = {}
    keys: set[str] = set()
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{named('--samples')}: {path}:{number}"
        try:
            row: Mapping[str, Any] = json.loads(line)
            question, verdicts = _ungraded(row, path.stem, f"line-{number}"), _recorded(row, recorded_key)
        except (ValueError, KeyError, TypeError) as error:
            raise EvaluationError(
                f"{type(error).__name__}: {error}", where=where,
                expected="an object with question, answer, and samples, which are texts or objects with text") from None
        if not question.samples or question.id in recorded:
            raise EvaluationError(
                f"the id {question.id!r} was there before" if question.samples else "it has no samples", where=where,
                expected="ids that differ, and at least one sample")
        questions.append(question)
        recorded[question.id] = verdicts
        keys |= {key for sample in row["samples"] if isinstance(sample, Mapping) for key in sample}
    if not questions:
        raise EvaluationError(f"{path} is empty", where=named("--samples"), expected="at least one question")
    if recorded_key != RECORDED and recorded_key not in keys:
        raise EvaluationError(
            f"no sample in {path} has {recorded_key!r}; they have: {', '.join(sorted(keys)) or 'text alone'}",
            where=named("--recorded"))
    has_verdicts = any(verdict is not None for verdicts in recorded.values() for verdict in verdicts)
    return questions, recorded if has_verdicts else {}


def _ungraded(row: Mapping[str, Any], benchmark: str, default_id: str) -> GradedQuestion:
    """A row of --samples as a question whose samples have no verdict yet. Raises KeyError, TypeError, ValueError."""
    texts = [sample if isinstance(sample, str) else sample["text"] for sample in row["samples"]]
    question, gold = row["question"], row["answer"]
    if not isinstance(question, str) or not all(isinstance(text, str) for text in texts):
        raise TypeError("question and the samples' texts must be text")
    if isinstance(gold, bool) or not isinstance(gold, str | int | float) or not str(gold).strip():
        raise TypeError(f"answer is {gold!r}, expected text or a number")
    columns = {key: value for key, value in row.items() if key not in ("id", "question", "answer", "samples")}
    samples = tuple(Sample(text, None, 0.0, index, truncated=False) for index, text in enumerate(texts))
    return GradedQuestion(benchmark, str(row.get("id", default_id)), question, str(gold), columns, samples)


def _recorded(row: Mapping[str, Any], key: str) -> list[bool | None]:
    """The verdict under `key` of each sample. Raises TypeError."""
    verdicts = [sample.get(key) if isinstance(sample, Mapping) else None for sample in row["samples"]]
    if wrong := [verdict for verdict in verdicts if verdict not in (None, 0, 1)]:
        raise TypeError(f"{key} is {wrong[0]!r}, expected true or false")
    return verdicts


def _rewards(use: str | None, arguments: Mapping[str, Any]) -> Any:
    from rewards.scoring import RewardSpec, RewardSum

    return None if use is None else RewardSum([RewardSpec(use, arguments=dict(arguments))])


def _changed(before: Sequence[GradedQuestion], after: Sequence[GradedQuestion]) -> int:
    return sum(old.correct != new.correct for one, other in zip(before, after, strict=True)
               for old, new in zip(one.samples, other.samples, strict=True))


def _check_ks(ks: Sequence[int], samples: int) -> tuple[int, ...]:
    from eval.tasks import EvaluationError

    if wrong := [k for k in ks if not 1 <= k <= samples]:
        raise EvaluationError(
            f"saw {wrong[0]}; each question has {samples} samples, so expected whole numbers from 1 to {samples}",
            where=named("-k"))
    return tuple(ks)


def _plots(
    options: argparse.Namespace, benchmarks: Mapping[str, Any], questions: Sequence[GradedQuestion], out: Path
) -> None:
    if not options.no_plots:
        from eval.plots import draw_all

        draw_all(
            {name: [question for question in questions if question.benchmark == name] for name in benchmarks},
            out / "plots")


if __name__ == "__main__":
    sys.exit(main())
