from __future__ import annotations

from pathlib import Path

import pytest

from otherhalf import doctor
from otherhalf.doctor import Trial, examine, is_within, main, requirements, tried
from rl.paths import project_root

WHOLE = {"torch": Trial(None, {"build": None, "devices": []})}


def text_of(lines: list[doctor.Line]) -> str:
    return "\n".join(f"{'!' if line.problem else ' '} {line.head} {line.text}" for line in lines)


@pytest.mark.slow
def test_this_machine_has_what_a_run_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    page = capsys.readouterr().out
    assert "torch 2" in page and "nothing here keeps a run from working" in page
    assert len(page.splitlines()) <= 40 and max(map(len, page.splitlines())) <= 140


def test_a_package_that_cannot_be_imported_costs_its_own_line_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One raises, one ends the process, one hangs; the one behind them is tried all the same."""
    for name, code in {"raises_it": "raise ImportError('no symbol: xyz')", "ends_it": "import os; os._exit(7)",
                       "hangs": "import time; time.sleep(60)", "works": ""}.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor, "PATIENCE_S", 2.0)
    trials = tried(["raises-it", "ends-it", "works"])
    assert trials == {"raises-it": Trial("ImportError: no symbol: xyz", {}), "works": Trial(None, {}),
                      "ends-it": Trial("its import ended the process (exit code 7)", {})}
    assert tried(["hangs"]) == {"hangs": Trial("its import did not end", {})}


def test_what_is_missing_old_or_broken_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["torch>=99", "no-such-package>=1", "peft"]\n'
        '[project.optional-dependencies]\ntrl = ["trl<0.1"]\n')
    broken = WHOLE | {"peft": Trial("ImportError: libcudart.so.12", {})}
    page = text_of(list(examine(lambda names: broken, tmp_path)))
    assert "! no-such-package missing; expected >=1. Remedy: pip install" in page
    assert "! torch 2" in page and "expected >=99" in page
    assert "! peft" in page and "is broken: ImportError: libcudart.so.12" in page
    assert "! trl" in page and "expected <0.1" in page


def test_devices_and_builds_that_do_not_fit_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Trial(None, {"build": "13.0", "devices": [["NVIDIA H100", 70.0, 80.0, True]]})
    page = text_of(list(examine(lambda names: {"torch": card})))
    assert "GPU 0 NVIDIA H100, 70.0 of 80.0 GB free, bfloat16 yes" in page
    blind = Trial(None, {"build": "13.0", "devices": []})
    assert "is built for a GPU (13.0), and sees none" in text_of(list(examine(lambda names: {"torch": blind})))
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert "! torch is built for the processor alone" in text_of(list(examine(lambda names: WHOLE)))


def test_a_folder_that_cannot_be_written_to_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.setattr(doctor.tempfile, "gettempdir", lambda: str(tmp_path / "none"))
    page = text_of(list(examine(lambda names: WHOLE)))
    assert f"! temporary {tmp_path / 'none'} cannot be written to: No such file or directory. Remedy: TMPDIR" in page


@pytest.mark.parametrize(("version", "wanted", "within"), [
    ("2.11.0+cpu", ">=2.11", True), ("2.10.1", ">=2.11", False), ("5.20.0", ">=5.16.1,<5.20", False),
    ("5.19.9", ">=5.16.1,<5.20", True), ("0.9.0", "==0.9.0", True), ("0.9", "==0.9.0", True), ("1.2.3", "", True),
])
def test_versions_are_compared_by_their_numbers(version: str, wanted: str, within: bool) -> None:
    assert is_within(version, wanted) == within


def test_requirements_are_those_of_the_project() -> None:
    required, extras = requirements(project_root())
    assert required["torch"].startswith(">=") and "vllm" in extras and "vllm" not in required
