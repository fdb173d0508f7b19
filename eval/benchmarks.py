"""Names of benchmarks -> their questions with gold answers: one declarative entry each, read from the hub or from local
files.

An entry says where the questions are, how they are asked and graded, and how the literature samples, with its source.
The comment above it says where its facts were read; a revision is pinned only where a public project pins it. What rows
look like is in benchmark_rows.py. To add a benchmark, add an entry to BENCHMARKS.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from eval.benchmark_rows import (
    Columns,
    RowReader,
    answer_list,
    boxed_solution,
    gpqa,
    gsm8k,
    mmlu_pro,
    plain,
    whole_number,
)
from rewards.errors import UserError, named
from rl.config import DataSection
from rl.configuration.problems import closest
from rl.errors import DataError
from rl.paths import resolve_path
from rl.questions.files import FILE_SUFFIXES, LoadedQuestions, load_questions
from rl.questions.generated import PREFIX, held_out_task, is_generated
from rl.records import Json, Question

_OPTION = "--benchmarks"


class BenchmarkError(UserError):
    """There is no such benchmark, or its questions cannot be read; the message names it, what was seen, and the
    remedy."""


@dataclass(frozen=True, slots=True)
class Grader:
    """A reward with values in [0, 1], and its arguments."""

    use: str = "rewards.accuracy:accuracy"
    arguments: Mapping[str, Json] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Protocol:
    """How the literature samples. samples: per question. temperature: 0 is greedy. max_tokens: of a completion. source:
    who does so."""

    samples: int
    temperature: float
    top_p: float
    max_tokens: int
    source: str

    def __str__(self) -> str:
        how = "greedy" if self.temperature == 0 else f"avg@{self.samples}, T {self.temperature:g}, top-p {self.top_p:g}"
        return f"{how}, {self.max_tokens} tokens"


@dataclass(frozen=True, slots=True)
class Sampled:
    """Temperature and top_p for several samples per question, where the user gives none: greedy ones would all be the
    same."""

    temperature: float
    top_p: float


@dataclass(frozen=True, slots=True)
class Benchmark:
    """hub, subset, split, revision: of the Hugging Face data set; revision None: not pinned. local: a file of the
    project, or reasoning_gym:TASK, instead of a data set. files: names to look for in --data-dir, the first that
    exists. prompt: a template of prompts/. num_questions: how many rows the whole benchmark has; None: any. is_gated:
    the hub asks for consent to terms."""

    name: str
    title: str
    protocol: Protocol
    aliases: tuple[str, ...] = ()
    hub: str | None = None
    subset: str | None = None
    split: str = "test"
    revision: str | None = None
    local: str | None = None
    columns: Columns = field(default_factory=Columns)
    rows: RowReader | None = plain
    licence: str = "not stated"
    files: tuple[str, ...] = ()
    prompt: str = "boxed"
    grader: Grader = field(default_factory=Grader)
    sampled: Sampled = Sampled(0.6, 0.95)
    num_questions: int | None = None
    is_gated: bool = False


@dataclass(frozen=True, slots=True)
class LoadedBenchmark:
    """num_rows: rows read; num_duplicates of them were dropped because an earlier one has the same question,
    num_contradicting of those with another answer. source: path of the file, or hub id@revision. digest: SHA-256 of the
    questions, gold answers and columns: equal digests are the same questions, wherever they came from. warnings:
    sentences for the user."""

    benchmark: Benchmark
    questions: tuple[Question, ...]
    num_rows: int
    num_duplicates: int
    num_contradicting: int
    source: str
    digest: str
    warnings: tuple[str, ...]


_EMPO = "EMPO (arXiv:2504.05812) and Oat-Zero (arXiv:2503.20783)"
_GREEDY_3000 = Protocol(1, 0.0, 1.0, 3000, _EMPO)
_QWEN = Protocol(1, 0.0, 1.0, 2048, "Qwen2.5-Math's evaluation code (arXiv:2409.12122)")
_TTRL = Protocol(16, 0.6, 0.95, 3072, "TTRL (arXiv:2504.16084)")
_CHOICE = Grader("rewards.choice:choice")

# Columns, splits and numbers of rows of the data sets were read in the public projects that each entry names, not on
# the hub.
BENCHMARKS: tuple[Benchmark, ...] = (
    # Id, subset, columns: EleutherAI/lm-evaluation-harness; revision: casys-kaist/ELDR and marin-community/marin;
    # licence: openai/grade-school-math; last number or box: QwenLM/Qwen2.5-Math, evaluation/parser.py.
    Benchmark(
        "gsm8k", "GSM8K, test", _QWEN, hub="openai/gsm8k", subset="main",
        revision="740312add88f781978c0658806c59bc2815b9866", columns=Columns(id=None), rows=gsm8k, licence="MIT",
        files=("gsm8k_test.jsonl", "gsm8k.jsonl"), grader=Grader(arguments=MappingProxyType({"last_number": True})),
        num_questions=1319),
    # Id, columns: huggingface/lighteval; revision: allenai/open-instruct; licence: openai/prm800k, whose split this is.
    Benchmark(
        "math500", "MATH-500", _GREEDY_3000, hub="HuggingFaceH4/MATH-500",
        revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        columns=Columns("problem", id="unique_id", others=("subject", "level")), licence="MIT",
        files=("math500.jsonl",), num_questions=500),
    # Id, revision, columns: allenai/open-instruct (its train split; the test split is the original's 5,000); licence:
    # hendrycks/math.
    Benchmark(
        "math", "MATH, the whole test set", _QWEN, aliases=("math_test", "math5000"),
        hub="DigitalLearningGmbH/MATH-lighteval", subset="default", revision="0530c78699ea5e8eb5530600900e1f328b48acad",
        columns=Columns("problem", id=None, others=("level", "type")), rows=boxed_solution, licence="MIT",
        files=("math_test.jsonl", "math.jsonl"), num_questions=5000),
    # Id: huggingface/lighteval; revision, columns: marin-community/marin. Its card states no licence.
    Benchmark(
        "aime24", "AIME 2024, I and II", _TTRL, aliases=("aime2024",), hub="HuggingFaceH4/aime_2024", subset="default",
        split="train", revision="2fe88a2f1091d5048c0f36abc874fb997b3dd99a", columns=Columns("problem"),
        licence="not stated; problems: MAA", files=("aime24.jsonl",), num_questions=30),
    # Id, revision, columns: allenai/open-instruct. TTRL's paper does not have it: the protocol is that of AIME 2024.
    Benchmark(
        "aime25", "AIME 2025, I and II", _TTRL, aliases=("aime2025",), hub="math-ai/aime25",
        revision="563bb8404243c5f09de6ec262f2db674fe5bce9b", columns=Columns("problem"),
        licence="Apache-2.0; problems: MAA", files=("aime25.jsonl",), num_questions=30),
    # Id, revision, columns: allenai/open-instruct. Its card states no licence.
    Benchmark(
        "amc23", "AMC 12 2023, the 40 problems of Qwen, EMPO and SimpleRL-Zoo",
        Protocol(1, 0.0, 1.0, 3000, "EMPO (arXiv:2504.05812)"), aliases=("amc23_40",), hub="math-ai/amc23",
        revision="80815d37005feb82cd7f8fbc6901d5d3eff43057", rows=whole_number, licence="not stated; problems: MAA",
        files=("amc23_40.jsonl", "amc23.jsonl"), num_questions=40),
    # Id, revision, columns, licence: davidzhangsan/LESSER, rl/build_pools.py.
    Benchmark(
        "amc22_23", "AMC 12 2022 and 2023, the 83 problems of AI-MO, TTRL and Oat-Zero", _TTRL,
        aliases=("amc22_23_83", "amc83"), hub="AI-MO/aimo-validation-amc", split="train",
        revision="69d78a4a2c840e82d69af6bc742bda09005f6316", columns=Columns("problem"), rows=whole_number,
        licence="Apache-2.0; problems: MAA", files=("amc22_23_83.jsonl", "amc22_23.jsonl"), num_questions=83),
    # Id, revision, columns: allenai/open-instruct. QwenLM/Qwen2.5-Math's copy has problem and solution. Their graders
    # accept a relative error of 1e-4, ours wants the gold value itself.
    Benchmark(
        "minerva_math", "Minerva Math (OCWCourses)", _GREEDY_3000, aliases=("minerva", "minervamath"),
        hub="math-ai/minervamath", revision="ee46ddc498933b1977577953250ca5c66be64f96", columns=Columns(id=None),
        rows=boxed_solution, licence="not stated; problems: MIT OpenCourseWare",
        files=("minerva_math.jsonl", "minervamath.jsonl"), num_questions=272),
    # Id, subset, revision, columns: casys-kaist/ELDR; columns besides: OpenBMB/OlympiadBench; licence: its card.
    Benchmark(
        "olympiadbench", "OlympiadBench, open-ended English mathematics without pictures (OE_TO_maths_en_COMP)",
        _GREEDY_3000, aliases=("olympiad", "olympiad_bench"), hub="Hothan/OlympiadBench", subset="OE_TO_maths_en_COMP",
        split="train", revision="91184b52131e7fc9455fef848035173aea8cc01a",
        columns=Columns(answer="final_answer", others=("subfield", "answer_type", "unit", "is_multiple_answer")),
        rows=answer_list, licence="Apache-2.0",
        files=("olympiadbench.jsonl", "OE_TO_maths_en_COMP.jsonl", "OE_TO_maths_en_COMP.parquet"), num_questions=674),
    # Id, subset, split, columns: huggingface/lighteval and stanford-crfm/helm; revision: AndreasKaratzas/aiter;
    # licence, terms: its card. Greedy, 4,096 tokens, without examples: QingyangZhang/EMPO,
    # eval_natural/eval/gpqa/run_eval.py.
    Benchmark(
        "gpqa_diamond", "GPQA, diamond (multiple choice)",
        Protocol(1, 0.0, 1.0, 4096, "EMPO's evaluation code (arXiv:2504.05812)"), aliases=("gpqa",),
        hub="Idavidrein/gpqa", subset="gpqa_diamond", split="train",
        revision="633f5ee89ab8ad4522a9f850766b73f62147ffdd",
        columns=Columns("Question", "Correct Answer", "Record ID", others=("High-level domain", "Subdomain")),
        rows=gpqa, licence="CC-BY-4.0", files=("gpqa_diamond.jsonl", "gpqa_diamond.parquet"), prompt="multiple_choice",
        grader=_CHOICE, num_questions=198, is_gated=True),
    # Id, revision, columns: huggingface/lighteval; licence, number of rows: its card; protocol: TIGER-AI-Lab/MMLU-Pro,
    # evaluate_from_local.py, which shows five worked examples before the question.
    Benchmark(
        "mmlu_pro", "MMLU-Pro (multiple choice, up to ten options)",
        Protocol(1, 0.0, 1.0, 2048, "MMLU-Pro's evaluation code (arXiv:2406.01574), there with five worked examples"),
        aliases=("mmlupro",), hub="TIGER-Lab/MMLU-Pro", subset="default",
        revision="3373e0b32277875b8db2aa555a333b78a08477ea", columns=Columns(id="question_id", others=("category",)),
        rows=mmlu_pro, licence="MIT", files=("mmlu_pro.jsonl", "mmlu_pro.parquet"), prompt="multiple_choice",
        grader=_CHOICE, num_questions=12032),
    # Our own; see models/README.md.
    Benchmark(
        "tiny_arith", "Held-out sums for models/tiny-arith", Protocol(16, 1.0, 1.0, 48, "our own"),
        local="models/tiny-arith/questions/held_out.jsonl", licence="Apache-2.0", prompt="question_line",
        sampled=Sampled(1.0, 1.0), num_questions=512),
)


def benchmark_names() -> list[str]:
    return [benchmark.name for benchmark in BENCHMARKS]


def find_benchmark(name: str, data_dir: Path | None = None) -> Benchmark:
    """The entry of this name or alias (case, - and _ do not matter); reasoning_gym:TASK; or a JSONL or parquet file
    with question, answer and, if it likes, id, which is called by its stem, also one that lies in data_dir and is named
    without its ending. That a file or a task exists is seen when it is loaded. Raises BenchmarkError."""
    if is_generated(name):
        task = name.removeprefix(PREFIX)
        return Benchmark(
            name, f"reasoning-gym: {task}", Protocol(16, 1.0, 1.0, 1024, "our own"), local=name, rows=None,
            grader=Grader("rewards.reasoning_gym:solved"), sampled=Sampled(1.0, 1.0),
            licence="Apache-2.0 (reasoning-gym)")
    if name.lower().endswith(FILE_SUFFIXES):
        return Benchmark(Path(name).stem, name, Protocol(1, 0.0, 1.0, 2048, "our own"), local=name, rows=_any_row)
    known = {
        _plain_name(other): benchmark for benchmark in BENCHMARKS for other in (benchmark.name, *benchmark.aliases)}
    if (found := known.get(_plain_name(name))) is not None:
        return found
    for suffix in FILE_SUFFIXES if data_dir is not None else ():
        if (path := data_dir.expanduser() / f"{name}{suffix}").is_file():  # type: ignore[union-attr]
            return Benchmark(
                name, str(path), Protocol(1, 0.0, 1.0, 2048, "our own"), local=str(path.resolve()), rows=_any_row)
    near = closest(_plain_name(name), list(known))
    raise BenchmarkError(
        f"{named(_OPTION)}: there is no benchmark {name!r}{f'; did you mean {known[near].name}?' if near else '.'} "
        f"There are: {', '.join(benchmark_names())}; reasoning_gym:TASK; and any file that ends in "
        f"{', '.join(FILE_SUFFIXES)}, with question and answer in each row")


def load_benchmark(benchmark: Benchmark, data_dir: Path | None = None, limit: int | None = None) -> LoadedBenchmark:
    """The benchmark's questions, each with a gold answer, in its order.

    data_dir: read one of benchmark.files there and nothing from the hub. limit: only the first so many. Raises
    BenchmarkError: no such folder or file, a row without a question or an answer (with file and line), a hub that
    cannot be reached."""
    if limit is not None and limit < 1:
        raise BenchmarkError(
            where=named("--limit"), seen=str(limit),
            expected=f"a number of questions >= 1, or no {named('--limit')} for all")
    path, remedy = _source(benchmark, data_dir)
    is_from_hub = path == benchmark.hub
    subset, revision = (benchmark.subset, benchmark.revision) if is_from_hub else (None, None)
    data = DataSection(
        path=path, task=held_out_task(path, {}), split=benchmark.split, subset=subset, revision=revision, limit=limit)
    rows = benchmark.rows
    try:
        loaded = load_questions(data, adapter=None if rows is None else lambda row: rows(row, benchmark.columns))
    except DataError as error:
        (problem,) = error.renamed(lambda key: _OPTION if key.startswith("data.") else key).problems
        where = f"{benchmark.name}: {problem.where}"
        raise BenchmarkError(replace(problem, where=where, remedy=remedy or problem.remedy)) from None
    source = path if not is_from_hub else f"{path}@{revision or 'main, not pinned'}"
    counts = loaded.counts
    return LoadedBenchmark(
        benchmark, loaded.questions, counts.num_rows, counts.num_duplicates, counts.num_contradicting, source,
        _digest(loaded.questions), tuple(_warnings(benchmark, loaded, source, limit)))


def list_benchmarks() -> str:
    """The table of `python -m eval.run --list`."""
    table = [("name", "questions", "from", "licence", "protocol of the literature"), *(
        (benchmark.name, str(benchmark.num_questions), benchmark.hub or benchmark.local or "", benchmark.licence,
         f"{benchmark.protocol} ({benchmark.protocol.source})") for benchmark in BENCHMARKS)]
    widths = [max(len(row[i]) for row in table) for i in range(4)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]) for row in table]
    aliases = ", ".join(f"{alias} ({benchmark.name})" for benchmark in BENCHMARKS for alias in benchmark.aliases)
    files = ", ".join(benchmark.files[0] for benchmark in BENCHMARKS if benchmark.files)
    suffixes = ", ".join(FILE_SUFFIXES)
    return "\n".join([
        *lines, "", f"Other names: {aliases}.",
        f"Besides: reasoning_gym:TASK, and any file that ends in {suffixes}, with question and answer in each row.",
        f"With --data-dir FOLDER files are read instead of the hub: {files}."])


def _any_row(row: Mapping[str, Json], columns: Columns) -> dict[str, Json]:
    """Somebody's own file: every column is kept, since their grader or template may want it."""
    return {**row, **plain(row, columns)}


