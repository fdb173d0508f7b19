"""Which sampler is told to be slow, and which is refused."""

from __future__ import annotations

import warnings
from contextlib import nullcontext

import pytest

from rl.config import GeneratorSection, SamplingSection
from rl.errors import GeneratorError
from rl.generate import vllm_engine
from rl.generate.build import check_backend, warn_of_slow_sampler
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


@pytest.mark.parametrize(("version", "is_refused"), [("0.25.1", True), ("0.26.0", False), ("0.32.0+cpu", False)])
def test_a_vllm_without_a_float32_head_is_refused_where_one_is_wanted(
    version: str, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_engine, "installed_version", lambda: version)
    section, sampling = GeneratorSection(backend="vllm"), SamplingSection()
    check_backend(section, sampling, float32_head=False)
    message = r"model.head_dtype: float32, but vLLM 0.25.1 here .*Remedy: vLLM 0.26 or newer, or model.head_dtype=null"
    with pytest.raises(GeneratorError, match=message) if is_refused else nullcontext():
        check_backend(section, sampling, float32_head=True)


def test_the_readme_installs_vllm_with_the_errors_own_line_before_the_first_command_that_needs_it() -> None:
    readme = (project_root() / "README.md").read_text()
    assert readme.index(INSTALL_ON_GPU) < readme.index("configs/grpo_math.yaml")
