"""Which sampler is told to be slow."""

from __future__ import annotations

import warnings

import pytest

from rl.config import GeneratorSection
from rl.generate.build import warn_of_slow_sampler
from rl.generate.vllm_engine import INSTALL_ON_GPU
from rl.paths import project_root


def test_the_embedded_sampler_warns_on_a_gpu_with_a_model_above_half_a_billion_parameters() -> None:
    with pytest.warns(UserWarning, match=r"1\.5B parameters without an engine.*pip install -e '\.\[vllm\]'"):
        warn_of_slow_sampler(GeneratorSection(), 1_543_714_304, on_gpu=True)


@pytest.mark.parametrize(("backend", "parameters", "on_gpu"), [
    ("transformers", 494_032_768, True), ("transformers", 1_543_714_304, False), ("vllm", 1_543_714_304, True)])
def test_others_do_not(backend: str, parameters: int, on_gpu: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_slow_sampler(GeneratorSection.model_validate({"backend": backend}), parameters, on_gpu=on_gpu)


def test_the_readme_installs_vllm_with_the_errors_own_line_before_the_first_command_that_needs_it() -> None:
    readme = (project_root() / "README.md").read_text()
    assert readme.index(INSTALL_ON_GPU) < readme.index("configs/grpo_math.yaml")
