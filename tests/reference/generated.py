"""reasoning-gym's entries made in a fork, which has imported the library: a new interpreter takes a second to."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.reference.fork import Fork


def generate_in_a_fork(command: object, *, input: str, **settings: object) -> subprocess.CompletedProcess[str]:  # noqa: A002
    """In the place of `subprocess.run`, for tasks whose questions do not depend on Python's hash seed."""

    def run() -> int:
        read, write = os.pipe()
        os.write(write, input.encode())
        os.close(write)
        sys.stdin = os.fdopen(read)
        from rewards.reasoning_gym_worker import generate

        generate()
        return 0

    return Fork(run).finished()
