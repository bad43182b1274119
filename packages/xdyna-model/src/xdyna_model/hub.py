"""Pipelines from a model hub, by their id."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from xdyna_model.errors import InputError

_FILES = ["*.json", "*.txt", "*.safetensors"]  # configurations, words and weights: no code and no pickles


def download(
    name: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool | None = False,
) -> Path:
    """A model's folder in the hub's cache, brought there or up to date where the hub can be asked.

    name: "owner/name". The keywords are those of the hub's client. Raises InputError: there is no such model or
    revision, or the hub cannot be asked and no copy is here.
    """
    try:
        return Path(
            snapshot_download(
                name,
                allow_patterns=_FILES,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=bool(local_files_only),
            )
        )
    except RepositoryNotFoundError as error:
        reason = "the hub has no such model, or not for you; check the name, or log in"
        raise InputError(f"{name}: no such folder, and {reason}") from error
    except RevisionNotFoundError as error:
        raise InputError(f"{name}: the hub has no revision {revision} of it; check its name") from error
    # The hub's client lets through much of what those below it raise.
    except (OSError, ValueError, RuntimeError, HTTPError) as error:
        if isinstance(error.__cause__, OfflineModeIsEnabled):
            reason = "HF_HUB_OFFLINE keeps the hub from being asked, and no whole copy is here; unset it"
        else:
            said = str(error).strip().partition("\n")[0] or type(error).__name__
            reason = f"the hub does not give it ({said}); check the network"
        raise InputError(f"{name}: no such folder, and {reason}") from error
