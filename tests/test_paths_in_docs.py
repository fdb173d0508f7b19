"""What the documents, the configurations and the docstrings and comments of the code name exists: files, modules and
what stands in them."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from functools import cache
from pathlib import Path

import pytest

from rl.paths import project_root

ROOT = project_root()
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("CONTRIBUTING.md", "README.md", "*/*.md", "configs/*.yaml", "prompts/*.yaml", "Makefile",
                    "pyproject.toml", ".ci/*")
    for path in ROOT.glob(pattern) if path.is_file())
PACKAGES = ("otherhalf", "rl", "rewards", "eval", "view", "benchmarks", "models", "tests", "docs")
FOLDERS = (*PACKAGES, "configs", "prompts", "requirements")

PATH = re.compile(rf"(?<![\w/.~:-])(?:{'|'.join(FOLDERS)})/[\w./*-]*\w")
PYTHON_FILE = re.compile(r"(?<![\w/.*-])[a-z]\w*\.py\b(?!:)")
# A module, perhaps with what stands in it: its own name, or behind a colon.
MODULE = re.compile(
    r"(?<![\w/.\"'-])((?:otherhalf|rl|rewards|eval|view|benchmarks|tests)(?:\.[a-z_]\w*)+)(?::(\w+))?(?![\w(/])")

MADE_LATER = ("models/smollm2-135m-instruct",)
ELSEWHERE = ("my_rewards.py", "file.py", "evaluate_from_local.py", "rl/build_pools.py")  # a user's, other projects'
KEYS = ("rl.model", "rl.adapter")  # of a pipeline's stage that is named rl
FORBIDDEN = ("rl/types.py",)  # would hide the standard library's module


def missing(text: str) -> list[str]:
    """Paths, modules and files of Python code that a text names and that do not exist."""
    paths = [path for path in PATH.findall(text) if not path.startswith(MADE_LATER) and not any(ROOT.glob(path))]
    modules = [":".join(filter(None, found)) for found in MODULE.findall(text)]
    files = [name for name in PYTHON_FILE.findall(text) if name not in python_files()]
    wrong = [*paths, *(name for name in modules if not has_module(name.replace(":", "."))), *files]
    return [name for name in wrong if name not in (*ELSEWHERE, *KEYS, *FORBIDDEN)]


def prose(source: str) -> str:
    """The docstrings and comments of Python code."""
    strings = [node.value.value for node in ast.walk(ast.parse(source))
               if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
               and isinstance(node.value.value, str)]
    comments = [token.string for token in tokenize.generate_tokens(io.StringIO(source).readline)
                if token.type == tokenize.COMMENT]
    return "\n".join([*strings, *comments])


def has_module(dotted: str) -> bool:
    """Whether a dotted name is a folder, a file, or something in a file."""
    place, parts = ROOT, dotted.split(".")
    for index, part in enumerate(parts):
        if (place / part).is_dir():
            place = place / part
        else:
            file, own = place / f"{part}.py", place / "__init__.py"
            if not file.is_file():
                return own.is_file() and part in names_in(own)
            return index + 1 == len(parts) or parts[index + 1] in names_in(file)
    return True


@cache
def names_in(file: Path) -> frozenset[str]:
    """What a module defines or imports, at any depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return frozenset(names)


@cache
def python_files() -> frozenset[str]:
    return frozenset(path.name for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_names_exists(document: str) -> None:
    assert not missing((ROOT / document).read_text(encoding="utf-8"))


@pytest.mark.parametrize("package", PACKAGES)
def test_what_docstrings_and_comments_name_exists(package: str) -> None:
    wrong = {str(file.relative_to(ROOT)): missing(prose(file.read_text(encoding="utf-8")))
             for file in sorted((ROOT / package).rglob("*.py"))}
    assert not {file: names for file, names in wrong.items() if names}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see rl/trainer.py, `prompts/boxed.yaml` and configs/tiny_*.yaml", []),
        ("see rl/no_such_file.py and docs/none.md.", ["rl/no_such_file.py", "docs/none.md"]),
        ("`python -m rl.train`, rewards.accuracy:accuracy", []),
        ("python -m rl.none, rewards.accuracy:none", ["rl.none", "rewards.accuracy:none"]),
        ("in `trainer.py`; `no_such_file.py`", ["no_such_file.py"]),
    ],
)
def test_what_is_missing_is_found(text: str, found: list[str]) -> None:
    assert missing(text) == found
