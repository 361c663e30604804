"""Where sedseg keeps files, and how it writes them: whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from filelock import FileLock
from platformdirs import user_cache_path

_LOOKING = Lock()


def cache_folder(kind: str) -> Path:
    """The folder for cached files of a kind ("weights", "text"); it need not exist yet.

    The environment variable ``SEDSEG_CACHE`` names another place than the user's cache.
    """
    chosen = os.environ.get("SEDSEG_CACHE")
    return (Path(chosen).expanduser() if chosen else user_cache_path("sedseg")) / kind


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; it becomes ``path`` when the block ends well.

    After an exception the temporary file is removed and ``path`` is as it was. Makes the folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield partial
        partial.chmod(0o666 & ~_umask())  # some libraries write for the owner alone
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _umask() -> int:
    with _LOOKING:  # it can only be read by setting it, and all threads have the same one
        mask = os.umask(0o077)
        os.umask(mask)
    return mask


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time make ``path``; several start at once in distributed training."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        yield
