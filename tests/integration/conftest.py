from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.reference.whole_run import no_pixels


@pytest.fixture(scope="module", autouse=True)  # not the session: other folders' tests follow in this process
def _no_pixels() -> Iterator[None]:
    with no_pixels():
        yield
