"""What a person may get wrong: one message that names it and the remedy, exit code 2, no traceback, and nothing saved
is lost."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from rl.checkpoint import list_checkpoints, verify
from rl.paths import project_root
from rl.runs.folder import RunFolder
from rl.train import main
from tests.reference.fork import Fork
from tests.reference.whole_run import (
    GRPO,
    SMALL,
    full_disk,
    in_process,
    metrics_of,
    summary_of,
    train,
    trained_steps,
)

REWARDS = '''
import math

def raises(*, completions, **columns):
    return [1 / (len(text) - len(text)) for text in completions]

def too_few(*, completions, **columns):
    return [1.0]

def not_a_number(*, completions, **columns):
    return [math.nan for _ in completions]

def infinite(*, completions, **columns):
    return [math.inf for _ in completions]

def nothing(*, completions, **columns):
    pass

def other_signature(texts):
    return [0.0 for _ in texts]

constant = 3
'''
FILES = {
    "rewards.py": REWARDS,
    "broken.py": "def reward(:\n",
    "empty.jsonl": "",
    "malformed.jsonl": '{"question": "1+1=?"}\n{"question": "1+\n',
    "other_column.jsonl": '{"problem": "1+1=?"}\n',
    "no_answer.jsonl": '{"question": "1+1=?", "answer": "2"}\n{"question": "1+2=?"}\n',
    "blank.jsonl": '{"question": "1+1=?"}\n{"question": "  "}\n',
    "array.jsonl": "[1, 2]\n",
    "text.txt": "1+1=?\n",
    "not.parquet": "PAR",
    "config.yaml": "optim:\n  weight_decay: heavy\nstep: 3\n",
    "yaml.yaml": "optim: {lr: 1\n",
}
# Words of the command, with {d} for the folder of FILES, and parts of the message.
BEFORE_THE_RUN = {
    "missing file": (["data.path={d}/nothing.jsonl"], ["{d}/nothing.jsonl: no such file", "data.path"]),
    "missing held-out file": (["evaluation.path=nothing.jsonl"], ["nothing.jsonl: no such file", "evaluation.path"]),
    "missing config": (["--config", "{d}/nothing.yaml"], ["{d}/nothing.yaml: no such file"]),
    "empty file": (["data.path={d}/empty.jsonl"], ["{d}/empty.jsonl: has no questions", "expected at least one row"]),
    "malformed line": (
        ["data.path={d}/malformed.jsonl"],
        ["{d}/malformed.jsonl:2: malformed JSON at column", "expected one JSON object"]),
    "no object": (["data.path={d}/array.jsonl"], ["{d}/array.jsonl:1: saw '[1, 2]'; expected a JSON object"]),
    "other ending": (["data.path={d}/text.txt"], ["saw the ending '.txt'; expected one of"]),
    "broken parquet": (["data.path={d}/not.parquet"], ["{d}/not.parquet: not a readable parquet file"]),
    "missing column": (
        ["data.path={d}/other_column.jsonl"],
        [":1: no 'question' field; the row has: problem", "data.columns.question="]),
    "empty question": (["data.path={d}/blank.jsonl"], ["{d}/blank.jsonl:2: field 'question': the question is empty"]),
    "no answer": (
        [*GRPO, "data.path={d}/no_answer.jsonl"],
        ["{d}/no_answer.jsonl", "needs a gold answer, and question 'line-2' has none"]),
    "answers not read": (
        [*GRPO, "data.columns.answer=null"],
        ["data.columns.answer: null reads no answers", "Remedy: data.columns.answer="]),
    "held-out without answers": (
        ["evaluation.path={d}/no_answer.jsonl"],
        ["evaluation.path", "question 'line-2' has none; held-out accuracy needs one in every row. Remedy: evaluation."
                            "columns.answer=NAME"]),
    "missing reward file": (["rewards.0.use={d}/nothing.py:reward"], ["there is no file {d}/nothing.py"]),
    "missing reward module": (["rewards.0.use=rewards.nothing:reward"], ["there is no module 'rewards.nothing'"]),
    "missing reward function": (["rewards.0.use={d}/rewards.py:raise"], ["has no 'raise'; did you mean 'raises'?"]),
    "reward that is no function": (["rewards.0.use={d}/rewards.py:constant"], ["constant is int, expected a function"]),
    "reward without a colon": (
        ["rewards.0.use={d}/rewards.py"], ["names no function; write package.module:name or file.py:name"]),
    "reward file with an error": (["rewards.0.use={d}/broken.py:reward"], ["broken.py raised SyntaxError"]),
    "unknown key": (["optim.lrn=1"], ["optim.lrn: unknown key; did you mean optim.lr?"]),
    "unknown key and wrong type in a file": (
        ["--config", "{d}/config.yaml"],
        ["optim.weight_decay: saw 'heavy'", "step: unknown key; did you mean steps?"]),
    "malformed YAML": (["--config", "{d}/yaml.yaml"], ["{d}/yaml.yaml:2: column 1: not valid YAML"]),
    "wrong type": (["steps=many"], ["steps: saw 'many'; expected a whole number >= 1"]),
    "group of one": (["sampling.group_size=1"], ["sampling.group_size: saw 1; expected a whole number >= 2"]),
    "crossing thresholds": (
        ["selection.low=0.9", "selection.high=0.2"],
        ["selection: the thresholds cross: low 0.9 must be below high 0.2"]),
    "longer than the context": (
        ["sampling.max_completion_tokens=300"], ["above the model's context of 256", "max_completion_tokens=242"]),
    "all prompts too long": (["data.max_prompt_tokens=2"], ["longer than data.max_prompt_tokens=2", "Remedy: a "]),
    "unknown template": (["prompt=questionline"], ["no template 'questionline'; did you mean question_line?"]),
    "no chat template": (["prompt.chat_template=always"], ["the tokenizer has no chat template; saw always"]),
    "missing model": (["model=/nothing/there"], ["model.path: there is no folder /nothing/there"]),
    "misspelt model": (
        ["model=models/tiny-arit"],
        ["model.path: there is no folder models/tiny-arit; did you mean models/tiny-arith?"]),
    "model without its folder": (["model=tiny-arith"], ["did you mean models/tiny-arith?; expected a folder"]),
    "model not made yet": (["model=models/not-made-yet"], ["model.path: there is no folder", "models/not-made-yet"]),
    "model without config": (["model={d}"], ["holds no config.json; expected a Hugging Face checkpoint"]),
    "unknown sampler": (
        ["generator=vlm"], ["generator.backend: saw 'vlm'; expected one of: transformers, vllm, vllm_server"]),
    "stop token outside the vocabulary": (
        ["sampling.stop_token_ids=[99999]"], ["sampling.stop_token_ids: saw 99999; expected ids below"]),
    "unknown LoRA targets": (
        ["lora.targets=[nothing]"],
        ["lora.targets: ['nothing'] cannot be adapted", "Remedy: lora.targets=all-linear"]),
    "missing adapter": (["model.adapter=/nothing"], ["model.adapter: there is no folder /nothing"]),
    "attention that is not installed": (
        ["model.attention=flash_attention_3"], ["cannot be loaded", "model.attention=auto"]),
    "too large for the memory": (
        ["generator.max_sequences=100000000"], ["GB free; the largest part is cache", "generator.max_sequences"]),
    "tracker that is not installed": (["tracking.trackers=[wandb]"], ["wandb is not installed. Remedy: pip install"]),
    "nothing to resume": (["--resume", "nothing"], ["no run 'nothing'", "runs there: "]),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert train(folder, "steps=2", "checkpoint.every=1", "evaluation.path=null") == 0
    return folder


def contents(folder: Path) -> dict[str, str]:
    """Every file below the folder with its digest."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()}


