"""``sedseg segment``."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from sedseg.ahead import ahead
from sedseg.cli.options import (
    AsJson,
    Device,
    Dtype,
    Model,
    Quiet,
    errors_as_json,
    notes_on,
    read_top_k,
)
from sedseg.errors import InputError

if TYPE_CHECKING:
    from concurrent.futures import Future

    from PIL import Image

    from sedseg.segmentation import SavedFiles, Segmentation
    from sedseg.segmenter import Segmenter
    from sedseg.vocabulary import Vocabulary

Outcome = dict[str, Any]
"""Of one photo: ``photo``, ``status`` (done, skipped or failed), and either ``error`` or the
files ``overlay``, ``labels`` and ``record`` with all that the record says."""


def segment(
    photos: Annotated[
        list[str],
        typer.Argument(
            metavar="PHOTO...",
            help="Photos: files, folders (the photos directly in them) or quoted patterns "
            'such as "trip/**/*.jpg".',
            show_default=False,
        ),
    ],
    classes: Annotated[
        str | None,
        typer.Option(
            help="The words to look for: commas separate classes, | synonyms. Or the name of a "
            'label set, such as ade20k-150. "background" is whatever is none of the others.',
            show_default=False,
        ),
    ] = None,
    classes_file: Annotated[
        Path | None,
        typer.Option(
            help="Or a file of them: text, one class a line, or JSON.", show_default=False
        ),
    ] = None,
    model: Model = "sed-tiny",
    top_k: Annotated[
        str,
        typer.Option(
            metavar="N|none",
            help="Reject early the classes that are among the best N of no pixel; none: keep all.",
        ),
    ] = "8",
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Leave pixels without a class whose best score, 0 to 1, is less.",
            show_default=False,
        ),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    output: Annotated[
        Path, typer.Option(help="Folder for the results; replaces older ones of the same photos.")
    ] = Path("sedseg-output"),
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Skip photos that OUTPUT has results of, for these classes."),
    ] = False,
    opacity: Annotated[float, typer.Option(help="Of the overlay's colours, 0 to 1.")] = 0.5,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Find the class of every pixel of photos.

    Example: sedseg segment street.jpg --classes "sky, building, road|street, car"

    For each photo writes NAME.overlay.png (the photo under the classes'
    colours, with a legend), NAME.labels.png (class indices; 255 where there is
    none) and NAME.json (names, colours, areas), and prints how much the classes
    cover. Exit status: 0 all went well; 1 some photos failed, the others are
    saved; 2 the command was wrong.
    """
    stderr = Console(stderr=True, highlight=False, soft_wrap=True)
    with errors_as_json(as_json), notes_on(stderr, quiet):
        settings = {"top_k": read_top_k(top_k), "threshold": threshold}
        named = _one_of(classes, classes_file)
        job = _prepare(photos, named, model, settings, device, dtype, output, opacity, resume)
        began = time.perf_counter()
        outcomes = list(_run(job, stderr, quiet))
        seconds = time.perf_counter() - began
    counts = Counter(outcome["status"] for outcome in outcomes)
    if as_json:
        summary = {status: counts[status] for status in ("done", "skipped", "failed")}
        times = {"seconds": seconds, "photos_per_second": counts["done"] / seconds}
        typer.echo(json.dumps({"photos": outcomes, **summary, **times}, ensure_ascii=False))
    elif not quiet:
        _print_areas(outcomes)
        said = ", ".join(f"{n} {status}" for status, n in counts.items())
        if counts["done"] > 1:
            said += f" in {seconds:.1f} s ({counts['done'] / seconds:.1f} photos a second)"
        written = counts["done"] or counts["skipped"]
        typer.echo(f"{said}; results in {output}" if written else said)
    if counts["failed"]:
        raise typer.Exit(1)


class _Job(NamedTuple):
    photos: list[Path]
    vocabulary: Vocabulary
    segmenter: Segmenter
    settings: dict[str, Any]
    output: Path
    opacity: float
    resume: bool


def _prepare(
    given: Sequence[str],
    classes: str | Path,
    model: str,
    settings: dict[str, Any],
    device: str | None,
    dtype: str | None,
    output: Path,
    opacity: float,
    resume: bool,
) -> _Job:
    """All that can be wrong with the command shows here, the cheapest first."""
    from sedseg.photos import find_photos

    for name, value in (("threshold", settings["threshold"]), ("opacity", opacity)):
        if value is not None and not 0 <= value <= 1:
            raise InputError(f"The {name} is {value:g}; give a number from 0 to 1.")
    photos = find_photos(given)
    output = output.expanduser()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {output} cannot be made: {error.strerror}.") from error

    from sedseg.segmenter import load
    from sedseg.vocabulary import Vocabulary

    vocabulary = Vocabulary.of(classes)
    segmenter = load(model, device=device, dtype=dtype)
    segmenter.prepare(vocabulary)
    return _Job(photos, vocabulary, segmenter, settings, output, opacity, resume)


class _Step(NamedTuple):
    """A photo on its way: segmented, or with its outcome known already."""

    photo: Path
    stem: str
    found: Segmentation | Outcome


