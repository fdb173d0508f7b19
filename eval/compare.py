"""`python -m eval.compare A B`: what B changed against A, benchmark by benchmark, and whether it is more than chance.

A and B are folders that `python -m eval.run` wrote, or their result.json. The questions are paired; differences are B -
A. What makes the two hard to compare, such as another prompt, is said below the table. Numbers: eval/comparison.py.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval.comparison import Comparison, ComparisonError, Flip, compare_questions
from eval.errors import run_command
from eval.records import GradedQuestion, from_lines
from rl.runs.tracking import read_json_lines

_PROMPT_KEYS = ("prompt", "prompt_digest", "chat_template")
# Another seed draws other samples in the same way, which is no other protocol; wherever the questions come from, they
# are paired by their ids, and those that only one side has are told apart, as is another number of samples.
_NOT_PROTOCOL = ("seed", "samples", "source", "questions_digest")

_LEGEND = """\
Accuracy (avg@n) and differences in points; p: sign-flip test over paired questions; gained, lost: questions whose
majority answer is right in B alone, in A alone."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One evaluation as its folder holds it. protocols, questions: by benchmark, in the order of the result."""

    path: Path
    model: str
    adapter: str | None
    protocols: Mapping[str, Mapping[str, Any]]
    questions: Mapping[str, Sequence[GradedQuestion]]

    @property
    def name(self) -> str:
        return f"{self.model}{f' with {self.adapter}' if self.adapter else ''} ({self.path})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code (see run_command)."""
    return run_command(parse, _main, arguments)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m eval.compare", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", type=Path, metavar="A", help="folder of an evaluation, or its result.json")
    parser.add_argument(
        "b", type=Path, metavar="B", help="the evaluation to compare with A, such as that of the trained model")
    parser.add_argument("--benchmarks", help="names, separated by commas (default: all that both have)")
    parser.add_argument("--flips", type=int, default=5, metavar="N",
                        help="changed questions to name per benchmark and direction (default: 5)")
    parser.add_argument("--json", action="store_true", help="all numbers and all changed questions as JSON")
    options = parser.parse_args(arguments)
    if options.flips < 0:
        parser.error(f"--flips: saw {options.flips}; expected a number of questions, 0 or more")
    return options


def _main(options: argparse.Namespace) -> int:
    a, b = read_evaluation(options.a), read_evaluation(options.b)
    comparisons = [
        compare_questions(a.questions[name], b.questions[name]) for name in _common(a, b, options.benchmarks)]
    warnings = [warning for comparison in comparisons for warning in find_warnings(comparison, a, b)]
    print(_as_json(a, b, comparisons, warnings) if options.json else render(a, b, comparisons, warnings, options.flips))
    return 0


def read_evaluation(path: Path) -> Evaluated:
    """path: the folder or its result.json. Raises: ComparisonError, RecordsError, JsonLinesError that name the file and
    what is wrong."""
    folder = path.parent if path.name == "result.json" else path
    file, completions = folder / "result.json", folder / "completions.jsonl"
    for needed in (file, completions):
        if not needed.is_file():
            raise ComparisonError(
                f"there is no {needed.name} in {folder}", where=str(path),
                expected="the folder of a finished evaluation (--out of python -m eval.run)",
                remedy="run it, or name another folder")
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        benchmarks = {name: (int(entry["num_questions"]), int(entry["num_samples"]), dict(entry["protocol"]))
                      for name, entry in result["benchmarks"].items()}
        model, adapter = result["model"], result.get("adapter")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ComparisonError(
            f"{file} is not the result of an evaluation ({type(error).__name__}: {error}); it was edited or comes from "
            "another version", remedy="the file as python -m eval.run wrote it") from None
    questions: dict[str, list[GradedQuestion]] = {name: [] for name in benchmarks}
    for question in from_lines(read_json_lines(completions), str(completions)):
        questions.setdefault(question.benchmark, []).append(question)
    for name, (num_questions, num_samples, _) in benchmarks.items():
        found = sum(len(question.samples) for question in questions[name])
        if found != num_questions * num_samples:
            raise ComparisonError(
                f"{completions} has {found} completions of {name}, and {file.name} beside it counts {num_questions} "
                f"questions with {num_samples} samples each: it was cut or belongs to another evaluation",
                remedy="run it again")
    return Evaluated(folder, model, adapter, {name: protocol for name, (*_, protocol) in benchmarks.items()},
                     {name: questions[name] for name in benchmarks})


