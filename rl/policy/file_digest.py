"""Short digests of files and of folders with weights, which tell that something else lies there than before. Imports no
torch.

Of a large file only the beginning, the middle and the end are read: weights that were trained differ everywhere, and a
digest of 15 GB would cost a minute at each start.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

SAMPLED_BYTES = 1 << 20


def file_digest(path: Path) -> str:
    """Of size and sampled contents: of a file up to 3 MiB, all of it. Raises OSError."""
    digest = hashlib.sha256()
    _add(digest, path)
    return digest.hexdigest()[:16]


def weights_digest(folder: Path) -> str | None:
    """Of the names, sizes and sampled contents of the weights in a folder; None for a hub id."""
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        digest.update(f"{path.name} ".encode())
        _add(digest, path)
    return digest.hexdigest()[:16]


def _add(digest: hashlib._Hash, path: Path) -> None:
    size = path.stat().st_size
    digest.update(f"{size}\n".encode())
    with path.open("rb") as file:
        if size <= 3 * SAMPLED_BYTES:
            digest.update(file.read())
            return
        for start in (0, size // 2 - SAMPLED_BYTES // 2, size - SAMPLED_BYTES):
            file.seek(start)
            digest.update(file.read(SAMPLED_BYTES))
