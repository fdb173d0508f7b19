from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.reference.whole_run import no_pixels, one_thread


@pytest.fixture(scope="module", autouse=True)
def _as_in_whole_runs() -> Iterator[None]:
    with no_pixels(), one_thread():
        yield
