"""Whole runs draw their pictures, but matplotlib renders none of them: that takes as long as a third of a small run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO
from unittest.mock import patch

import pytest
from matplotlib.figure import Figure


@pytest.fixture(scope="module", autouse=True)  # not the session: other folders' tests follow in this process
def _no_pixels() -> Iterator[None]:
    def save_nothing(figure: Figure, file: BinaryIO, **settings: Any) -> None:
        file.write(b"no picture")

    with patch.object(Figure, "savefig", save_nothing):
        yield
