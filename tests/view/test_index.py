import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from tests.reference.viewed import HOSTILE, lines_of, write_evaluation, write_run
from view.index import MAX_FOUND, PIECE_BYTES, GroupIndex, Query, StaleIndexError, cache_file
from view.sources import ViewError


def indexed(path: Path, cache: Path | None = None) -> GroupIndex:
    index = GroupIndex("run", cache)
    while not index.advance([path / "rollouts.jsonl"]):
        pass
    return index


def test_every_line_is_a_row_with_the_numbers_of_a_literal_read(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 7)
    rows = indexed(run).rows(Query(), 0, 100)
    lines = lines_of(run / "rollouts.jsonl")
    assert len(rows) == len(lines) == 14
    for row, line in zip(rows, lines, strict=True):
        rewards = [one["reward"] for one in line["completions"]]
        lengths = [one["num_tokens"] for one in line["completions"]]
        right = [one["answer"] == line["answer"] for one in line["completions"]]
        assert (row["step"], row["question_id"], row["refused"]) == (line["step"], line["question_id"], line["refused"])
        assert row["reward"] == sum(rewards) / 4
        assert (row["reward_min"], row["reward_max"]) == (min(rewards), max(rewards))
        assert (row["tokens"], row["num_right"], row["num"]) == (sum(lengths) / 4, sum(right), 4)
        assert row["entropy"] == line["normalised_entropy"]
        assert row["num_truncated"] == [one["finish_reason"] for one in line["completions"]].count("length")


def test_a_group_is_what_its_line_says(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 5)
    index = indexed(run)
    for row, line in zip(index.rows(Query()), lines_of(run / "rollouts.jsonl"), strict=True):
        group = index.group(row["id"])
        assert [one.text for one in group.completions] == [one["text"] for one in line["completions"]]
        assert [one.advantage for one in group.completions] == [one["advantage"] for one in line["completions"]]


@pytest.mark.parametrize(("query", "holds"), [
    (Query(first_step=3, last_step=4), lambda line, right: 3 <= line["step"] <= 4),
    (Query(refused="equal_rewards"), lambda line, right: line["refused"] == "equal_rewards"),
    (Query(refused="no"), lambda line, right: line["refused"] is None),
    (Query(right="all"), lambda line, right: all(right)),
    (Query(right="some"), lambda line, right: any(right) and not all(right)),
    (Query(right="majority_wrong"), lambda line, right: sum(right) == 1),
    (Query(reward_min=0.9), lambda line, right: all(one["reward"] == 1 for one in line["completions"])),
    (Query(question_id="q2"), lambda line, right: line["question_id"] == "q2"),
    (Query(text="NO IDEA"), lambda line, right: any("no idea" in one["text"] for one in line["completions"])),
    (Query(text="\\boxed{8}", first_step=6), lambda line, right: line["step"] >= 6 and line["question_id"] != "even"),
    (Query(text="finish_reason"), lambda line, right: False),
], ids=[
    "steps", "equal", "trained", "right", "some_right", "majority_wrong", "reward", "question", "text", "box", "key"])
def test_a_filter_finds_what_a_literal_read_finds(tmp_path: Path, query: Query, holds: object) -> None:
    assert callable(holds)
    run = write_run(tmp_path / "run", 9)
    wanted = [number for number, line in enumerate(lines_of(run / "rollouts.jsonl"))
              if holds(line, [one["answer"] == line["answer"] for one in line["completions"]])]
    index = indexed(run)
    positions = {row["id"]: number for number, row in enumerate(index.rows(Query()))}
    assert [positions[row["id"]] for row in index.rows(query)] == wanted
    assert index.count(query) == (len(wanted), False)


def test_pages_of_a_sorted_search_join_to_the_whole(tmp_path: Path) -> None:
    index = indexed(write_run(tmp_path / "run", 9))
    query = Query(text="because", sort="reward", descending=True)
    whole = index.rows(query)
    assert [row["reward"] for row in whole] == sorted((row["reward"] for row in whole), reverse=True)
    assert [row for offset in range(0, 18, 5) for row in index.rows(query, offset, 5)] == whole


def test_a_text_is_found_as_it_is_written_with_quotes_line_ends_and_letters_beyond_ascii(tmp_path: Path) -> None:
    texts = ['she said "nein"\n\tthen ü', "日本", HOSTILE, "plain"]
    index = indexed(write_run(tmp_path / "run", 1, texts=texts))
    for text in ('"nein"\n\tthen ü', "日本", "<img src=x", "\ud83d"):
        assert index.count(Query(text=text)) == (1, False), text
    assert index.count(Query(text="本日")) == (0, False)


def test_what_a_run_appends_is_indexed_and_a_line_that_is_being_written_is_not(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 2)
    index = indexed(run)
    line = (run / "rollouts.jsonl").read_bytes().splitlines(keepends=True)[0]
    with (run / "rollouts.jsonl").open("ab") as file:
        file.write(line[:50])
        file.flush()
        assert index.advance([run / "rollouts.jsonl"])
        assert index.count(Query())[0] == 4
        file.write(line[50:])
    index.advance([run / "rollouts.jsonl"])
    assert index.count(Query())[0] == 5


