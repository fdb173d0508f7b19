"""`python -m rl.launch [options of accelerate launch] rl/train.py ...`: accelerate's launcher, after which a command's
error stands last.

`accelerate launch` itself puts a traceback of its own below the command's one-line error and ends with exit code 1,
whatever the command ended with. Here the exit code is the command's, and only what the command cannot say any more is
said: that a signal ended it.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from collections.abc import Sequence

SIGNALLED = 128  # plus the signal's number: the shells' own exit code for it


def main(arguments: Sequence[str] | None = None) -> int:
    """arguments: accelerate launch's own. Returns the exit code of the command, of several processes that of the first
    that failed."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # Ctrl-C reaches the command too, which saves: the launcher waits for its end.
    signal.signal(signal.SIGINT, lambda number, frame: None)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it tells of failed processes too
    settings = launch_command_parser().parse_args(arguments)
    try:
        launch_command(settings)
    except subprocess.CalledProcessError as error:
        return _exit_code(error.returncode, "the command")
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        return _exit_code(failure.exitcode, f"process {rank}")
    except SignalException as error:  # of several processes, which have been given the signal
        return SIGNALLED + error.sigval.value
    return 0


def _exit_code(code: int, who: str) -> int:
    """code: below 0 the number of the signal that ended the process."""
    if code >= 0:
        return code
    name = signal.Signals(-code).name
    memory = ", as the system does where memory is full" if name == "SIGKILL" else ""
    print(f"error: {who} was ended by {name}{memory}", file=sys.stderr)
    return SIGNALLED - code


if __name__ == "__main__":
    sys.exit(main())
