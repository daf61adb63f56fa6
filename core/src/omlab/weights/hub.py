"""Files on the Hugging Face hub, through its own library: resumed, and with the user's own token."""

from __future__ import annotations

import os
from pathlib import Path

from omlab.cards import Asset
from omlab.errors import ConsentNeeded, OfflineError, WeightsError, require
from omlab.progress import Listener, Progress


def fetch(asset: Asset, part: Path, listener: Listener) -> None:
    """Fetch ``asset.file`` of ``asset.repo`` at ``asset.revision`` into ``part``.

    Raises
    ------
    MissingDependency, OfflineError, ConsentNeeded, WeightsError
        huggingface_hub is missing; no connection; the repository wants consent on the hub; file or revision is unknown.
    """
    hub = require("huggingface_hub", needed_for=f"fetching {asset.repo}", install="omlab[hub]")
    errors = require("huggingface_hub.errors", needed_for=f"fetching {asset.repo}", install="omlab[hub]")
    where = f"{asset.repo}@{asset.revision}: {asset.file}"
    listener(Progress(asset.filename, "download", 0, asset.size, "bytes"))
    folder = part.with_name(part.name + ".hub")  # kept after a broken transfer: the library resumes from it
    try:
        got = hub.hf_hub_download(
            repo_id=asset.repo, filename=asset.file, revision=asset.revision, local_dir=folder,
            endpoint=os.environ.get("HF_ENDPOINT") or None,
        )  # fmt: skip
    except errors.GatedRepoError:
        raise ConsentNeeded(
            f"{where}: the authors want you to accept their terms on the hub first",
            remedy=f"Open the page of {asset.repo} on the hub, accept, then log in with: hf auth login",
        ) from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        if isinstance(error, errors.LocalEntryNotFoundError):
            raise OfflineError(f"{where} cannot be reached", remedy="Check the network or HF_ENDPOINT") from None
        raise WeightsError(f"{where} is not on the hub", remedy="It may be private: hf auth login") from None
    except errors.HfHubHTTPError as error:
        raise WeightsError(f"{where}: {str(error).splitlines()[0]}", remedy="Try again later") from None
    except (ConnectionError, TimeoutError) as error:
        raise OfflineError(f"{where} cannot be reached: {error}", remedy="Check the network or HF_ENDPOINT") from None
    os.replace(got, part)
    _remove(folder)
    listener(Progress(asset.filename, "download", part.stat().st_size, part.stat().st_size, "bytes"))


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)  # left-overs of the library cost space, never correctness
