"""EMPO's training questions as a file that `data.path` reads.

    python docs/numinamath_20k.py NM_20K_1010.parquet > numinamath_20k.jsonl

The parquet file is math_data/NM_20K_1010.parquet of the paper's repository (QingyangZhang/EMPO on GitHub, Apache-2.0):
chat turns under `prompt`, the gold answer under `reward_model.ground_truth`. The request that ends each question is in
our template `boxed`: it is cut off.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import pyarrow.parquet

REQUEST = "Let's think step by step and output the final answer within \\boxed{}."


def row(number: int, given: dict[str, Any]) -> dict[str, str]:
    """Raises ValueError where the row does not end in the request: it would be asked twice, or another file was
    given."""
    text = given["prompt"][-1]["content"].rstrip()
    if not text.endswith(REQUEST):
        raise ValueError(f"row {number}: saw a prompt that ends in {text[-60:]!r}; expected {REQUEST!r}")
    answer = given["reward_model"]["ground_truth"]
    return {"id": f"nm20k/{number}", "question": text.removesuffix(REQUEST).rstrip(),
            "answer": answer if isinstance(answer, str) else answer[0]}


def main() -> None:
    for number, given in enumerate(pyarrow.parquet.read_table(sys.argv[1]).to_pylist()):
        print(json.dumps(row(number, given)))


if __name__ == "__main__":
    main()
