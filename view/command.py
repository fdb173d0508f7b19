"""`python -m view RUN...`: the command line."""

from __future__ import annotations

import argparse
import os
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from rewards.errors import report_errors
from view.sources import ViewError, find_folder

NUM_EXPORTED = 300


def main(words: Sequence[str] | None = None) -> int:
    """The command; words: None for the process's own. Returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m view",
        description="Look at runs, evaluations and pipelines in a browser. Follows those that run.")
    parser.add_argument("runs", nargs="+", metavar="RUN",
                        help="folder of a run, warm-up, evaluation, rejection sampling or pipeline; a run's name under "
                             "runs/; latest")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; a free one by default")
    parser.add_argument("--no-browser", action="store_true", help="print the address and open nothing")
    parser.add_argument("--export", type=Path, metavar="FILE.html", help="write one file that needs no server, and end")
    parser.add_argument("--groups", type=int, default=NUM_EXPORTED, metavar="N",
                        help=f"of each run or evaluation, groups of completions in the file at most ({NUM_EXPORTED})")
    given = parser.parse_args(words)
    return report_errors(lambda: _show(given))


def _show(given: argparse.Namespace) -> int:
    from view.export import export
    from view.library import Library
    from view.server import PageServer

    if not 0 <= given.port < 65536:
        raise ViewError(where="--port", seen=str(given.port), expected="0 to 65535, 0 for a free one")
    if given.groups < 1:
        raise ViewError(where="--groups", seen=str(given.groups), expected="at least 1")
    library = Library(list(dict.fromkeys(find_folder(word) for word in given.runs)))
    if given.export is not None:
        export(library, given.export, given.groups)
        print(f"{given.export} ({os.path.getsize(given.export) / 1e6:.1f} MB)")
        return 0
    try:
        server = PageServer(library, given.port)
    except OSError as error:
        raise ViewError(
            f"cannot listen: {error.strerror}", where=f"--port {given.port}",
            remedy="another port, or none for a free one"
        ) from None
    print(f"{server.url}\nCtrl-C ends it", flush=True)
    if not given.no_browser:
        webbrowser.open(server.url)
    try:
        server.serve()
    except KeyboardInterrupt:
        print()
    return 0
