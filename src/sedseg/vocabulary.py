"""The words to look for: a list of classes, each with one or more synonyms.

One entry is one class; `|` or ", " separates its synonyms (", " as the official lists do). Only
in a string do commas separate classes: "sofa|couch, wall" has two.
"""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from open_clip.tokenizer import SimpleTokenizer

from sedseg.errors import InputError
from sedseg.label_sets import LABEL_SETS, label_set

BACKGROUND = "background"
"""The class that means none of the others."""

_FILE_SUFFIXES = (".txt", ".json", ".csv", ".tsv", ".names", ".yaml", ".yml")
_UNSEEN = "\u200b\u2060\ufeff\xad"  # zero-width space, joiner, byte order mark, soft hyphen

_Entry = tuple[str, list[str]]
"""Where a class stands ("line 3 of a.txt") and its synonyms as written."""


@dataclass(frozen=True)
class Vocabulary:
    """T classes in order; build one with :meth:`of`, which checks the words.

    Attributes:
        synonyms: the words of each class; the first is the name it is shown by.
    """

    synonyms: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.synonyms)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each class."""
        return tuple(words[0] for words in self.synonyms)

    @property
    def background(self) -> int | None:
        """The index of the class named "background", if there is one."""
        names = [name.casefold() for name in self.names]
        return names.index(BACKGROUND) if BACKGROUND in names else None

    @classmethod
    def of(cls, spec: Any) -> Vocabulary:
        """The vocabulary that `spec` describes.

        Args:
            spec: a Vocabulary; a list of classes (names, or lists of synonyms); a mapping from
                name to synonyms; the name of a label set; a text file (UTF-8, one class a line;
                blank lines and lines that start with # are skipped) or a JSON file (such a list
                or mapping), as a Path or as a string that names an existing file; any other
                string is split at its commas.

        Raises:
            InputError: a file cannot be read; the list is empty; an entry is empty, is no text,
                holds nothing that CLIP's tokenizer knows, or names what another entry names
                (case and spaces aside).
        """
        if isinstance(spec, Vocabulary):
            return spec
        if isinstance(spec, str):
            spec = spec.strip()
            name = spec.casefold().replace("_", "-")
            if name in LABEL_SETS:
                # Unchecked: official lists hold words twice ("ground", "screen" in ADE20K's 847),
                # and results are only comparable with the lists as they are.
                return cls(label_set(name).synonyms)
            path = _path_in(spec)
            return cls(_checked(_of_string(spec) if path is None else _of_file(path)))
        if isinstance(spec, Path):
            return cls(_checked(_of_file(spec)))
        return cls(_checked(_of_values(spec, "the class list")))


def _path_in(text: str) -> Path | None:
    """The path that a string means, if it means one."""
    looks_like_one = text.lower().endswith(_FILE_SUFFIXES) and "," not in text
    if not looks_like_one and not re.search(r"[./\\]", text):
        return None  # a file called "car" does not hide the class
    try:
        path = Path(text).expanduser()
        return path if looks_like_one or path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, a null character, an unknown ~user
        return None


def _of_string(text: str) -> Iterator[_Entry]:
    entries = re.split(r"[,\n]", text)
    if len(entries) == 1:
        near = difflib.get_close_matches(text.casefold(), LABEL_SETS, n=2, cutoff=0.75)
        if near:
            raise InputError(
                f"No label set is named {text!r}; did you mean {' or '.join(map(repr, near))}? "
                f"(Known are {', '.join(LABEL_SETS)}.)"
            )
        if ";" in text:
            raise InputError(
                f"Commas separate classes, not semicolons; write {text!r} with commas."
            )
    if text:
        for number, entry in enumerate(entries, 1):
            yield f"class {number} of the class list", entry.split("|")


def _of_file(path: Path) -> Iterator[_Entry]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(
            f"The class file {path} does not exist; give an existing file, or the classes "
            'themselves, separated by commas ("sky, building, road").'
        ) from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; give a text or JSON file of classes.") from None
    except OSError as error:
        raise InputError(f"The class file {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise InputError(f"The class file {path} is not UTF-8 text; save it as UTF-8.") from None
    if path.suffix.lower() == ".json" or text.lstrip().startswith(("[", "{")):
        yield from _of_json(text, path)
        return
    lines = [
        (f"line {number} of {path}", line)
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if len(lines) == 1:
        _refuse_commas(*lines[0], "put each class on a line of its own")
    yield from ((where, _synonyms(line)) for where, line in lines)


def _of_json(text: str, path: Path) -> Iterator[_Entry]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):  # the json module would keep the last without a word
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"The class file {path} has {twice!r} twice; remove one.")
        return found

    try:
        values = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise InputError(
            f"The class file {path} is not valid JSON: line {error.lineno}, column {error.colno}: "
            f"{error.msg}."
        ) from None
    except RecursionError:
        raise InputError(f"The class file {path} is nested too deeply for a list.") from None
    if not isinstance(values, list | dict):
        raise InputError(
            f"The class file {path} holds {values!r}; give a list of classes, or an object "
            "from names to lists of synonyms."
        )
    yield from _of_values(values, str(path))


def _of_values(values: Any, source: str) -> Iterator[_Entry]:
    if isinstance(values, Mapping):
        values = [_named(name, words, source) for name, words in values.items()]
    if isinstance(values, bytes | set | frozenset) or not isinstance(values, Iterable):
        raise InputError(
            f"Classes cannot be read from {values!r}; give a list of names, a file, or a string "
            "with commas."
        )
    values = list(values)
    if len(values) == 1 and isinstance(values[0], str):
        _refuse_commas(f"class 1 of {source}", values[0], "give each class an entry of its own")
    for number, value in enumerate(values, 1):
        where = f"class {number} of {source}"
        if isinstance(value, str):
            yield where, _synonyms(value)
        elif isinstance(value, list | tuple) and all(isinstance(word, str) for word in value):
            # In a list of synonyms a comma is a part of the word.
            yield where, [part for word in value for part in word.split("|")] or [""]
        else:
            raise InputError(
                f"A class is a name or a list of synonyms, but {where} is {value!r}; mend it."
            )


def _named(name: Any, words: Any, source: str) -> list[str]:
    """{name: synonyms} -> the words of the class; its name is the first of them."""
    words = _synonyms(words) if isinstance(words, str) else words
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        raise InputError(
            f"The class {name!r} of {source} should have a list of synonyms, but has {words!r}."
        )
    return [str(name), *(word for word in words if word != name)]


def _synonyms(entry: str) -> list[str]:
    return re.split(r"\||,\s", entry.strip())


def _refuse_commas(where: str, entry: str, mend: str) -> None:
    """A lone entry with commas would be one class, and is more often meant as several."""
    if "," in entry and "|" not in entry:
        raise InputError(
            f"The only class is {entry.strip()!r} in {where}: {mend}, or separate its synonyms "
            "by | if it is one class."
        )


def _checked(entries: Iterable[_Entry]) -> tuple[tuple[str, ...], ...]:
    """Clean the words; refuse those that are empty, unknown to the tokenizer or there twice."""
    classes: list[tuple[str, ...]] = []
    seen: dict[tuple[int, ...], str] = {}  # what the text tower sees of a word -> where it is
    for where, written in entries:
        words = tuple(_clean(word) for word in written)
        for word, raw in zip(words, written, strict=True):
            tokens = _tokens(word)
            if not raw.strip():
                raise InputError(f"There is an empty name in {where}; fill it in or remove it.")
            if not tokens:
                raise InputError(
                    f"The name {raw!r} in {where} has no character that CLIP's tokenizer knows; "
                    "write it out in words, or remove it."
                )
            if tokens in seen:
                raise InputError(
                    f"The name {word!r} is there twice, in {seen[tokens]} and in {where}; "
                    "a word can stand for one class only, so remove one."
                )
            seen[tokens] = where
        classes.append(words)
    if not classes:
        raise InputError("The class list is empty; give at least one class.")
    return tuple(classes)


def _clean(word: str) -> str:
    """Without control characters (a terminal would obey them), halves of characters, edges or
    repeated spaces.
    """
    drop = ("Cc", "Cs")
    word = "".join(c for c in word if c.isspace() or unicodedata.category(c) not in drop)
    return " ".join(word.split()).strip(_UNSEEN + " ")


def _tokens(word: str) -> tuple[int, ...]:
    """CLIP's tokens of a word; none if nothing of it can be seen or it is one of CLIP's marks."""
    if all(unicodedata.category(c) in ("Cf", "Zs") for c in word):
        return ()
    tokenizer = _tokenizer()
    tokens = tuple(tokenizer.encode(word))
    return () if {tokenizer.sot_token_id, tokenizer.eot_token_id} & set(tokens) else tokens


@cache
def _tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer()