def _plain_name(name: str) -> str:
    return "".join(character for character in name.lower() if character not in "-_ ")


def _source(benchmark: Benchmark, data_dir: Path | None) -> tuple[str, str]:
    """What load_questions is to read, and the remedy that messages about it name, where it is not their own."""
    if benchmark.local is not None:
        if is_generated(benchmark.local):
            return benchmark.local, ""
        path = resolve_path(benchmark.local)
        beside = None if data_dir is None or path.is_absolute() else data_dir.expanduser() / path
        return str(beside if beside is not None and not path.exists() and beside.exists() else path), ""
    assert benchmark.hub is not None
    if data_dir is not None:
        return str(_local_file(benchmark, data_dir.expanduser())), ""
    terms = (
        "; the hub gives it only to users who are logged in and have accepted its terms" if benchmark.is_gated else "")
    remedy = (
        f"{named('--data-dir', 'FOLDER')} with a file {benchmark.files[0]} in it (JSONL: question, answer, id), or a "
        f"network that reaches the hub{terms}")
    return benchmark.hub, remedy


def _local_file(benchmark: Benchmark, folder: Path) -> Path:
    wanted = ", ".join(benchmark.files)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise BenchmarkError(
            f"{folder} {what}", where=named("--data-dir"), expected=f"a folder with {wanted} ({benchmark.name})",
            remedy=f"name such a folder, or leave {named('--data-dir')} out to read the hub")
    for name in benchmark.files:
        if (folder / name).is_file():
            return folder / name
    there = sorted(entry.name for entry in folder.iterdir() if entry.suffix in FILE_SUFFIXES)
    stems = [Path(file).stem for file in benchmark.files]
    near = [name for name in there if difflib.get_close_matches(Path(name).stem, stems, 1, 0.6)]
    seen = f"near ones there: {', '.join(near)}" if near else f"it has: {', '.join(there[:20]) or 'no such files'}"
    raise BenchmarkError(
        f"{folder} has no file for {benchmark.name}; looked for {wanted}; {seen}", where=named("--data-dir"),
        remedy="put the benchmark there under one of these names (JSONL: question, answer, id), or name a file with "
        f"{named('--benchmarks', 'PATH')}")


def _warnings(benchmark: Benchmark, loaded: LoadedQuestions, source: str, limit: int | None) -> list[str]:
    counts, warnings = loaded.counts, []
    if limit is None and benchmark.num_questions not in (None, counts.num_rows):
        warnings.append(
            f"{benchmark.name}: {source} has {counts.num_rows} rows; {benchmark.title} has "
            f"{benchmark.num_questions}. This copy differs: do not compare its accuracy with published ones")
    if counts.num_duplicates:
        warnings.append(
            f"{benchmark.name}: {counts.num_duplicates} of {counts.num_rows} rows repeat an earlier question and are "
            f"left out ({counts.num_contradicting} of them with another answer)")
    return warnings


def _digest(questions: tuple[Question, ...]) -> str:
    digest = hashlib.sha256()
    for question in questions:
        row = [question.id, question.text, question.answer, dict(question.columns)]
        digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()