def _run(job: _Job, stderr: Console, quiet: bool) -> Iterator[Outcome]:
    """Segment the photos, while the next are read and the last are saved on threads.

    A photo that fails is told of on ``stderr``.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    hidden = quiet or len(job.photos) == 1
    pairs = zip(job.photos, output_stems(job.photos), strict=True)
    reading = ahead(lambda pair: _read(job, *pair), pairs)
    segmented = (_segmented(job, *pair, read) for pair, read in reading)
    with Progress(*columns, TimeRemainingColumn(), console=stderr, disable=hidden) as progress:
        task = progress.add_task("", total=len(job.photos))
        for step, saving in ahead(lambda step: _save(job, step), segmented, count=1):
            progress.update(task, description=escape(step.photo.name))
            outcome = saving.result()
            if outcome["status"] == "failed":
                stderr.print(f"Error: {outcome['error']}", style="red", markup=False)
            yield outcome
            progress.advance(task)


def _read(job: _Job, photo: Path, stem: str) -> Image.Image | Outcome:
    from sedseg.photos import read_photo
    from sedseg.segmentation import SavedFiles

    files = SavedFiles.of(job.output, stem)
    record = _saved_before(files, photo, job) if job.resume else None
    return read_photo(photo) if record is None else _told(record, "skipped", photo, files)


def _segmented(job: _Job, photo: Path, stem: str, reading: Future[Image.Image | Outcome]) -> _Step:
    found: Segmentation | Outcome
    try:
        read = reading.result()
        if isinstance(read, dict):
            found = read
        else:
            result = job.segmenter(read, job.vocabulary, **job.settings)
            found = dataclasses.replace(result, source=str(photo))
    except Exception as error:  # whatever befalls one photo, the others go on
        found = _failed(photo, error)
    return _Step(photo, stem, found)


def _save(job: _Job, step: _Step) -> Outcome:
    if isinstance(step.found, dict):
        return step.found
    try:
        files = step.found.save(job.output, step.stem, job.opacity)
        return _told(step.found.record(), "done", step.photo, files)
    except Exception as error:
        return _failed(step.photo, error)


def _told(record: dict[str, Any], status: str, photo: Path, files: SavedFiles) -> Outcome:
    paths = {name: str(path) for name, path in files._asdict().items()}
    return {**record, "photo": str(photo), "status": status, **paths}


def _failed(photo: Path, error: Exception) -> Outcome:
    return {"photo": str(photo), "status": "failed", "error": _said(photo, error)}


def _said(photo: Path, error: Exception) -> str:
    """A sentence that names the photo."""
    said = str(error)
    if isinstance(error, MemoryError) or "out of memory" in said.lower():
        said = "there is not enough memory; shrink the photo or name fewer classes."
    elif not isinstance(error, InputError):
        said = f"{error!r}, a defect of sedseg; please report it."
    return said if str(photo) in said else f"{photo}: {said}"


def output_stems(photos: Sequence[Path]) -> list[str]:
    """What the results of each photo are called: its stem.

    Photos of equal stems are called by their whole path, from the folder that all of these share:
    a/x.jpg and b/x.jpg become a-x.jpg and b-x.jpg.
    """
    same: dict[str, list[Path]] = {}
    for photo in photos:
        same.setdefault(photo.stem.casefold(), []).append(photo.resolve())
    taken: set[str] = set()
    stems = []
    for photo in photos:
        rivals = same[photo.stem.casefold()]
        stem = photo.stem
        if len(rivals) > 1:
            shared = os.path.commonpath([rival.parent for rival in rivals])
            stem = "-".join(photo.resolve().relative_to(shared).parts)
        number, free = 2, stem
        while free.casefold() in taken:
            free, number = f"{stem}-{number}", number + 1
        taken.add(free.casefold())
        stems.append(free)
    return stems


def _saved_before(files: SavedFiles, photo: Path, job: _Job) -> dict[str, Any] | None:
    """The record of results that are all there and were made of this photo in this way."""
    if not all(file.exists() for file in files):
        return None
    wanted = {**job.segmenter.settings, **job.settings, "opacity": job.opacity}
    try:
        record: dict[str, Any] = json.loads(files.record.read_text(encoding="utf-8"))
        words = tuple(tuple(entry["synonyms"]) for entry in record["classes"])
        same_photo = Path(record["photo"]).resolve() == photo.resolve()
        newer = files.record.stat().st_mtime >= photo.stat().st_mtime
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no record of ours: make it anew
    same = same_photo and newer and words == job.vocabulary.synonyms
    return record if same and wanted.items() <= record.items() else None


def _print_areas(outcomes: Sequence[Outcome]) -> None:
    """One table: the classes found on all photos together, by area."""
    records = [outcome for outcome in outcomes if outcome["status"] != "failed"]
    if not records:
        return
    total = sum(record["width"] * record["height"] for record in records)
    table = Table("", "class", box=None, header_style="bold")
    for heading in ("share", "pixels", *(["photos"] if len(records) > 1 else [])):
        table.add_column(heading, justify="right")
    by_index = list(zip(*(record["classes"] for record in records), strict=True))
    rows = [(sum(e["pixels"] for e in entries), entries) for entries in by_index]
    for pixels, entries in sorted(rows, key=lambda row: -row[0]):
        if pixels:
            present = [str(sum(e["pixels"] > 0 for e in entries))] if len(records) > 1 else []
            swatch, name = Text("■", entries[0]["colour"]), Text(entries[0]["name"])
            table.add_row(swatch, name, f"{pixels / total:.1%}", f"{pixels:,}", *present)
    nothing = sum(record["unlabelled"]["pixels"] for record in records)
    if nothing:
        table.add_row("", "(no class)", f"{nothing / total:.1%}", f"{nothing:,}")
    Console(highlight=False).print(table)


def _one_of(classes: str | None, classes_file: Path | None) -> str | Path:
    if (classes is None) == (classes_file is None):
        raise InputError(
            'Say what to look for by either --classes "sky, building, car" or --classes-file FILE.'
        )
    return classes if classes_file is None else classes_file  # type: ignore[return-value]