def the_message(capfd: pytest.CaptureFixture[str]) -> str:
    """What is on stderr, which must be one error and no traceback."""
    shown = capfd.readouterr()
    assert shown.err.startswith("error: ") and ("\n" + shown.err).count("\nerror: ") == 1, shown.err
    assert "Traceback" not in shown.err + shown.out
    return shown.err


@pytest.mark.parametrize("name", BEFORE_THE_RUN)
def test_bad_input_is_refused_before_anything_is_touched(
    name: str, files: Path, finished_run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words, parts = BEFORE_THE_RUN[name]
    before = contents(finished_run.parent)
    assert train(finished_run, *(word.replace("{d}", str(files)) for word in words)) == 2
    message = the_message(capfd)
    for part in parts:
        assert part.replace("{d}", str(files)) in message
    assert contents(finished_run.parent) == before


SERVERS = "generator={backend: vllm_server, urls: ['http://localhost:1'], sync: adapter}"


@pytest.mark.parametrize(("words", "part"), [
    (["lora.targets=[nothing]"], "lora.targets: ['nothing'] cannot be adapted"),
    (["lora.targets=[lm_head]"], "lora.targets: this model's output layer and input embedding are one weight"),
    (["model.adapter=nowhere"], "there is no folder nowhere"),
    ([SERVERS, "lora.rank=1024"], "lora.rank: 1024, but vLLM serves adapters of rank 512 at most"),
    ([SERVERS, "lora.enabled=false"], "generator.sync: adapter, but lora.enabled=false"),
])
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # PEFT's
def test_the_dry_run_refuses_an_adapter_that_the_start_would_refuse(
    words: list[str], part: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """By names and shapes; no weights are loaded."""
    for more in ([], ["--dry-run"]):
        assert train(tmp_path / "run", *words, *more) == 2
        assert part in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("function", "part"), [
    ("raises", "raised ZeroDivisionError: division by zero at {d}/rewards.py:5"),
    ("too_few", "returned 1 values for 4 completions; return one number or None for each"),
    ("not_a_number", "value 0 is nan, expected a finite number"),
    ("infinite", "value 0 is inf, expected a finite number"),
    ("nothing", "returned NoneType None, expected a list with one number for each completion"),
    ("other_signature", "cannot be called: "),
])
def test_a_wrong_reward_is_named_with_its_question_and_the_earlier_run_is_kept(
    function: str, part: str, files: Path, tmp_path: Path, finished_run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(finished_run, run_dir)
    assert train(run_dir, f"rewards.0.use={files}/rewards.py:{function}") == 2
    message = the_message(capfd)
    assert part.replace("{d}", str(files)) in message
    assert f"reward {function!r} ({files}/rewards.py:{function}), question 'train-" in message
    assert f"go on with --resume {run_dir}" in message
    assert contents(tmp_path / "run.1") == contents(finished_run)


def test_a_mended_reward_goes_on_from_what_was_saved(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    reward = tmp_path / "late.py"
    body = ("def late(*, question, completions, **columns):\n    calls.append(question)\n    {}\n"
            "    return [float(len(c) % 3) for c in completions]\n")
    reward.write_text("calls = []\n" + body.format("assert len(calls) < 20"))
    words = (f"rewards.0.use={reward}:late", "steps=4", "checkpoint.every=1")
    assert train(tmp_path / "run", *words) == 2
    assert "raised AssertionError" in the_message(capfd)
    assert trained_steps(tmp_path / "run") == [1, 2]
    reward.write_text("calls = []\n" + body.format("pass"))
    mended = Fork(lambda: train(tmp_path / "run", *words, "--resume", str(tmp_path / "run"))).finished()
    assert mended.returncode == 0
    assert trained_steps(tmp_path / "run") == [1, 2, 3, 4]


@pytest.mark.parametrize("file", ["adapter/adapter_model.safetensors", "optimizer.pt", "state.json", "manifest.json"])
def test_a_checkpoint_that_is_cut_short_is_refused_and_the_one_before_goes_on(
    file: str, tmp_path: Path, finished_run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(finished_run, run_dir, symlinks=True)
    newest = RunFolder(run_dir).checkpoints / "step-000002"
    (newest / file).write_bytes((newest / file).read_bytes()[:-40])
    before = contents(run_dir)
    words = ("steps=3", "checkpoint.every=1", "evaluation.path=null", "--resume", str(run_dir))
    assert train(run_dir, *words) == 2
    message = the_message(capfd)
    assert (
        f"checkpoint {newest} is damaged: " in message
        and f"Remedy: remove {newest} to go on from step-000001" in message)
    assert contents(run_dir) == before
    shutil.rmtree(newest)
    assert train(run_dir, *words) == 0
    assert trained_steps(run_dir) == [1, 2, 3]


@pytest.mark.parametrize(("word", "part"), [
    ("optim.lr=1e-3", "optim.lr: 0.0005 then, 0.001 now"),
    ("sampling.group_size=8", "sampling.group_size: 4 then, 8 now"),
    ("steps=1", "is at step 2, beyond steps=1. Remedy: steps=2 or more"),
])
def test_a_checkpoint_of_another_configuration_is_refused(
    word: str, part: str, tmp_path: Path, finished_run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = contents(finished_run)
    assert (
        train(
            finished_run, "steps=3", "checkpoint.every=1", "evaluation.path=null", "--resume", str(finished_run), word)
        == 2)
    message = the_message(capfd)
    assert part in message and "Remedy: " in message
    assert contents(finished_run) == before


def test_a_base_model_that_is_cut_short_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model"
    shutil.copytree(project_root() / "models" / "tiny-arith", model, ignore=shutil.ignore_patterns("questions"))
    weights = (model / "model.safetensors").read_bytes()
    for length in (4, 1000, len(weights) - 1000):
        (model / "model.safetensors").write_bytes(weights[:length])
        assert train(tmp_path / "run", f"model={model}") == 2
        message = the_message(capfd)
        assert "model.path: " in message and str(model) in message and "Remedy: " in message
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("make", "part"), [
    ("file", "is a file, not a folder; choose another with run_dir="),
    ("strangers", "is not empty and holds no run (it has thesis.tex); choose a new folder"),
    ("in a file", "cannot be made: Not a directory; choose another with run_dir="),
])
def test_a_folder_that_cannot_hold_a_run_is_refused_and_left_alone(
    make: str, part: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    if make == "strangers":
        run_dir.mkdir()
        (run_dir / "thesis.tex").write_text("years of work")
    else:
        run_dir.write_text("years of work")
    before = contents(tmp_path)
    assert train(run_dir / "deeper" if make == "in a file" else run_dir) == 2
    assert part in the_message(capfd)
    assert contents(tmp_path) == before


def test_a_full_disk_while_saving_leaves_the_checkpoints_before_and_the_run_goes_on_later(
    tmp_path: Path, finished_run: Path
) -> None:
    """A limit on the size of a file fails like a full disk, in the middle of writing the optimiser's state."""
    run_dir = tmp_path / "run"
    shutil.copytree(finished_run, run_dir, symlinks=True)
    words = ("steps=3", "checkpoint.every=1", "evaluation.path=null", "--resume", str(run_dir))
    saved = {path.name: contents(path) for path in list_checkpoints(RunFolder(run_dir).checkpoints)}
    with full_disk(800_000):
        full = in_process(main, *SMALL, f"run_dir={run_dir}", *words)
    assert full.returncode == 2
    assert (
        full.stderr.startswith("error: could not write checkpoint ") and full.stderr.count("error: ") == 1
    ), full.stderr
    assert "Earlier checkpoints are untouched: step-000001, step-000002. Remedy: free disk space" in full.stderr
    assert "Traceback" not in full.stderr
    assert {path.name: contents(path) for path in list_checkpoints(RunFolder(run_dir).checkpoints)} == saved
    for path in list_checkpoints(RunFolder(run_dir).checkpoints):
        verify(path)
    assert train(run_dir, *words) == 0
    assert trained_steps(run_dir) == [1, 2, 3]


def test_a_full_disk_while_logging_leaves_whole_lines(tmp_path: Path) -> None:
    limit = 30_000
    # An adapter so small that the checkpoint before the first step fits.
    words = ("steps=9", "checkpoint.every=9", "evaluation.path=null", "lora.rank=1", "lora.targets=[q_proj]")
    with full_disk(limit):
        full = in_process(main, *SMALL, f"run_dir={tmp_path / 'run'}", *words)
    assert full.returncode == 2
    assert full.stderr.startswith("error: cannot append to ") and full.stderr.count("error: ") == 1, full.stderr
    assert "the lines before are whole. Remedy: free some space there" in full.stderr and "Traceback" not in full.stderr
    lines = RunFolder(tmp_path / "run").rollouts_file.read_text().splitlines()
    assert 0 < sum(len(line) + 1 for line in lines) <= limit
    assert all(json.loads(line)["completions"] for line in lines)


def test_questions_that_are_left_out_are_counted_on_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = ["1+1=?", "1+1=?", "1+1+1+1+1+1+1+1+1=?", *(f"{n}-3=?" for n in range(4, 12))]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"question": text}) + "\n" for text in rows))
    assert (
        train(tmp_path / "run", f"data.path={path}", "data.max_prompt_tokens=15", "steps=1", "evaluation.path=null")
        == 0)
    assert "questions left out: 1 duplicates, 1 too long" in capfd.readouterr().out


def test_held_out_questions_among_the_training_questions_are_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    questions = "models/tiny-arith/questions/train_with_answers.jsonl"
    assert train(tmp_path / "run", *GRPO, f"evaluation.path={questions}", "steps=1") == 0
    shown = capfd.readouterr()
    assert (
        shown.err.startswith("warning: 16 of 16 held-out questions are training questions too")
        and shown.err.count("\n") == 1)
    assert len(metrics_of(tmp_path / "run")) == 3 and summary_of(tmp_path / "run")["steps"] == 1


def test_a_checkpoint_without_weights_is_refused_with_the_key_and_the_remedy(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "no_weights"
    folder.mkdir()
    for file in (project_root() / "models/tiny-arith").glob("*.json"):
        shutil.copy(file, folder)
    assert train(tmp_path / "run", f"model={folder}") == 2
    message = the_message(capfd)
    assert "model.path" in message and "Remedy: a whole checkpoint" in message


def changed_model(folder: Path, **changes: object) -> Path:
    """models/tiny-arith with other entries in the JSON files that the names of `changes` stand for."""
    shutil.copytree(project_root() / "models" / "tiny-arith", folder, ignore=shutil.ignore_patterns("questions"))
    for name, entries in changes.items():
        file = folder / f"{name}.json"
        stored = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps({**stored, **dict(entries)}))  # type: ignore[call-overload]
    return folder


@pytest.mark.parametrize(("changes", "part"), [
    ({"tokenizer_config": {"chat_template": "{% if messages"}}, "model.path: its chat template cannot be read ("),
    ({"tokenizer_config": {"chat_template": "{{ messages + 1 }}"}}, "model.path: its chat template cannot be read ("),
    ({"tokenizer_config": {"chat_template": [{"name": "rag", "template": "x"}, {"name": "tools", "template": "y"}]}},
     "model.path: its tokenizer has the chat templates rag, tools and no default"),
    ({"config": {"vocab_size": 120}}, "has the shape (99, 128), and by its config.json it has (120, 128)"),
    ({"tokenizer_config": {"eos_token": None}, "config": {"eos_token_id": None},
      "generation_config": {"eos_token_id": None}}, "names no end-of-sequence token"),
])
def test_the_dry_run_refuses_a_model_that_the_start_would_refuse(
    changes: dict[str, object], part: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = changed_model(tmp_path / "model", **changes)
    for words in ([], ["--dry-run"]):
        assert train(tmp_path / "run", f"model={model}", *words) == 2
        assert part in the_message(capfd)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("function", "part"), [
    ("raises", "raised ZeroDivisionError"), ("too_few", "returned 1 values for 4 completions"),
    ("other_signature", "cannot be called: ")])
def test_the_dry_run_calls_each_reward_once_on_a_real_row(
    function: str, part: str, files: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", f"rewards.0.use={files}/rewards.py:{function}", "--dry-run") == 2
    message = the_message(capfd)
    assert part in message and f"reward {function!r} ({files}/rewards.py:{function}), question 'train-" in message
    assert not (tmp_path / "run").exists()


def test_a_server_that_cannot_be_reached_does_not_move_the_earlier_run_aside(
    finished_run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = contents(finished_run.parent)
    servers = "generator={backend: vllm_server, urls: ['http://localhost:1'], start_timeout_s: 0.5}"
    assert train(finished_run, "evaluation.path=null", servers) == 2
    assert "no vLLM server answers at http://localhost:1" in the_message(capfd)
    assert contents(finished_run.parent) == before
