from __future__ import annotations

from pathlib import Path

import pytest

from tests.reference.viewed import train_two_runs


@pytest.fixture(scope="session")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """See train_two_runs; what a test changes there it puts back."""
    return train_two_runs(tmp_path_factory.mktemp("trained"))
