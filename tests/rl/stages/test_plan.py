"""rl/stages/plan.py and rl/stages/records.py: the order of stages, whose results each takes, and which run again."""

from __future__ import annotations

import datetime
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.run import check_words
from rl.config import RunConfig
from rl.configuration.loading import load
from rl.errors import ConfigError
from rl.paths import project_root
from rl.rejection.config import RejectConfig
from rl.runs.folder import RunFolderError
from rl.stages.config import PipelineConfig
from rl.stages.kinds import Prepared, check_files, prepare_stage
from rl.stages.plan import Result, Stage, fill, make_plan
from rl.stages.records import Decision, PipelineRecords
from rl.stages.run import check_pipeline
from rl.supervised.config import WarmupConfig


def configured(*stages: dict[str, Any], **keys: Any) -> PipelineConfig:
    words = [f"{key}={json.dumps(value)}" for key, value in keys.items()]
    return load(None, [*words, f"stages={json.dumps(stages)}"], PipelineConfig)


def planned(*stages: dict[str, Any], **keys: Any) -> tuple[Stage, ...]:
    return make_plan(configured(*stages, **keys))


WARMUP: dict[str, Any] = {"name": "cold", "kind": "warmup"}
RL: dict[str, Any] = {"name": "rl", "kind": "rl"}
REJECT: dict[str, Any] = {"name": "reject", "kind": "reject"}
EVAL: dict[str, Any] = {"name": "eval", "kind": "eval", "set": {"benchmarks": "gsm8k"}}


def test_a_stage_takes_the_nearest_earlier_policy_unless_it_says_otherwise() -> None:
    plan = planned(WARMUP, RL, REJECT, {**WARMUP, "name": "sft", "policy": "base"}, {**RL, "name": "again"},
                   {**EVAL, "policy": "rl"})
    assert [stage.policy for stage in plan] == [None, 0, 1, None, 3, 1]
    assert [stage.folder.name for stage in plan] == ["1-cold", "2-rl", "3-reject", "4-sft", "5-again", "6-eval"]


def test_a_warm_up_behind_rejection_sampling_reads_its_solutions() -> None:
    plan = planned(RL, REJECT, WARMUP, {**WARMUP, "name": "own", "set": {"data": "mine.jsonl"}})
    assert plan[2].settings["data.path"] == "{reject.solutions}" and plan[2].inputs == (0, 1)
    assert plan[3].settings["data"] == "mine.jsonl" and plan[3].inputs == (2,)
    results = {0: Result(Path("0"), "base", None, "0/adapter"), 1: Result(Path("1"), solutions="1/solutions.jsonl")}
    assert fill(plan[2], results) == {
        "data.path": "1/solutions.jsonl", "model.path": "base", "model.revision": None, "model.adapter": "0/adapter"}


