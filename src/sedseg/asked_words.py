"""A class list as a model is asked for it, and the way back from its rows to the classes.

Dimensions: T classes, T' classes asked of the model, P prompt templates, C embedding channels,
h w pixels of the model's maps.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

from torch import Tensor

from sedseg.score_maps import ScoreMaps
from sedseg.vocabulary import Vocabulary


class AskedWords(NamedTuple):
    """What a model is asked.

    vocabulary: all T classes. text: (T', P, C), of the classes asked for. asked: (T',) their
    indices. absence: the index of a background that is scored as the absence of the others.
    """

    vocabulary: Vocabulary
    text: Tensor
    asked: tuple[int, ...]
    absence: int | None = None

    def score_maps(self, scores: Tensor, kept: Tensor, height: int, width: int) -> ScoreMaps:
        """The scores of one photo of ``height`` x ``width`` pixels.

        Args:
            scores: (K, h, w), 0 to 1, of the classes kept.
            kept: (T',) bool, K of them true.
        """
        return ScoreMaps(
            coarse=scores,
            rows=tuple(itertools.compress(self.asked, kept.tolist())),
            shape=(len(self.vocabulary), height, width),
            absence=self.absence,
        )

    def rejected(self, kept: Tensor) -> tuple[tuple[str, ...], ...]:
        """From kept (3, T') bool: the names that each of the three rejections dropped."""
        names = [self.vocabulary.names[i] for i in self.asked]
        before = kept.new_ones(kept.shape[1])
        stages = []
        for after in kept:
            stages.append(tuple(itertools.compress(names, (before & ~after).tolist())))
            before = after
        return tuple(stages)
