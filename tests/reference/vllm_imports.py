"""What a vLLM server imports, for the process from which servers are forked (tests/reference/vllm_process.py): it takes
8 s of a core, in each of a server's processes anew where they are new interpreters."""

import multiprocessing

from vllm.utils import system_utils

# vLLM's default, but for a CPU it takes new interpreters.
system_utils.get_mp_context = lambda: multiprocessing.get_context("fork")

import vllm.entrypoints.launchers.api_server.entry  # noqa: E402
import vllm.v1.engine.core  # noqa: E402
import vllm.v1.worker.cpu_worker  # noqa: E402, F401