def test_rounds_are_written_out_and_a_name_means_the_latest_stage_of_that_name() -> None:
    plan = planned(
        RL, REJECT, {**WARMUP, "set": {"mix": [{"path": "{reject.solutions}", "ratio": 1}], "note": "{round}"}}, EVAL,
        repeat={"first": "reject", "last": "cold", "rounds": 2}, seed=3)
    assert [stage.name for stage in plan] == ["rl", "reject-1", "cold-1", "reject-2", "cold-2", "eval"]
    assert [stage.policy for stage in plan] == [None, 0, 0, 2, 2, 4]
    assert [stage.settings.get("seed") for stage in plan] == [3000, 3001, 3002, 3003, 3004, None]
    results = {index: Result(Path(str(index)), "m", None, "a", f"{index}.jsonl") for index in range(6)}
    for index, source in ((2, "1.jsonl"), (4, "3.jsonl")):
        settings = fill(plan[index], results)
        assert settings["mix"] == [{"path": source, "ratio": 1}] and settings["data.path"] == source
        assert settings["note"] == str(index // 2) and plan[index].inputs[-1] == index - 1


def test_a_merged_policy_has_no_adapter() -> None:
    plan = planned(
        {**WARMUP, "set": {"merge": True}},
        {**RL, "set": {"teacher.adapter": "{cold.adapter}", "teacher.path": "{cold.model}"}})
    settings = fill(plan[1], {0: Result(Path("0"), "0/model")})
    assert settings["teacher.adapter"] is None and settings["teacher.path"] == settings["model.path"] == "0/model"


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            [RL, {**EVAL, "policy": "rll"}],
            r"stages\.1 \(eval\): policy: saw 'rll', which is no earlier stage; did you mean rl\?",
        ),
        ([{**RL, "policy": "reject"}, REJECT], "which is no earlier stage; expected one of: none, this is the first"),
        (
            [RL, REJECT, {**EVAL, "policy": "reject"}],
            r"\{reject\.model\} of stage reject \(reject\); a model comes of: warmup, rl",
        ),
        ([RL, {**WARMUP, "set": {"data.path": "{rl.solutions}"}}], "a solutions comes of: reject"),
        ([RL, {**REJECT, "set": {"mix": [{"path": "{other.folder}/x"}]}}], "saw 'other', which is no earlier stage"),
        (
            [WARMUP, {**RL, "set": {"teacher": {"path": "{cold.modell}"}}}],
            r"saw \{cold\.modell\}; a stage gives one of: model, adapter",
        ),
        (
            [WARMUP, {**RL, "set": {"model": {"path": "other"}}}],
            r"set\.model\.path, but the stage takes its policy of cold\. Remedy: policy: base",
        ),
    ],
)
def test_a_predecessor_that_there_is_not_is_named(stages: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(*stages)


@pytest.mark.parametrize(("words", "message"), [
    (["stages=[{name: a, kind: rl}, {name: a, kind: eval}]"], "the name 'a' is given twice"),
    (["stages=[{name: a/b}]"], "saw 'a/b'; expected letters, digits"),
    (["stages=[{name: base}]"], "saw 'base'"),
    (["stages=[{name: a, kind: sft}]"], "stages.0.kind: saw 'sft'; expected one of: warmup, rl, reject, eval"),
    (["stages=[{name: a}, {name: b}]", "repeat.first=b", "repeat.last=a"], "b comes after a"),
    (["repeat.last=none"], "repeat.last: 'none' is no stage"),
])
def test_a_configuration_that_makes_no_sense_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(None, words, PipelineConfig)


def test_every_stages_configuration_is_checked_before_anything_runs() -> None:
    for stage, message in (
        (
            {**RL, "set": {"optim": {"lrr": 1}}},
            r"stage rl \(rl\): override optim\.lrr: unknown key; did you mean optim\.lr\?",
        ),
        ({**RL, "config": "configs/no_such.yaml"}, r"stage rl \(rl\): configs/no_such\.yaml: no such file"),
        ({**EVAL, "set": {"benchmarkz": "gsm8k"}}, r"stage eval \(eval\): .*--benchmarkz=gsm8k"),
        ({**EVAL, "set": {}}, r"stage eval \(eval\): --benchmarks: missing; expected names"),
        ({**EVAL, "set": {"benchmarks": "gsm9k"}}, r"stage eval \(eval\): .*gsm9k.*gsm8k"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_pipeline(configured(WARMUP, stage), check_words)


def test_a_reference_means_the_stage_that_the_plan_names() -> None:
    plan = planned(
        {**WARMUP, "name": "sft"}, {**WARMUP, "name": "sft-2"}, {**RL, "set": {"teacher.adapter": "{sft.adapter}"}})
    results = {index: Result(Path(str(index)), "m", None, f"adapter-{index}") for index in range(2)}
    assert fill(plan[2], results)["teacher.adapter"] == "adapter-0" and plan[2].inputs == (0, 1)


def test_solutions_wait_for_the_next_warm_up() -> None:
    plan = planned(RL, REJECT, {**EVAL, "policy": "rl"}, WARMUP, {**WARMUP, "name": "more"})
    assert plan[3].settings["data.path"] == "{reject.solutions}" and "data.path" not in plan[4].settings


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"lora.rank": 8},
            (
                r"stage rl \(rl\): lora\.rank is 8, but the adapter of stage cold \(warmup\) has 16\. Remedy: the same"
                r" in both"
            ),
        ),
        ({"model.quantization": "nf4"}, r"model\.quantization is nf4, but the adapter of stage cold \(warmup\) is"),
        ({"lora.enabled": False}, r"lora\.enabled is False, but the adapter of stage cold \(warmup\) has True"),
    ],
)
def test_an_adapter_that_the_next_stage_cannot_go_on_with_is_told_at_the_start(
    changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_pipeline(configured(WARMUP, {**RL, "set": changed}), check_words)
    check_pipeline(configured({**WARMUP, "set": {"merge": True}}, {**RL, "set": changed}), check_words)


def test_another_prompt_than_the_policys_is_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"stage rl \(rl\) has the prompt boxed .* was trained with question_line"):
        check_pipeline(configured(WARMUP, {**RL, "set": {"prompt": "boxed"}}), check_words)


