"""Text embeddings on disk.

A folder for each text tower holds packs: safetensors files of classes that were embedded together,
each class with a checksum. Packs appear whole and never change, so that processes may share a
folder; one that is damaged is deleted. To clear the cache, delete the folder; nothing else removes
a sound pack.

Dimensions: T classes, P prompt templates, C embedding channels.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sedseg.storage import replacing

Words = tuple[str, ...]
"""The synonyms of a class."""

_DAMAGE = (SafetensorError, ValueError, TypeError, KeyError, IndexError, RuntimeError)


class EmbeddingPacks:
    """The packs of one text tower.

    Args:
        folder: made when there is something to write. If that fails, a warning says so, and
            nothing is written from then on.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._place: dict[Words, tuple[Path, int, str]] = {}  # pack, row in it, checksum
        self._opened: set[Path] = set()
        self._writable = True

    def read(self, classes: Sequence[Words]) -> dict[Words, Tensor]:
        """The (P, C) embeddings of those classes that a sound pack holds."""
        if any(words not in self._place for words in classes):
            self._look_for_new_packs()
        wanted: defaultdict[Path, list[Words]] = defaultdict(list)
        for words in classes:
            if words in self._place:
                wanted[self._place[words][0]].append(words)
        found: dict[Words, Tensor] = {}
        for pack, held in wanted.items():
            try:
                with safe_open(pack, "pt") as file:
                    text = file.get_tensor("text")
                rows = {words: text[self._place[words][1]] for words in held}
                for words, row in rows.items():
                    if _checksum(words, row) != self._place[words][2]:
                        raise ValueError(f"the checksum of {words} differs")
            except _DAMAGE:
                self._drop(pack)
            except OSError:  # another process has dropped it, or it is not ours to read
                self._forget(pack)
            else:
                found.update(rows)
        return found

    def write(self, classes: Sequence[Words], text: Tensor) -> None:
        """Keep the (T, P, C) embeddings of classes."""
        if not self._writable:
            return
        checksums = [_checksum(words, row) for words, row in zip(classes, text, strict=True)]
        contents = json.dumps(list(zip(classes, checksums, strict=True)))
        pack = self._folder / f"{_hash(contents.encode())}.safetensors"
        try:
            with replacing(pack) as unfinished:
                save_file({"text": text.contiguous()}, unfinished, metadata={"classes": contents})
        except (OSError, SafetensorError) as error:
            self._writable = False
            warnings.warn(
                f"Text embeddings cannot be kept in {self._folder} ({error}), so they will be "
                "computed again next time; SEDSEG_CACHE names another folder.",
                stacklevel=2,
            )
            return
        self._index(pack)

    def _look_for_new_packs(self) -> None:
        try:
            packs = sorted(self._folder.glob("*.safetensors"))
        except OSError:
            return
        for pack in packs:
            if pack not in self._opened:
                self._index(pack)

    def _index(self, pack: Path) -> None:
        self._opened.add(pack)
        try:
            with safe_open(pack, "pt") as file:
                contents = json.loads(file.metadata()["classes"])
            for row, (words, checksum) in enumerate(contents):
                self._place[tuple(words)] = (pack, row, checksum)
        except _DAMAGE:
            self._drop(pack)
        except OSError:
            self._forget(pack)

    def _drop(self, pack: Path) -> None:
        self._forget(pack)
        with contextlib.suppress(OSError):
            pack.unlink()

    def _forget(self, pack: Path) -> None:
        self._place = {words: place for words, place in self._place.items() if place[0] != pack}


def _checksum(words: Words, row: Tensor) -> str:
    about = json.dumps([words, str(row.dtype), list(row.shape)])
    return _hash(about.encode(), row.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _hash(*parts: bytes | memoryview) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
