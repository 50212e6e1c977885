"""Checkpoints on the Hugging Face Hub: an id and a revision -> a file and the commit it is of."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from vggt_deploy.errors import ModelError

logger = logging.getLogger(__name__)

CHECKPOINT_NAMES = ("model.safetensors", "model.pt")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

LICENCES = {
    "facebook/VGGT-1B": "CC BY-NC 4.0: non-commercial use only, also of anything derived from it",
    "facebook/VGGT-1B-Commercial": (
        "VGGT License: commercial use allowed, military use and others excluded; access is granted "
        "by a form on the model's page; anything derived from it keeps this licence"
    ),
}


@dataclass(frozen=True)
class HubFile:
    """A checkpoint in the cache, and the commit hash that its revision resolved to."""

    path: Path
    revision: str


def fetch(repo: str, revision: str | None = None) -> HubFile:
    """Download (or find in the cache) the checkpoint of `repo`; a begun download is resumed.

    A commit hash that is in the cache needs no network. A known licence is said once, before the
    download.
    """
    if repo in LICENCES and not _is_cached(repo, revision):
        logger.warning("%s is under the %s", repo, LICENCES[repo])
    for name in CHECKPOINT_NAMES:
        try:
            path = Path(hf_hub_download(repo, name, revision=revision))
        except LocalEntryNotFoundError as error:
            raise ModelError(
                f"{repo} is not in the cache, and the Hugging Face Hub can't be reached: {error}",
                "try again later, unset HF_HUB_OFFLINE if it is set, or give a local file",
            ) from error
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise _explain(repo, revision, error) from error
        # <cache>/models--owner--name/snapshots/<commit>/<name>
        return HubFile(path, path.parent.name)
    raise ModelError(
        f"{repo} holds none of {', '.join(CHECKPOINT_NAMES)}",
        "give the id of a repository with a VGGT checkpoint",
    )


def _is_cached(repo: str, revision: str | None) -> bool:
    return any(
        isinstance(try_to_load_from_cache(repo, name, revision=revision), str)
        for name in CHECKPOINT_NAMES
    )


def _explain(repo: str, revision: str | None, error: Exception) -> ModelError:
    """The error of a failed download. Order matters: gated is a kind of not found."""
    if isinstance(error, GatedRepoError):
        return ModelError(
            f"access to {repo} is gated and this account has none",
            f"accept its terms at https://huggingface.co/{repo}, then `hf auth login`",
        )
    if isinstance(error, RevisionNotFoundError):
        return ModelError(
            f"{repo} has no revision {revision!r}", "give a branch, a tag or a commit hash of it"
        )
    if isinstance(error, RepositoryNotFoundError):
        return ModelError(
            f"no file or folder {repo!r} here, and no such repository on the Hugging Face Hub",
            "check the spelling; a private repository needs `hf auth login`",
        )
    return ModelError(
        f"{repo}: download failed: {error}",
        "try again (a begun download is resumed), or give a local file",
    )
