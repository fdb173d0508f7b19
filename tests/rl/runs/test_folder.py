import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from rl.runs.folder import RunFolder, RunFolderError, find_run, prepare, write_atomically

ROOT = Path(__file__).parents[3]


def make_run(path: Path, changed_at: float = 1000.0) -> RunFolder:
    folder = RunFolder(path)
    folder.checkpoints.mkdir(parents=True)
    folder.config_file.write_text(f"run_dir: {path.name}\n")
    folder.metrics_file.write_text("{}\n")
    for place in (folder.metrics_file, folder.checkpoints):
        os.utime(place, (changed_at, changed_at))
    return folder


def output_of(code: str, path: Path) -> str:
    return subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def test_a_new_folder_is_made_and_its_lock_is_gone_afterwards(tmp_path: Path) -> None:
    with prepare(tmp_path / "runs" / "new", resume=False) as folder:
        assert folder.lock_file.read_text().startswith(f'{{"pid": {os.getpid()}, "host": ')
    assert list((tmp_path / "runs" / "new").iterdir()) == []


def test_an_earlier_run_is_moved_aside_under_the_next_free_number_and_said(tmp_path: Path) -> None:
    said: list[str] = []
    for content in ("first", "second"):
        make_run(tmp_path / "run").config_file.write_text(content)
        with prepare(tmp_path / "run", resume=False, say=said.append) as folder:
            assert [entry.name for entry in folder.path.iterdir()] == ["run.lock"]
        (tmp_path / "run").rmdir()
    assert RunFolder(tmp_path / "run.1").config_file.read_text() == "first"
    assert RunFolder(tmp_path / "run.2").config_file.read_text() == "second"
    assert not RunFolder(tmp_path / "run.1").lock_file.exists()
    assert "run.1" in said[0] and "run.2" in said[1] and len(said) == 2


def test_a_resumed_run_stays_where_it_is(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    with prepare(tmp_path / "run", resume=True) as folder:
        assert folder.metrics_file.read_text() == "{}\n"
    assert not (tmp_path / "run.1").exists()


def test_nothing_to_resume_is_an_error_and_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no run to resume"), prepare(tmp_path / "run", resume=True):
        pass
    assert not (tmp_path / "run").exists()


def test_a_folder_with_other_things_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match=r"holds no run \(it has thesis.tex\)"), prepare(tmp_path, resume=False):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(RunFolderError, match="is a file"), prepare(tmp_path / "run", resume=False):
        pass


def test_a_folder_in_use_is_refused_to_a_second_process_and_nothing_is_moved(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    code = textwrap.dedent("""
        import sys
        from pathlib import Path
        from rl.runs.folder import RunFolderError, prepare
        for resume in (True, False):
            try:
                with prepare(Path(sys.argv[1]), resume=resume):
                    print("got it")
            except RunFolderError as error:
                print(error)
    """)
    with prepare(tmp_path / "run", resume=True) as folder:
        refused = output_of(code, folder.path)
        assert refused.count("is in use by another process") == 2 and f'"pid": {os.getpid()}' in refused
        assert folder.holds_run and folder.lock_file.exists()
    assert output_of(code, tmp_path / "run").count("got it") == 2


def test_the_lock_of_a_killed_process_is_taken_over_even_if_its_pid_lives_on(tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        from rl.runs.folder import prepare
        with prepare(Path(sys.argv[1]), resume=True):
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    folder = make_run(tmp_path / "run")
    subprocess.run([sys.executable, "-c", code, str(folder.path)], cwd=ROOT, check=False)
    assert folder.lock_file.exists()
    folder.lock_file.write_text('{"pid": 1, "host": "elsewhere"}\n')
    with prepare(folder.path, resume=True):
        assert f'"pid": {os.getpid()}' in folder.lock_file.read_text()


def test_an_error_inside_the_block_gives_the_lock_back(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), prepare(tmp_path / "run", resume=False) as folder:
        raise KeyboardInterrupt
    assert not folder.lock_file.exists()


def test_latest_is_the_run_that_changed_last(tmp_path: Path) -> None:
    make_run(tmp_path / "b", 3000)
    make_run(tmp_path / "a", 2000)
    make_run(tmp_path / "c", 1000)
    (tmp_path / "no_run").mkdir()
    assert find_run("latest", tmp_path).name == "b"
    newer = RunFolder(tmp_path / "c").checkpoints / "step-10"
    newer.mkdir()
    os.utime(newer, (9000, 9000))
    assert find_run("latest", tmp_path).name == "c"


def test_a_run_is_found_by_name_by_path_and_by_a_file_in_it(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "mine")
    assert find_run("mine", tmp_path) == folder.path
    assert find_run(str(folder.path), Path("nowhere")) == folder.path
    assert find_run(str(folder.metrics_file), Path("nowhere")) == folder.path


def test_an_unknown_name_does_not_mean_the_run_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(make_run(tmp_path / "mine").path)
    assert find_run("metrics.jsonl", tmp_path) == Path(".")
    with pytest.raises(RunFolderError, match="no run 'other'"):
        find_run("other", tmp_path)


@pytest.mark.parametrize(("name", "message"), [
    ("quickstar", r"did you mean quickstart\? runs there: quickstart"), ("", "no run ''")])
def test_an_unknown_run_is_answered_with_the_runs_there_are(tmp_path: Path, name: str, message: str) -> None:
    make_run(tmp_path / "quickstart")
    with pytest.raises(RunFolderError, match=message):
        find_run(name, tmp_path)


@pytest.mark.parametrize("name", ["latest", "some"])
def test_no_runs_at_all_is_a_clear_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunFolderError, match="no run"):
        find_run(name, tmp_path / "runs")


@pytest.mark.parametrize("content", ["héllo\n", b"\x00\xff", ""])
def test_an_atomic_write_replaces_the_whole_file(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "summary.json"
    path.write_text("a longer text that was there before")
    write_atomically(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_does_not_fit_keeps_the_old_file_and_leaves_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text("old")
    code = textwrap.dedent("""
        import resource, signal, sys
        from pathlib import Path
        from rl.runs.folder import write_atomically
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            write_atomically(Path(sys.argv[1]), "x" * 10000)
        except OSError as error:
            print(error.errno, error)
    """)
    said = output_of(code, path)
    assert "10,000 bytes" in said and "free some space" in said
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_write_into_a_missing_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="check that the folder exists"):
        write_atomically(tmp_path / "gone" / "summary.json", "x")


def test_what_a_program_brings_comes_along_and_stays_where_it_belongs(tmp_path: Path) -> None:
    """The rows of both runs stay with the run that is moved aside too; those of the new one alone leave it."""
    run = RunFolder(tmp_path / "run")
    run.inputs.mkdir(parents=True)
    for name in ("old.jsonl", "both.jsonl", "new.jsonl"):
        (run.inputs / name).write_text(name)
    with prepare(run.path, resume=False):  # no stranger there
        run.config_file.write_text("data: old.jsonl\nevaluation: both.jsonl\n")
    brought = [run.inputs / "both.jsonl", run.inputs / "new.jsonl"]
    with prepare(run.path, resume=False, brought=brought):
        assert sorted(path.name for path in run.inputs.iterdir()) == ["both.jsonl", "new.jsonl"]
    aside = RunFolder(tmp_path / "run.1")
    assert sorted(path.name for path in aside.inputs.iterdir()) == ["both.jsonl", "old.jsonl"]