def test_an_index_in_the_cache_goes_on_where_it_ended(tmp_path: Path) -> None:
    run, cache = write_run(tmp_path / "run", 3), tmp_path / "cache" / "index.sqlite"
    indexed(run, cache).close()
    index = GroupIndex("run", cache)
    assert index.count(Query())[0] == 6
    with (run / "rollouts.jsonl").open("ab") as file:
        file.write(_line_of_step(run, 1, 4))
    index.advance([run / "rollouts.jsonl"])
    assert [row["step"] for row in index.rows(Query())] == [1, 1, 2, 2, 3, 3, 4]


@pytest.mark.parametrize("change", ["cut", "replaced", "rewritten", "cut_and_grown"])
def test_an_index_whose_file_was_replaced_or_cut_is_built_anew(tmp_path: Path, change: str) -> None:
    run, cache = write_run(tmp_path / "run", 4), tmp_path / "cache" / "index.sqlite"
    file = run / "rollouts.jsonl"
    indexed(run, cache).close()
    content = file.read_bytes()
    lines = content.splitlines(keepends=True)
    if change == "cut":
        os.truncate(file, len(b"".join(lines[:3])))
    elif change == "replaced":
        shutil.copy(write_run(tmp_path / "other", 6) / "rollouts.jsonl", tmp_path / "new.jsonl")
        os.replace(tmp_path / "new.jsonl", file)
    elif change == "rewritten":
        with file.open("r+b") as opened:
            opened.write(b"".join(lines).replace(b"because", b"becauze"))
    else:
        with file.open("r+b") as opened:
            opened.truncate(len(b"".join(lines[:3])))
            opened.seek(0, os.SEEK_END)
            opened.write(b"".join(_line_of_step(run, 1, step) for step in range(7, 20)))
    index = indexed(run, cache)
    assert [row["step"] for row in index.rows(Query())] == [line["step"] for line in lines_of(file)]
    assert index.count(Query(text="becauze"))[0] == (8 if change == "rewritten" else 0)


def test_a_line_rewritten_behind_the_indexs_back_is_not_shown_as_another(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 200)
    index = indexed(run)
    file, middle = run / "rollouts.jsonl", index.rows(Query(first_step=100, last_step=100))[0]["id"]
    content = file.read_bytes()
    with file.open("r+b") as opened:  # the same length, between the beginning and the end that are probed
        opened.write(content.replace(b'"step": 100,', b'"step": 999,'))
    with pytest.raises(StaleIndexError):
        index.group(middle)
    while not index.advance([file]):
        pass
    assert index.count(Query(first_step=999))[0] == 2


def test_a_line_that_no_run_wrote_ends_what_is_shown_and_is_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 1)
    with (run / "rollouts.jsonl").open("ab") as file:
        file.write(b'{"step": 2}\n')
    index = GroupIndex("run", None)
    index.advance([run / "rollouts.jsonl"])
    assert index.problem is not None and "rollouts.jsonl" in index.problem and "KeyError" in index.problem


def test_the_samples_of_a_question_are_one_group_also_where_the_evaluation_is_still_writing(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "evaluation", 5)
    file = folder / "completions.jsonl"
    content = file.read_bytes()
    lines = content.splitlines(keepends=True)
    index = GroupIndex("evaluation", None)
    for end in (1, 2, 4, 15):
        file.write_bytes(b"".join(lines[:end]))
        index.advance([file])
        rows = index.rows(Query())
        assert [row["num"] for row in rows] == [3] * (end // 3) + ([end % 3] if end % 3 else []), end
    assert [row["num_right"] for row in index.rows(Query())] == [1] * 5
    group = index.group(index.rows(Query())[-1]["id"])
    assert [one.text for one in group.completions] == [line["completion"] for line in lines_of(file)[-3:]]


def test_a_question_with_more_samples_than_a_piece_holds_is_one_group(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "evaluation", 1)
    file = folder / "completions.jsonl"
    long = [dict(line, completion="x" * (PIECE_BYTES // 2)) for line in lines_of(file)]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in long))
    index = GroupIndex("evaluation", None)
    while not index.advance([file]):
        pass
    assert [row["num"] for row in index.rows(Query())] == [3]


def test_two_views_of_one_run_share_an_index_without_doubling_it(tmp_path: Path) -> None:
    run, cache = write_run(tmp_path / "run", 60), tmp_path / "cache" / "index.sqlite"
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(indexed(run, cache).count(Query())[0])) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [120, 120, 120]


def test_a_search_stops_at_its_most_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_FOUND >= 1000
    monkeypatch.setattr("view.index.MAX_FOUND", 3)
    assert indexed(write_run(tmp_path / "run", 9)).count(Query(text="because")) == (3, True)


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    assert indexed(write_run(tmp_path / "run", 2), tmp_path / "file" / "index.sqlite").count(Query())[0] == 4
    (tmp_path / "broken.sqlite").write_bytes(b"this is no database" * 100)
    assert indexed(tmp_path / "run", tmp_path / "broken.sqlite").count(Query())[0] == 4


def test_the_cache_lies_outside_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = cache_file("run", tmp_path / "run")
    assert file.parent == tmp_path / "cache" / "otherhalf" / "view"
    assert file != cache_file("run", tmp_path / "other")


def test_unusable_filters_are_refused_by_name() -> None:
    with pytest.raises(ViewError, match=r"sort: saw 'id; DROP TABLE groups'"):
        Query(sort="id; DROP TABLE groups")
    with pytest.raises(ViewError, match="right"):
        Query(right="maybe")


def _line_of_step(run: Path, number: int, step: int) -> bytes:
    return (json.dumps(lines_of(run / "rollouts.jsonl")[number] | {"step": step}) + "\n").encode()
