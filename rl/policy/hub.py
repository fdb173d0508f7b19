"""A folder of weights -> a repository of the hub, private unless asked otherwise. HF_ENDPOINT and the login are those
of huggingface_hub (`hf auth login`, HF_TOKEN)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rl.errors import ConfigError

Result = TypeVar("Result")


def check_repository(repository: str, *, public: bool) -> bool:
    """Before weights are made: whether `repository` exists already and has a README.md, which is then kept.

    Raises ConfigError without a login, for a name that is none, and for a public repository that is not meant to be."""
    from huggingface_hub import HfApi

    api = HfApi()
    _answered(repository, api.whoami)
    if not _answered(repository, lambda: api.repo_exists(repository)):
        return False
    info = _answered(repository, lambda: api.model_info(repository))
    if not info.private and not public:
        raise ConfigError(f"the repository {repository} is public", where="--push",
                          remedy="--public, if all may see the weights, or another name")
    return any(file.rfilename == "README.md" for file in info.siblings or ())


def push(folder: Path, repository: str, *, public: bool, keep_card: bool) -> str:
    """Upload the folder; returns the repository's address. Raises ConfigError where the hub refuses or does not
    answer; the folder stays."""
    from huggingface_hub import HfApi

    api = HfApi()
    url = _answered(repository, lambda: api.create_repo(repository, private=not public, exist_ok=True))
    _answered(repository, lambda: api.upload_folder(
        repo_id=repository, folder_path=folder, commit_message="Export from otherhalf",
        ignore_patterns=["README.md"] if keep_card else None),
        f"{folder} is written: `hf upload {repository} {folder}` tries again")
    return str(url)


def _answered(repository: str, ask: Callable[[], Result], remedy: str = "") -> Result:
    import httpx2
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError

    try:
        return ask()
    except LocalTokenNotFoundError as error:
        raise ConfigError("there is no login for the hub", where="--push",
                          remedy="hf auth login, or the environment variable HF_TOKEN") from error
    except (OSError, httpx2.HTTPError, HFValidationError) as error:
        text = str(error).strip().splitlines()[0]
        raise ConfigError(f"{repository}: {text}", where="--push", remedy=remedy) from error
