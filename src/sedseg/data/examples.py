"""The endless stream of training examples, each a function of its number alone.

A run that is resumed, or that spreads over several processes and loader workers, therefore sees
the very same examples.

Dimensions: B images, T classes, S crop side in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from sedseg.data.augment import Augment
from sedseg.data.folder import UNLABELLED, FolderDataset

_CROPS_TRIED = 4
_PIXELS_OF_A_CLASS = 64
"""Fewer do not show it."""

ClassList = tuple[tuple[str, ...], ...]
"""T classes, each with its synonyms."""


class Example(NamedTuple):
    """A crop and the words asked of it.

    image: (3, S, S) uint8. labels: (S, S), an index into ``classes``, ``UNLABELLED`` where none of
    them fits or nothing is known. classes: T, with synonyms. counted: (T, S, S) bool, where the
    truth is known of a class; None: everywhere.
    """

    image: Tensor
    labels: Tensor
    classes: ClassList
    counted: Tensor | None


class Batch(NamedTuple):
    """Examples together: (B, 3, S, S), (B, S, S), B lists, (B, T, S, S) or None."""

    images: Tensor
    labels: Tensor
    classes: list[ClassList]
    counted: Tensor | None

    @staticmethod
    def of(examples: Sequence[Example]) -> Batch:
        """Stack; where the class lists differ in length, T is the longest."""
        images, labels, classes, counted = zip(*examples, strict=True)
        masks = None if counted[0] is None else pad_sequence(list(counted), batch_first=True)
        return Batch(torch.stack(images), torch.stack(labels), list(classes), masks)


@dataclass(frozen=True)
class Source:
    """A data set in the mixture.

    Attributes:
        dataset: photos and labels.
        weight: how often it is drawn, relative to the others.
        foreign: names that are none of its classes and cannot be true of any labelled pixel; they
            serve as negatives there, but not on background, where anything may hide.
        by_class: how often, 0 to 1, a class is drawn first, each as likely as another, and then
            a photo and a crop that show it (Rare Class Sampling, Hoyer et al., DAFormer, 2022).
    """

    dataset: FolderDataset
    weight: float = 1.0
    foreign: tuple[str, ...] = ()
    by_class: float = 0.0

    @cached_property
    def photos_with(self) -> dict[int, np.ndarray]:
        """The photos that show each class; classes of no photo are left out."""
        shown = self.dataset.classes_shown()
        return {
            c: np.array([i for i, classes in enumerate(shown) if c in classes])
            for c in sorted(set().union(*shown))
        }


@dataclass(frozen=True)
class ClassSampling:
    """Which words are asked of a crop.

    Attributes:
        own: classes of the set itself, at most: those present first, then absent ones; None: all.
        total: words in all; foreign ones of the source make up the number, and where these do not
            suffice, further own ones. A fixed number keeps every shape the same from step to step,
            which convolution libraries reward. None: no foreign words.
        synonyms: other names of a class, one of which replaces it with probability ``swap``.
        swap: that probability.
    """

    own: int | None = None
    total: int | None = None
    synonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    swap: float = 0.0


@dataclass(frozen=True)
class ExampleStream(Dataset):
    """Examples drawn from the sources.

    Attributes:
        ignored_count: unlabelled pixels count as "none of the classes", as in the paper; else the
            loss leaves them out.
        cache: keep decoded photos in memory, in each process that reads.
        seed: of the draws.
    """

    sources: tuple[Source, ...]
    augment: Augment
    sampling: ClassSampling = ClassSampling()
    ignored_count: bool = True
    cache: bool = False
    seed: int = 0
    _decoded: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def __getitem__(self, index: int) -> Example:
        """The example of that number, whatever came before it."""
        rng = np.random.default_rng([self.seed, index])
        weights = np.array([source.weight for source in self.sources])
        which = int(rng.choice(len(weights), p=weights / weights.sum()))
        source = self.sources[which]
        wanted = None
        if source.by_class and rng.random() < source.by_class:
            wanted = int(rng.choice(list(source.photos_with)))
            photo = int(rng.choice(source.photos_with[wanted]))
        else:
            photo = int(rng.integers(len(source.dataset)))
        image, labels = self._crop(*self._read(which, photo), wanted, int(rng.integers(2**62)))
        return self._ask(source, image, labels, rng)

    def _crop(
        self, image: Tensor, labels: Tensor, wanted: int | None, seed: int
    ) -> tuple[Tensor, Tensor]:
        """A random crop; of several the first that shows the class ``wanted``, if one does."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            for _ in range(_CROPS_TRIED):
                crop = self.augment(image, labels)
                if wanted is None or (crop[1] == wanted).sum() >= _PIXELS_OF_A_CLASS:
                    break
        return crop

    def _read(self, source: int, photo: int) -> tuple[Tensor, Tensor]:
        key = (source, photo)
        if key in self._decoded:
            return self._decoded[key]
        example = self.sources[source].dataset[photo]
        if self.cache:
            self._decoded[key] = example
        return example

    def _ask(
        self, source: Source, image: Tensor, labels: Tensor, rng: np.random.Generator
    ) -> Example:
        vocabulary = source.dataset.vocabulary
        own, foreign = self._choose(source, labels, rng)
        position = torch.full((UNLABELLED + 1,), UNLABELLED, dtype=labels.dtype)
        position[torch.from_numpy(own)] = torch.arange(len(own), dtype=labels.dtype)
        asked = [self._words(vocabulary.synonyms[i], rng) for i in own]
        classes = (*asked, *((word,) for word in foreign))
        known = labels != UNLABELLED
        counted = None
        if not self.ignored_count:
            object_ = known
            if vocabulary.background is not None:
                object_ = known & (labels != vocabulary.background)
            counted = torch.stack([*[known] * len(own), *[object_] * len(foreign)])
        return Example(image, position[labels.long()], classes, counted)

    def _choose(
        self, source: Source, labels: Tensor, rng: np.random.Generator
    ) -> tuple[np.ndarray, list[str]]:
        """Indices of own classes, and foreign words."""
        classes = len(source.dataset.vocabulary)
        if self.sampling.own is None:
            return np.arange(classes), []
        here = np.bincount(labels[labels != UNLABELLED].numpy(), minlength=classes) > 0
        present, absent = np.flatnonzero(here), np.flatnonzero(~here)
        own = np.concatenate([rng.permutation(present), rng.permutation(absent)])
        if self.sampling.total is None:
            return own[: self.sampling.own], []
        wanted = self.sampling.total - min(classes, self.sampling.own)
        foreign = [source.foreign[i] for i in rng.permutation(len(source.foreign))[:wanted]]
        return own[: self.sampling.total - len(foreign)], foreign

    def _words(self, words: tuple[str, ...], rng: np.random.Generator) -> tuple[str, ...]:
        others = self.sampling.synonyms.get(words[0], ())
        if others and rng.random() < self.sampling.swap:
            return (others[rng.integers(len(others))],)
        return words
