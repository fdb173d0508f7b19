"""Errors as values: one message in the words of whoever tells it, and the parts that a program reads."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from eval.errors import as_option
from rewards.errors import INTERRUPTED, NOBODY_READS, USER_ERROR, Problem, UserError, named
from rl.errors import ConfigError, report_errors, user_message

ERROR = UserError(
    f"the context of {named('model.path', 'm')} is short", where=named("sampling.max_completion_tokens"),
    seen="4096", expected="at most 2048", remedy=f"a lower value, or {named('generator.backend', 'vllm')}")


def test_a_message_names_settings_as_configurations_do() -> None:
    assert str(ERROR) == (
        "sampling.max_completion_tokens: the context of model.path=m is short; saw 4096; expected at most 2048. "
        "Remedy: a lower value, or generator.backend=vllm")


def test_a_command_names_settings_by_its_options_and_leaves_the_values_of_users_alone() -> None:
    assert ERROR.in_words(as_option) == (
        "--max-tokens: the context of --model m is short; saw 4096; expected at most 2048. "
        "Remedy: a lower value, or --generator vllm")
    written = UserError("there is no file model.path=x", where=named("model.path"))
    assert written.in_words(as_option) == "--model: there is no file model.path=x"


def test_settings_can_be_renamed_before_others_tell_the_error() -> None:
    renamed = ConfigError(f"{named('model.path', 'm')}: missing", f"{named('lora.rank')}: 0").renamed(
        lambda name: name.replace("model.", "teacher."))
    assert isinstance(renamed, ConfigError) and str(renamed) == "teacher.path=m: missing\nlora.rank: 0"


def test_the_parts_are_there_for_programs_and_survive_another_process() -> None:
    (problem,) = pickle.loads(pickle.dumps(ERROR)).problems
    assert problem == Problem(*(getattr(ERROR.problems[0], name) for name in (
        "what", "where", "seen", "expected", "remedy")))
    assert problem.seen == "4096" and problem.expected == "at most 2048"


@pytest.mark.parametrize(("error", "code", "said"), [
    (ERROR, USER_ERROR, "error: --max-tokens: the context of --model m"), (KeyboardInterrupt(), INTERRUPTED, "stopped"),
    (FileNotFoundError(2, "No such file or directory", "x.yaml"), USER_ERROR, "x.yaml: No such file or directory"),
    (PermissionError(13, "Permission denied", Path("x")), USER_ERROR, "x: Permission denied"),
    (OSError(28, "No space left on device", 0), USER_ERROR, "0: No space left on device"),
    (FloatingPointError("the gradient's norm is nan"), USER_ERROR, "the gradient's norm is nan")])
def test_what_a_user_can_mend_becomes_one_message(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> int:
        error.add_note("saved up to step 3")
        raise error

    assert report_errors(fail, as_option, when_interrupted="stopped") == code
    told = capsys.readouterr().err
    assert said in told and told.endswith("saved up to step 3\n")


def test_a_warning_is_a_line_in_the_words_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    def warn() -> int:
        warnings.warn(f"slow. Remedy: {named('generator.backend', 'vllm')}", stacklevel=1)
        return 0

    assert report_errors(warn, as_option) == 0
    assert capsys.readouterr().err == "warning: slow. Remedy: --generator vllm\n"


def test_our_own_errors_keep_their_traceback() -> None:
    def fail() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        report_errors(fail)
    assert user_message(KeyError("x")) is None


def test_a_server_that_hangs_up_is_told_although_pipes_break(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise BrokenPipeError(32, "Broken pipe")

    assert report_errors(fail) == USER_ERROR
    assert capsys.readouterr().err == "error: Broken pipe\n"


def test_what_is_saved_is_told_also_where_nobody_reads_the_output() -> None:
    """A run whose display has lost its reader."""
    code = (
        "import sys; from rewards.errors import report_errors\n"
        "def run():\n"
        "    try:\n"
        "        print('step 1', flush=True)\n"
        "    except OSError as error:\n"
        "        error.add_note('The run is saved')\n"
        "        raise\n"
        "sys.exit(report_errors(run))")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        told = process.stderr.read()
    assert (process.returncode, told) == (NOBODY_READS, "The run is saved\n")