def find_warnings(comparison: Comparison, a: Evaluated, b: Evaluated) -> list[str]:
    """What makes the comparison of one benchmark say less than its numbers seem to."""
    name = comparison.benchmark
    warnings = []
    of_a, of_b = a.protocols[name], b.protocols[name]
    keys = [key for key in dict.fromkeys((*of_a, *of_b)) if of_a.get(key) != of_b.get(key) and key not in _NOT_PROTOCOL]
    # With other questions the digest over all prompts differs although the prompt does not.
    if comparison.only_a or comparison.only_b:
        keys = [key for key in keys if key != "prompt_digest"]
    if keys:
        differences = ", ".join(f"{key} ({of_a.get(key)} in A, {of_b.get(key)} in B)" for key in keys)
        rule = "; base and trained models are compared under the same prompt" if set(keys) & set(_PROMPT_KEYS) else ""
        warnings.append(f"{name}: A and B were evaluated differently: {differences}{rule}")
    if comparison.only_a or comparison.only_b:
        sides = [f"{len(ids)} only in {side} ({', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''})"
                 for side, ids in (("A", comparison.only_a), ("B", comparison.only_b)) if ids]
        warnings.append(
            f"{name}: questions {' and '.join(sides)}; compared over the {comparison.num_questions} that both have")
    if comparison.num_samples_a != comparison.num_samples_b:
        warnings.append(
            f"{name}: A has {comparison.num_samples_a} samples of each question, B {comparison.num_samples_b}; averages"
            " can be compared, but majorities of more samples are more often right, so the changed questions say less")
    if comparison.is_too_small:
        warnings.append(
            f"{name}: too small for this difference: one of {comparison.num_questions} questions is "
            f"{comparison.points_per_question:.1f} points, the seen difference is {comparison.difference.value:+.1f}, "
            f"uncertain by ±{comparison.half_width:.1f}; about {comparison.num_needed:,} such questions would show it "
            "(at a power of 80%)")
    return warnings


def render(
    a: Evaluated, b: Evaluated, comparisons: Sequence[Comparison], warnings: Sequence[str], num_flips: int
) -> str:
    """Plain text: both names, the table, the first `num_flips` changed questions of each kind, the warnings."""
    rows = [
        ("benchmark", "questions", "A", "B", "B - A [95%]", "p", "gained", "lost", "verdict"),
        *(_row(each) for each in comparisons)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines[1:1] = ["-" * max(map(len, lines))]
    lines[:0] = [f"A  {a.name}", f"B  {b.name}", ""]
    lines += ["", _LEGEND]
    for comparison in comparisons:
        for kind, flips in (("gained", comparison.gained), ("lost", comparison.lost)):
            if flips[:num_flips]:
                lines += ["", f"{comparison.benchmark}, {kind}:", *(_flip_line(flip) for flip in flips[:num_flips])]
                if len(flips) > num_flips:
                    lines.append(f"  and {len(flips) - num_flips} more (--flips, --json)")
    return "\n".join([*lines, *([""] if warnings else []), *(f"warning: {warning}" for warning in warnings)])


def _row(comparison: Comparison) -> tuple[str, ...]:
    difference = comparison.difference
    return (
        comparison.benchmark, str(comparison.num_questions), f"{100 * comparison.accuracy_a:.1f}",
        f"{100 * comparison.accuracy_b:.1f}",
        f"{difference.value:+.1f} [{difference.low:+.1f}, {difference.high:+.1f}]", f"{comparison.p_value:.2g}",
        f"+{len(comparison.gained)}", f"-{len(comparison.lost)}", comparison.verdict)


def _flip_line(flip: Flip) -> str:
    question = " ".join(flip.question.split())
    return (f"  {flip.id}  {100 * flip.accuracy_a:.0f}% -> {100 * flip.accuracy_b:.0f}%  "
            f"{question if len(question) <= 80 else question[:79] + '…'}")


def _as_json(a: Evaluated, b: Evaluated, comparisons: Sequence[Comparison], warnings: Sequence[str]) -> str:
    sides = {
        side: {"path": str(each.path), "model": each.model, "adapter": each.adapter}
        for side, each in (("a", a), ("b", b))}
    benchmarks = {
        each.benchmark: {**asdict(each), "points_per_question": each.points_per_question, "verdict": each.verdict}
        for each in comparisons}
    return json.dumps(
        {**sides, "benchmarks": benchmarks, "warnings": list(warnings)}, indent=2, ensure_ascii=False, allow_nan=False)


def _common(a: Evaluated, b: Evaluated, wanted: str | None) -> list[str]:
    """Names of the benchmarks to compare, in A's order. Raises: ComparisonError."""
    common = [name for name in a.questions if name in b.questions]
    lists = f"A has {', '.join(a.questions) or 'none'}; B has {', '.join(b.questions) or 'none'}"
    if not common:
        raise ComparisonError(f"no benchmark is in both: {lists}", remedy="evaluate both on the same --benchmarks")
    if wanted is None:
        return common
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    for name in names:
        if name not in common:
            closest = difflib.get_close_matches(name, common, n=1)
            raise ComparisonError(
                f"--benchmarks: {name!r} is not in both: {lists}"
                + (f". Did you mean {closest[0]}?" if closest else f". Remedy: one of {', '.join(common)}"))
    if not names:
        raise ComparisonError(where="--benchmarks", seen=repr(wanted),
                              expected=f"names separated by commas, of {', '.join(common)}")
    return list(dict.fromkeys(names))


if __name__ == "__main__":
    sys.exit(main())