def test_all_files_that_will_be_wanted_are_named_at_the_start(tmp_path: Path) -> None:
    _, prepared = check_pipeline(configured(
        {**WARMUP, "set": {"data.path": "none.jsonl"}}, {**RL, "set": {"rewards": [{"use": "none.py:f"}]}}, REJECT,
        {**WARMUP, "name": "sft"}, run_dir=str(tmp_path)), check_words)
    with pytest.raises(ConfigError) as caught:
        check_files(prepared)
    assert tuple(map(str, caught.value.problems))[:-1] == (
        "stage cold (warmup): data.path: none.jsonl: no such file", "stage rl (rl): rewards: none.py: no such file")


def test_another_tokenizer_between_stages_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    tokenizer = json.loads((project_root() / "models" / "tiny-arith" / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["spam"] = 1000
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = tmp_path / "rl.yaml"
    config.write_text(f"model: {other}\n")
    message = (
        rf"stage rl \(rl\): {config}: model\.path is {other}, whose tokenizer has \d+ tokens, but the policy comes of "
        r"models/tiny-arith with \d+ .*Remedy: policy: base")
    with pytest.raises(ConfigError, match=message):
        check_pipeline(configured(WARMUP, {**RL, "config": str(config)}), check_words)
    check_pipeline(configured(WARMUP, {**RL, "config": str(config), "policy": "base"}), check_words)
    config.write_text("model: models/tiny-arith\n")
    check_pipeline(configured(WARMUP, {**RL, "config": str(config)}), check_words)


def test_an_evaluation_becomes_the_words_of_its_command() -> None:
    plan = planned(
        RL,
        {
            **EVAL,
            "set": {"benchmarks": ["gsm8k", "math500"], "k": 4, "no-plots": True, "list": False, "temperature": 0.5}})
    results = {0: Result(Path("0"), "base", None, "0/adapter")}
    words = prepare_stage(plan[1], results, check_words).words
    assert words == (
        "-m", "eval.run", "--benchmarks=gsm8k,math500", "-k", "4", "--no-plots", "--temperature=0.5", "--model=base",
        "--adapter=0/adapter", f"--out={plan[1].folder}")


def test_what_an_evaluation_tells_the_chat_template_and_its_stops_come_whole() -> None:
    options = {"benchmarks": "gsm8k", "chat-template-kwargs": {"enable_thinking": False, "date_string": "26 Jul, 2024"},
               "stop-strings": ["Q:", "a, b"]}
    (stage,) = planned({"name": "eval", "kind": "eval", "policy": "base", "set": {**options, "model": "base"}})
    words = prepare_stage(stage, {}, check_words).words
    assert '--stop-strings=["Q:", "a, b"]' in words
    assert '--chat-template-kwargs={"enable_thinking": false, "date_string": "26 Jul, 2024"}' in words


def begun(folder: Path, questions: Path, **settings: Any) -> tuple[PipelineRecords, Prepared]:
    """The record of an RL stage that has been started once."""
    plan = planned({**RL, "set": {"data.path": str(questions), **settings}}, run_dir=str(folder))
    ready = prepare_stage(plan[0], {}, check_words)
    records = PipelineRecords(folder)
    records.begin(ready, {"cold": "start-1"}, anew=True)
    return PipelineRecords(folder), ready  # as the next command reads it


def finish(ready: Prepared, stop_reason: str = "completed") -> None:
    ready.stage.folder.mkdir(exist_ok=True)
    (ready.stage.folder / "summary.json").write_text(json.dumps({"stop_reason": stop_reason}))


def with_settings(ready: Prepared, **changed: Any) -> Prepared:
    return replace(
        ready, settings={**ready.settings, **{key.replace("__", "."): value for key, value in changed.items()}})


def test_a_stage_that_was_done_before_a_key_was_there_stays_done(tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text("{}\n")
    _, ready = begun(tmp_path, questions)
    finish(ready)
    file = tmp_path / "pipeline.json"
    stored = json.loads(file.read_text())
    del stored["stages"]["rl"]["settings"]["prompt.chat_template_kwargs"]
    file.write_text(json.dumps(stored))
    records, inputs = PipelineRecords(tmp_path), {"cold": "start-1"}
    assert records.decide(ready, inputs) == Decision("skip")
    changed = with_settings(ready, prompt__chat_template_kwargs={"enable_thinking": False})
    assert records.decide(changed, inputs).changes == (
        'prompt.chat_template_kwargs.enable_thinking: false, and it was null',)


def test_what_is_done_and_unchanged_is_skipped_and_what_was_cut_off_goes_on(tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text("{}\n")
    records, ready = begun(tmp_path, questions)
    assert records.decide(ready, {"cold": "start-1"}).verdict == "resume"
    finish(ready, "SIGTERM")
    assert records.decide(ready, {"cold": "start-1"}).verdict == "resume"
    finish(ready, "watchdog")
    assert records.decide(ready, {"cold": "start-1"}).verdict == "skip"
    records.end("rl", 2.5, done=True)
    assert PipelineRecords(tmp_path)["rl"].seconds == 2.5
    assert records.decide(ready, {"cold": "start-1"}).verdict == "skip"


@pytest.mark.parametrize("done", [True, False])
def test_what_changed_starts_again_and_says_why(done: bool, tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text("{}\n")
    records, ready = begun(tmp_path, questions)
    if done:
        finish(ready)
        records.end("rl", 1.0, done=True)
    same = {"cold": "start-1"}
    decision = records.decide(with_settings(ready, optim__lr=1e-9), same)
    assert decision.verdict == "start" and decision.changes == ("optim.lr: 1e-09, and it was 0.0005",)
    assert records.decide(ready, {"cold": "start-2"}).changes == ("stage cold ran again",)
    questions.write_text('{"question": "1+1=?"}\n')
    plan = planned({**RL, "set": {"data.path": str(questions)}}, run_dir=str(tmp_path))
    assert records.decide(prepare_stage(plan[0], {}, check_words), same).changes == (
        f"data.path: {questions}: the file differs",
    )
    # What only decides memory and speed changes no result.
    assert records.decide(with_settings(ready, optim__micro_batch_tokens=64), same).verdict == (
        "skip" if done else "resume")


def test_a_result_whose_record_was_cut_off_is_not_taken_for_that_of_other_settings(tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text("{}\n")
    records, ready = begun(tmp_path, questions)
    finish(ready)  # killed before the record said so
    same = {"cold": "start-1"}
    assert records.decide(ready, same).verdict == "skip"
    for changed in ({"steps": 80}, {"watchdog__patience": 5}):
        assert records.decide(with_settings(ready, **changed), same).verdict == "start"


def test_another_number_of_steps_starts_again_and_another_batch_of_memory_goes_on(tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text("{}\n")
    records, ready = begun(tmp_path, questions)
    same = {"cold": "start-1"}
    assert records.decide(with_settings(ready, steps=80), same).verdict == "start"
    assert records.decide(with_settings(ready, watchdog__patience=5), same).verdict == "resume"


def test_rejection_sampling_chooses_anew_from_what_it_has_sampled(tmp_path: Path) -> None:
    plan = planned(REJECT, run_dir=str(tmp_path))
    ready = prepare_stage(plan[0], {}, check_words)
    records = PipelineRecords(tmp_path)
    records.begin(ready, {}, anew=True)
    assert records.decide(with_settings(ready, keep__per_question=1), {}).verdict == "resume"
    assert records.decide(with_settings(ready, keep__per_question=1, sampling__samples=3), {}).verdict == "start"
    assert records.decide(with_settings(ready, generator__urls=["http://other:8000"]), {}) == Decision("resume")


def test_a_result_that_was_removed_is_made_again(tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text("{}\n")
    records, ready = begun(tmp_path, questions)
    records.end("rl", 1.0, done=True)
    assert records.decide(ready, {"cold": "start-1"}).changes == ("its result is no longer there",)


def test_a_file_whose_name_begins_like_a_key_of_the_choice_is_no_choice(tmp_path: Path) -> None:
    questions = tmp_path / "mixed.jsonl"
    questions.write_text("{}\n")
    mixed = tmp_path / "other.jsonl"
    mixed.write_text("{}\n")
    plan = planned(
        {**REJECT, "set": {"data.path": str(questions), "mix": [{"path": str(mixed), "ratio": 1}]}},
        run_dir=str(tmp_path))
    records = PipelineRecords(tmp_path)
    records.begin(prepare_stage(plan[0], {}, check_words), {}, anew=True)
    mixed.write_text("{} \n")
    assert records.decide(prepare_stage(plan[0], {}, check_words), {}).verdict == "resume"
    questions.write_text("{} \n")
    assert records.decide(prepare_stage(plan[0], {}, check_words), {}).verdict == "start"


def test_the_weights_of_a_model_that_an_evaluation_names_count(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"1")
    plan = planned({**EVAL, "policy": "base", "set": {"benchmarks": "gsm8k", "model": str(tmp_path)}})
    before = prepare_stage(plan[0], {}, check_words).files
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert before.keys() == {f"model: {tmp_path}"} and prepare_stage(plan[0], {}, check_words).files != before


def test_a_pipelines_folder_may_be_named_in_another_way(tmp_path: Path) -> None:
    found = []
    for folder in (tmp_path, Path("relative")):
        plan = planned(WARMUP, RL, run_dir=str(folder))
        results = {0: Result(plan[0].folder, "m", None, str(plan[0].folder / "adapter"))}
        found.append(prepare_stage(plan[1], results, check_words).settings)
    assert found[0] == found[1] and found[0]["model.adapter"] == "{run_dir}/1-cold/adapter"


def test_all_stages_have_the_pipelines_day_but_those_that_name_one_and_nothing_runs_again_for_it() -> None:
    plan = planned(WARMUP, {**RL, "set": {"prompt.date": "2024-07-26"}}, REJECT, EVAL, {**EVAL, "name": "base-eval",
                   "policy": "base", "set": {"benchmarks": "gsm8k", "model": "models/tiny-arith"}})
    results = {index: Result(Path(str(index)), "m", solutions="s.jsonl") for index in range(5)}
    day = datetime.date(2026, 11, 28)
    ready = [prepare_stage(stage, results, check_words, read_files=False, day=day) for stage in plan]
    dates = [one.config.prompt.date for one in ready if isinstance(one.config, WarmupConfig | RunConfig | RejectConfig)]
    assert dates == [day, datetime.date(2024, 7, 26), day]
    assert [f"--date={day}" in one.words for one in ready[3:]] == [True, True]  # "m" lies in no run's folder
    assert [one.settings for one in ready] == [
        prepare_stage(stage, results, check_words, read_files=False).settings for stage in plan]


def test_an_evaluation_of_a_run_has_the_runs_day(tmp_path: Path) -> None:
    """It would go before, as an option."""
    (tmp_path / "adapter").mkdir()
    (tmp_path / "config.resolved.yaml").write_text("prompt: {date: '2024-07-26'}\n")
    plan = planned({**EVAL, "set": {"benchmarks": "gsm8k", "adapter": str(tmp_path / "adapter")}})
    ready = prepare_stage(plan[0], {}, check_words, read_files=False, day=datetime.date(2026, 11, 28))
    assert not any(word.startswith("--date") for word in ready.words)


def test_a_pipeline_keeps_the_day_of_its_begin_and_one_without_leaves_each_stage_its_own(tmp_path: Path) -> None:
    records = PipelineRecords(tmp_path)
    assert records.day == datetime.date.today()
    records.day = datetime.date(2024, 7, 26)
    records.write()
    assert PipelineRecords(tmp_path).day == records.day
    (tmp_path / "pipeline.json").write_text('{"stages": {}}')
    assert PipelineRecords(tmp_path).day is None


def test_a_start_has_a_name_of_its_own_and_going_on_keeps_it(tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text("{}\n")
    records, ready = begun(tmp_path, questions)
    first = records["rl"].start
    records.begin(ready, {}, anew=False)
    assert records["rl"].start == first
    records.begin(ready, {}, anew=True)
    assert records["rl"].start != first


def test_a_record_that_was_edited_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pipeline.json").write_text('{"stages": {"rl": {"kind": "rl"}}}')
    with pytest.raises(RunFolderError, match=r"pipeline\.json is not a pipeline's record"):
        PipelineRecords(tmp_path)


def test_the_files_that_count_are_those_that_the_configuration_names(tmp_path: Path) -> None:
    reward, template = tmp_path / "mine.py", tmp_path / "mine.yaml"
    reward.write_text("def brevity(completions, **_): return [0.0] * len(completions)\n")
    template.write_text("description: x\nuser: '{{ question }}'\n")
    plan = planned({**RL, "set": {"rewards": [{"use": f"{reward}:brevity"}], "prompt.template": str(template),
                                  "data.path": "models/tiny-arith/questions/train.jsonl"}})
    files = prepare_stage(plan[0], {}, check_words).files
    assert set(files) == {f"rewards: {reward}:brevity", f"prompt.template: {template}", "model.path: models/tiny-arith",
                          "data.path: models/tiny-arith/questions/train.jsonl"}
    named = planned({**RL, "set": {"prompt": "boxed"}})
    assert "prompt.template: boxed" in prepare_stage(named[0], {}, check_words).files
    assert isinstance(prepare_stage(named[0], {}, check_words).config, RunConfig)
