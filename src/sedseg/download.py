"""Weights from elsewhere -> a local file: a URL, Google Drive, a Hugging Face repository."""

from __future__ import annotations

import hashlib
import http.client
import re
import urllib.error
import urllib.request
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

import sedseg
from sedseg.checkpoints import SUFFIXES, file_format
from sedseg.errors import InputError
from sedseg.storage import cache_folder, locked, replacing

_TIMEOUT = 60
"""Seconds without a byte after which a server is given up."""


def weights_in(folder: Path) -> Path:
    """The weights file of a folder: model.safetensors, or else the first by name.

    Raises:
        InputError: there is none.
    """
    found = _choose([path.name for path in folder.iterdir() if path.is_file()])
    if found is None:
        raise InputError(f"The folder {folder} holds no weights ({', '.join(SUFFIXES)}).")
    return folder / found


def from_url(url: str) -> Path:
    """The file at an http(s) address: downloaded once, then from the cache without a request.

    Raises:
        InputError: the server cannot be reached, refuses, stops early, or sends no weights.
    """
    name = re.sub(r"[^\w.-]", "_", PurePosixPath(urlsplit(url).path).name)
    digest = hashlib.sha256(url.encode()).hexdigest()[:16]
    out = cache_folder("weights") / "url" / f"{digest}-{name}"
    with locked(out):
        if out.exists():
            return out
        with replacing(out) as partial:
            try:
                _download(url, partial)
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", None) or error
                raise InputError(
                    f"Could not download {url} ({reason}); check the address, or fetch the file "
                    "another way and name the file instead of the address (`--model FILE`)."
                ) from error
            file_format(partial, url)
    return out


def from_drive(drive_id: str, out: Path, otherwise: str) -> None:
    """Download a file of Google Drive; an interrupted download is resumed by the next call.

    Args:
        drive_id: the file's id.
        out: where to put it.
        otherwise: for the error: how to do without this download.

    Raises:
        InputError: gdown is not installed, Google Drive cannot be reached, or it refuses.
    """
    try:
        import gdown
    except ImportError as error:
        raise InputError(
            f"Fetching from Google Drive needs gdown: type `pip install gdown`, or {otherwise}."
        ) from error
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        gdown.download(id=drive_id, output=str(out), resume=True)
    except Exception as error:  # gdown lets through those of several libraries
        first_line = str(error).strip().split("\n")[0].rstrip(":")
        reason = "no connection" if isinstance(error, OSError) else first_line
        raise InputError(f"Google Drive gave no file ({reason}); {otherwise}.") from error
    if not out.exists():
        raise InputError(f"Google Drive gave no file; {otherwise}.")


def from_hub(repository: str) -> Path:
    """model.safetensors of a Hugging Face repository, or else its first weights file by name.

    Files once fetched are found in the hub's own cache without a network.

    Raises:
        InputError: there is no such repository, it holds no weights, or there is no network.
    """
    page = f"https://huggingface.co/{repository}"
    try:
        try:
            return Path(huggingface_hub.hf_hub_download(repository, "model.safetensors"))
        except LocalEntryNotFoundError:  # no network
            return weights_in(
                Path(huggingface_hub.snapshot_download(repository, local_files_only=True))
            )
        except EntryNotFoundError:
            found = _choose(huggingface_hub.list_repo_files(repository))
        if found is None:
            raise InputError(f"{page} holds no weights ({', '.join(SUFFIXES)}).")
        return Path(huggingface_hub.hf_hub_download(repository, found))
    except GatedRepoError as error:
        raise InputError(
            f"{page} asks for its terms to be accepted: do so there and type `hf auth login`."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise InputError(
            f"There is no file or folder {repository} here and no model at {page}, or it is "
            "private: check the name, or type `hf auth login`."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError) as error:
        raise InputError(
            f"There is no file or folder {repository} here, and {page} cannot be reached; get its "
            "weights file another way and name the file instead (`--model FILE`)."
        ) from error


def _choose(names: list[str]) -> str | None:
    candidates = sorted(name for name in names if name.lower().endswith(SUFFIXES))
    best = [name for name in candidates if name == "model.safetensors"]
    return next(iter(best or candidates), None)


def _download(url: str, out: Path) -> None:
    agent = {"User-Agent": f"sedseg/{sedseg.__version__}"}
    request = urllib.request.Request(url, headers=agent)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with (
        urllib.request.urlopen(request, timeout=_TIMEOUT) as response,
        out.open("wb") as file,
        Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress,
    ):
        length = response.headers.get("Content-Length")
        expected = int(length) if length else None
        task = progress.add_task(url.rsplit("/", 1)[-1], total=expected)
        while block := response.read(1 << 20):
            progress.advance(task, file.write(block))
        if expected is not None and file.tell() != expected:  # http.client lets this pass
            raise http.client.IncompleteRead(b"", expected - file.tell())
