"""rl/policy/file_digest.py: what lies there is told from what lay there."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl.policy.file_digest import SAMPLED_BYTES, file_digest, weights_digest


@pytest.mark.parametrize("size", [0, 10, 3 * SAMPLED_BYTES, 3 * SAMPLED_BYTES + 1, 8 * SAMPLED_BYTES])
def test_another_size_or_other_bytes_give_another_digest(size: int, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(size))
    digests = {file_digest(file)}
    for content in (
        bytes(size + 1), *(bytes(at) + b"x" + bytes(size - at - 1) for at in {0, size // 2, size - 1} if size),
    ):
        file.write_bytes(content)
        digests.add(file_digest(file))
    assert len(digests) == 2 + (3 if size > 1 else 0)
    file.write_bytes(bytes(size))
    assert file_digest(file) in digests


def test_weights_are_those_of_the_folder_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"1")
    first = weights_digest(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert weights_digest(tmp_path) == first
    (tmp_path / "a.safetensors").rename(tmp_path / "b.safetensors")
    assert weights_digest(tmp_path) not in (first, None)
    assert weights_digest(tmp_path / "none") is None
