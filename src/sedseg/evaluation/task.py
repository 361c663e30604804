"""What is evaluated: labelled photos, the words asked, and what each word is scored as.

Dimensions: S scored classes, T prompts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sedseg.data.benchmarks import prepared_folder
from sedseg.data.dataset_file import DatasetFile
from sedseg.data.folder import FolderDataset
from sedseg.errors import InputError
from sedseg.label_sets import LABEL_SETS, label_set
from sedseg.vocabulary import Vocabulary


@dataclass(frozen=True)
class EvaluationTask:
    """Photos with labels, and the words asked of a model on them.

    Attributes:
        dataset: photos and labels; a label is the index of a scored class.
        split: which part of the data set.
        classes: the S scored names.
        prompts: the T words asked, in order.
        scored_as: (T,) the scored class of each; -1 for a distractor, which is never right.
        notes: what a reader of the result must know.
    """

    dataset: FolderDataset
    split: str
    classes: tuple[str, ...]
    prompts: Vocabulary
    scored_as: tuple[int, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, dataset: FolderDataset, split: str = "", words: Any = None) -> EvaluationTask:
        """A data set's classes, each a prompt.

        Args:
            dataset: photos and labels.
            split: its name.
            words: other words for the classes, in their order; what :meth:`Vocabulary.of` takes.

        Raises:
            InputError: there are not as many words as classes.
        """
        names = dataset.vocabulary.names
        prompts = dataset.vocabulary if words is None else Vocabulary.of(words)
        if len(prompts) != len(names):
            raise InputError(
                f"{_called(words)} has {len(prompts)} classes, but {dataset.name} has {len(names)} "
                "(its classes.txt); give one for each, in the same order."
            )
        return cls(dataset, split, names, prompts, tuple(range(len(names))))

    def with_distractors(self, words: Any) -> EvaluationTask:
        """The same with more words asked, none of which is ever right.

        Words that name one of the classes already are left out.

        Args:
            words: what :meth:`Vocabulary.of` takes.
        """
        own = {word.casefold() for prompt in self.prompts.synonyms for word in prompt}
        more = tuple(
            prompt
            for prompt in dict.fromkeys(Vocabulary.of(words).synonyms)
            if own.isdisjoint(word.casefold() for word in prompt)
        )
        note = f"{len(more)} distractors are asked too; a pixel that gets one counts as wrong."
        return EvaluationTask(
            self.dataset,
            self.split,
            self.classes,
            Vocabulary(self.prompts.synonyms + more),
            self.scored_as + (-1,) * len(more),
            (*self.notes, note),
        )


def open_task(
    dataset: str | Path,
    split: str | None = None,
    root: Path | str | None = None,
    words: Any = None,
) -> EvaluationTask:
    """A benchmark by its name, or a folder of labelled photos.

    Args:
        dataset: "ade20k-150" or the like, prepared below ``root``; or a folder.
        split: default "test" where there is one, else "val".
        root: where `sedseg datasets prepare` put the benchmarks; default: ``SEDSEG_DATASETS``.
        words: other words for the classes; see :meth:`EvaluationTask.of`.

    Raises:
        InputError: there is no such data set or split, or it is faulty.
    """
    folder = _folder(str(dataset), root)
    if split is None:
        split = "test" if (folder / "test").is_dir() else "val"
    opened = FolderDataset.open(folder, split)
    if opened.benchmark is None:
        return EvaluationTask.of(opened, split, words)
    notes = _notes(opened, DatasetFile.read(folder).splits[split].expected, words)
    if words is not None:
        return replace(EvaluationTask.of(opened, split, words), notes=notes)
    labels = label_set(opened.benchmark)
    prompts = Vocabulary(labels.synonyms)
    return EvaluationTask(opened, split, labels.scored_names, prompts, labels.scored_as, notes)


def _folder(dataset: str, root: Path | str | None) -> Path:
    """A benchmark's name goes before a folder of that name; "./ade20k-150" means the folder."""
    path = Path(dataset).expanduser()
    if dataset in LABEL_SETS:
        return prepared_folder(dataset, root)
    if path.is_dir():
        return path
    if path.name != dataset:
        raise InputError(f"There is no folder {dataset}; name an existing one, or a benchmark.")
    return prepared_folder(dataset, root)


def _notes(dataset: FolderDataset, expected: int, words: Any) -> tuple[str, ...]:
    """Why the figures compare with no published ones, if they do not."""
    notes = []
    if len(dataset) != expected:
        notes.append(f"{len(dataset):,} of {dataset.benchmark}'s {expected:,} photos are here")
    if words is not None:
        notes.append(f"The words asked are not {dataset.benchmark}'s own")
    return tuple(f"{note}; the figures compare with no published ones." for note in notes)


def _called(words: Any) -> str:
    return str(words) if isinstance(words, Path) else "The class list"
