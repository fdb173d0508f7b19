"""The local files that a stage's settings name: whether they are there, and digests that tell when one has changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rl.paths import project_root, resolve_path
from rl.policy.file_digest import file_digest, weights_digest
from rl.records import Json

_KEYS = (
    "path", "adapter", "template", "use", "reward", "grader", "data_dir", "benchmarks", "data-dir", "prompt", "best-of",
    "model")
_WITH_WEIGHTS = ("config.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_ENDINGS = (".jsonl", ".ndjson", ".parquet", ".py", ".yaml", ".yml")
"""Of texts that name a file, and no data set on the hub."""


def missing_files(settings: Mapping[str, Json]) -> list[tuple[str, str]]:
    """(setting, text) of each local file that the settings name and that is not there."""
    named = [
        (setting, text.split(":")[0] if ".py:" in text else text)
        for setting, value in settings.items()
        for _, text in _named_files(value, setting.rpartition(".")[2])]
    return [(setting, text) for setting, text in named
            if text.endswith(_ENDINGS) and not resolve_path(text).is_file()]


def digests_of_files(settings: Mapping[str, Json], results: Sequence[Path]) -> dict[str, str]:
    """{"key: text": digest} of the local files and folders that the settings name, but for those within `results`, the
    folders of other stages."""
    found: dict[str, str] = {}
    for setting, value in settings.items():
        for key, text in _named_files(value, setting.rpartition(".")[2]):
            candidates = [
                resolve_path(text), resolve_path(text.rpartition(":")[0] or text),
                project_root() / "prompts" / f"{text}.yaml"]
            path = next((path for path in candidates if path.is_file() or (path.is_dir() and key != "template")), None)
            if path is None or any(path.resolve().is_relative_to(folder) for folder in results):
                continue
            if path.is_file():
                found[f"{setting}: {text}"] = file_digest(path)
            elif key in ("data_dir", "data-dir"):
                found[f"{setting}: {text}"] = " ".join(file_digest(file) for file in sorted(path.glob("*.jsonl")))
            elif (weights := weights_digest(path)) is not None:
                beside = [file_digest(path / name) for name in _WITH_WEIGHTS if (path / name).is_file()]
                found[f"{setting}: {text}"] = " ".join([weights, *beside])
    return found


def _named_files(value: Json | Mapping[str, Json], key: str) -> list[tuple[str, str]]:
    """(last part of the key, text) of every text under a key that may name a file."""
    if isinstance(value, str) and key in _KEYS:
        return [(key, part) for part in (value.split(",") if key == "benchmarks" else [value])]
    if isinstance(value, list):
        return [found for item in value for found in _named_files(item, key)]
    if isinstance(value, Mapping):
        return [found for name, item in value.items() for found in _named_files(item, name.rpartition(".")[2])]
    return []
