"""Text embeddings of a vocabulary, computed once and kept: in memory, and on disk for later runs.

Dimensions: T classes, P prompt templates, C embedding channels.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from sedseg.embedding_packs import EmbeddingPacks, Words
from sedseg.errors import InputError
from sedseg.model.sed import SED
from sedseg.storage import cache_folder
from sedseg.vocabulary import BACKGROUND, Vocabulary

NEAR_SYNONYMS = 0.65
"""Classes at least this similar, on the scale of :func:`near_synonyms`, nearly coincide.

Seen by sed-tiny's text tower, "car" and "automobile" have about 0.85, "sofa" and "couch" 0.8, "rug"
and "carpet" 0.7; "rock" and "stone" 0.6, "cat" and "dog" 0.5, "wall" and "floor" 0.25. "building"
and "house" have 0.35: the tower tells them apart, and if they are confused it is by their looks.
"""

UNRELATED = ("mountain", "shirt", "computer", "bread", "horse", "window", "river", "music")
"""Words that have little to do with one another: how similar are they to a given text tower?"""

_RULES = 1  # raise it when the same tower and words come to give other embeddings
_PACK = 128  # classes embedded and stored at once
_BLOCK = 512  # classes compared at once
_WARNING_PAIRS = 8
_warned: set[tuple[str, Vocabulary]] = set()

log = logging.getLogger(__name__)


class NearSynonymWarning(UserWarning):
    """Some classes of a vocabulary nearly coincide for the model."""


class NearSynonyms(NamedTuple):
    """Two class names and their similarity: 1 the same, 0 as unrelated words are."""

    a: str
    b: str
    similarity: float


def near_synonyms(
    names: Sequence[str],
    embeddings: Tensor,
    unrelated: float = 0.0,
    threshold: float = NEAR_SYNONYMS,
) -> list[NearSynonyms]:
    """The pairs of classes whose embeddings nearly coincide, the closest first.

    The similarity is the cosine of the means over templates, on a scale where 1 is the same and 0
    as similar as `unrelated` words. Text towers differ in the latter (CLIP's give unrelated words
    a cosine of 0.6 to 0.8, sentence encoders 0.3), so it makes one threshold do for all.

    Args:
        names: T names; "background", which stands for no thing, is left out.
        embeddings: (T, P, C), each vector of length 1.
        unrelated: the mean cosine of unrelated words.
        threshold: the similarity from which a pair is listed.
    """
    means = _means(embeddings)
    pairs = []
    for start in range(0, len(means), _BLOCK):  # all pairs of 10,000 classes would be 400 MB
        cosines = means[start : start + _BLOCK] @ means.T
        similarity = (cosines - unrelated) / max(1 - unrelated, 1e-6)
        first, second = (similarity >= threshold).triu(start + 1).nonzero(as_tuple=True)
        pairs += [
            NearSynonyms(names[start + a], names[b], float(similarity[a, b]))
            for a, b in zip(first.tolist(), second.tolist(), strict=True)
            if BACKGROUND not in (names[start + a].casefold(), names[b].casefold())
        ]
    return sorted(pairs, key=lambda pair: -pair.similarity)


def _portions(classes: list[Words]) -> Iterator[list[Words]]:
    for first in range(0, len(classes), _PACK):
        yield classes[first : first + _PACK]


def _means(embeddings: Tensor) -> Tensor:
    """(T, P, C) -> (T, C) float32 of length 1."""
    means = torch.cat([part.float().mean(1) for part in embeddings.split(_BLOCK)])
    return F.normalize(means, dim=-1)


class _Key(NamedTuple):
    tower: str
    vocabulary: Vocabulary
    dtype: torch.dtype


class TextEmbeddings:
    """The text embeddings of any vocabulary under one model.

    Args:
        model: its text tower is run where it stands, and only for classes not yet known.
        cache_dir: the folder to keep embeddings in, ``cache_folder("text")`` by default. One that
            cannot be written costs a warning and the disk cache.
        memory: bytes of embeddings to keep in memory, besides those in use.
    """

    def __init__(
        self, model: SED, cache_dir: str | Path | None = None, memory: int = 512 * 2**20
    ) -> None:
        self._text_encoder = model.text_encoder
        self._shape = [_RULES, model.config.clip_config["text_cfg"], model.config.prompts]
        self._root = Path(cache_dir) if cache_dir else cache_folder("text")
        self._memory = memory
        self._recent: OrderedDict[_Key, Tensor] = OrderedDict()
        self._packs: dict[str, EmbeddingPacks] = {}
        self._weights_digest = ""
        self._weights_state: list[tuple[int, int]] = []
        self._lock = threading.RLock()

    def embeddings(self, vocabulary: Vocabulary, dtype: torch.dtype = torch.float32) -> Tensor:
        """The (T, P, C) text embeddings, on the CPU; shared, so not to be written to.

        Computed and kept on disk in float32, whatever ``dtype`` is asked for. Warns, once for a
        vocabulary, of classes that nearly coincide.

        Raises:
            InputError: a name is longer than the text tower reads.
        """
        text = self._embeddings(vocabulary, dtype)
        self._warn_of_near_synonyms(vocabulary, text)
        return text

    def near_synonyms(
        self, vocabulary: Vocabulary, threshold: float = NEAR_SYNONYMS
    ) -> list[NearSynonyms]:
        """The pairs of classes that nearly coincide for this model; see :func:`near_synonyms`.

        Raises:
            InputError: a name is longer than the text tower reads.
        """
        return self._near_synonyms(vocabulary, self._embeddings(vocabulary), threshold)

    def _near_synonyms(
        self, vocabulary: Vocabulary, text: Tensor, threshold: float = NEAR_SYNONYMS
    ) -> list[NearSynonyms]:
        if len(vocabulary) < 2:
            return []
        probe = _means(self._embeddings(Vocabulary(tuple((word,) for word in UNRELATED))))
        cosines = (probe @ probe.T).triu(diagonal=1)
        unrelated = float(cosines.sum()) / (len(probe) * (len(probe) - 1) / 2)
        return near_synonyms(vocabulary.names, text, unrelated, threshold)

    def _embeddings(self, vocabulary: Vocabulary, dtype: torch.dtype = torch.float32) -> Tensor:
        # What is kept must be usable anywhere, also where gradients are wanted.
        with self._lock, torch.inference_mode(False):
            key = _Key(self._tower(), vocabulary, dtype)
            if key not in self._recent:
                self._recent[key] = self._assemble(key)
            self._recent.move_to_end(key)
            found = self._recent[key]
            while self._bytes() > self._memory:  # one larger than that is not kept at all
                self._recent.popitem(last=False)
            return found

    def _bytes(self) -> int:
        return sum(text.nbytes for text in self._recent.values())

    def _assemble(self, key: _Key) -> Tensor:
        """From memory, from disk, and the rest from the text tower; a pack at a time."""
        places: dict[Words, list[int]] = {}
        for i, words in enumerate(key.vocabulary.synonyms):  # official lists have words twice
            places.setdefault(words, []).append(i)
        at_hand = self._at_hand(key)
        packs = self._packs.setdefault(key.tower, EmbeddingPacks(self._root / key.tower))
        text = torch.empty(0)
        missing: list[Words] = []

        def put(rows: dict[Words, Tensor]) -> None:
            nonlocal text
            indices = [i for words in rows for i in places[words]]
            # NumPy copies on one core; torch would share out each row, which takes seconds when
            # the other cores are busy.
            values = np.stack([row.numpy() for words, row in rows.items() for _ in places[words]])
            if not text.numel():
                text = torch.empty(len(key.vocabulary), *values.shape[1:], dtype=key.dtype)
            text[indices] = torch.from_numpy(values).to(key.dtype)

        for portion in _portions(list(places)):
            rows = {words: at_hand[words] for words in portion if words in at_hand}
            rows.update(packs.read([words for words in portion if words not in rows]))
            if rows:
                put(rows)
            missing += (words for words in portion if words not in rows)
        for words in missing:
            self._refuse_long(words)
        for portion in _portions(missing):  # what is done stays done if interrupted
            new = self._run_tower(portion)
            packs.write(portion, new)
            put(dict(zip(portion, new, strict=True)))
            log.info("Embedded %d classes.", len(portion))
        return text

    def _at_hand(self, key: _Key) -> dict[Words, Tensor]:
        """Embeddings of this tower in memory, in float32."""
        found: dict[Words, Tensor] = {}
        for other, text in self._recent.items():
            if other.tower == key.tower and other.dtype == torch.float32:
                found.update(zip(other.vocabulary.synonyms, text, strict=True))
        return found

    def _run_tower(self, classes: list[Words]) -> Tensor:
        device = next(self._text_encoder.parameters()).device
        with torch.autocast(device.type, enabled=False):  # in full precision, for all later uses
            text: Tensor = self._text_encoder(classes)
        return text.float().cpu()

    def _tower(self) -> str:
        """What the embeddings depend on besides the words, in 32 hexadecimal digits."""
        weights = self._text_encoder.clip.state_dict()
        # Changed weights have another version or place: a fraction of a millisecond to see, where
        # hashing takes half a second for CLIP's base model.
        state = [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in weights.values()]
        if state != self._weights_state:
            digest = hashlib.blake2b(json.dumps(self._shape).encode(), digest_size=16)
            for name, tensor in weights.items():
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
            self._weights_state, self._weights_digest = state, digest.hexdigest()
        return self._weights_digest

    def _refuse_long(self, words: Words) -> None:
        """open_clip would cut the name short without a word."""
        tokenizer = self._text_encoder.tokenize
        if not isinstance(tokenizer, SimpleTokenizer):
            return
        longest = max(self._text_encoder.templates, key=lambda t: len(tokenizer.encode(t)))
        for word in words:
            length = len(tokenizer.encode(longest.format(word))) + 2  # the marks of start and end
            if length > tokenizer.context_length:
                shown = word if len(word) <= 40 else word[:37] + "..."
                raise InputError(
                    f"The name {shown!r} is too long: with its prompt it has {length} tokens and "
                    f"this model reads {tokenizer.context_length}; shorten it."
                )

    def _warn_of_near_synonyms(self, vocabulary: Vocabulary, text: Tensor) -> None:
        key = (self._tower(), vocabulary)
        if key in _warned:
            return
        _warned.add(key)
        pairs = self._near_synonyms(vocabulary, text)
        if pairs:
            listed = ", ".join(f"{a} / {b} ({s:.2f})" for a, b, s in pairs[:_WARNING_PAIRS])
            more = f" and {len(pairs) - _WARNING_PAIRS} more" if len(pairs) > _WARNING_PAIRS else ""
            warnings.warn(
                f"Classes the model can hardly tell apart by name: {listed}{more}. Join such words "
                'into one class ("sofa|couch") or drop one; `sedseg vocabulary check` lists all.',
                NearSynonymWarning,
                stacklevel=3,
            )
