"""The training loop, on accelerate: one process, several GPUs, or hosts started by torchrun.

Dimensions: B images, T classes, P prompt templates, C embedding channels.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration, set_seed
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from sedseg.data.examples import Batch, ClassList
from sedseg.devices import choose_device
from sedseg.errors import InputError
from sedseg.evaluation.validation import validate
from sedseg.model.decoder import DecoderOutput
from sedseg.model.sed import SED
from sedseg.training.recipe import Recipe, optimiser_groups
from sedseg.vocabulary import BACKGROUND
from sedseg.weights import ModelInfo, save_model

logger = logging.getLogger(__name__)

_CHECKPOINTS = "checkpoint-" + "[0-9]" * 7
_LOG_EVERY = 10


def train(recipe: Recipe, output: Path, *, resume: bool = False, workers: int = 0) -> Path:
    """Carry out a recipe.

    A checkpoint holds all that the next step depends on, so that a resumed run ends, on a CPU, with
    the very weights of an unbroken one.

    Args:
        recipe: what to train.
        output: folder for checkpoints, TensorBoard's log and the final weights.
        resume: go on from the newest checkpoint in ``output``.
        workers: processes that read and augment photos.

    Returns:
        The path of the final weights, ``output/NAME.safetensors``.

    Raises:
        InputError: the data are faulty (found before the first step), or ``output`` holds
            a finished run, or one under way and ``resume`` is not asked for.
    """
    newest = max(output.glob(_CHECKPOINTS), default=None)
    finished = output / f"{recipe.name}.safetensors"
    if finished.exists():
        raise InputError(
            f"The run in {output} is finished ({finished.name}); name a new folder, and give that "
            "file with --pretrained to a recipe that goes on from one."
        )
    if newest and not resume:
        raise InputError(f"{output} holds {newest.name} of a run; resume it or name a new folder.")
    if resume and not newest:
        logger.info("There is no checkpoint in %s; starting at step 0.", output)
    run = _Run(recipe, output)
    start = 0
    if newest:
        run.accelerator.load_state(str(newest))
        start = int(newest.name.rsplit("-", 1)[1])
    figures: dict[str, float] = {}
    with _progress(run) as bar:
        task = bar.add_task(
            recipe.name, total=recipe.iterations, completed=start, loss=0.0, rate=0.0
        )
        losses_since = []
        for step, loss in enumerate(run.steps(start, workers), start + 1):
            losses_since.append(loss)
            last = step == recipe.iterations
            if step % _LOG_EVERY == 0 or last:
                mean = run.log(step, losses_since)
                losses_since.clear()
                bar.update(task, completed=step, loss=mean, rate=run.rate)
                if step % 100 == 0 and not bar.console.is_terminal:
                    logger.info("step %d of %d: loss %.4f", step, recipe.iterations, mean)
            if step % recipe.validate_every == 0 or last:
                figures = run.validate(step)
            if step % recipe.checkpoint_every == 0 and not last:
                run.save_checkpoint(step)
    path = run.save_final(figures)
    run.accelerator.end_training()  # ends the process group too, so it comes last
    return path


class _Run:
    """A recipe under way: the model, what trains it, and where it is saved."""

    def __init__(self, recipe: Recipe, output: Path) -> None:
        self.recipe, self.output = recipe, output
        self.accelerator = Accelerator(
            cpu=choose_device().type == "cpu",  # else it takes several CPU processes for strangers
            mixed_precision=recipe.precision,
            gradient_accumulation_steps=recipe.accumulate,
            log_with="tensorboard",
            project_config=ProjectConfiguration(project_dir=str(output), logging_dir=str(output)),
            step_scheduler_with_optimizer=False,
            # The main process reads all labels before the first step, while the others wait.
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))],
        )
        if self.accelerator.is_main_process:
            for dataset in (*(s.dataset for s in recipe.examples.sources), *recipe.validation):
                dataset.check()
            seen = sum(len(s.dataset) for s in recipe.examples.sources)
            held_out = sum(map(len, recipe.validation))
            logger.info("%d photos to train on, %d to validate.", seen, held_out)
            output.mkdir(parents=True, exist_ok=True)
        self.accelerator.wait_for_everyone()
        set_seed(recipe.seed)
        self.model = SED(recipe.config)
        if recipe.initialise:
            recipe.initialise(self.model)
        optimiser = torch.optim.AdamW(optimiser_groups(self.model, recipe))
        schedule = _cosine(optimiser, recipe.iterations, recipe.warmup)
        self.model.to(memory_format=torch.channels_last)
        self.embed = TextTable(self.model)
        prepared: Any = self.accelerator.prepare(self.model, optimiser, schedule)
        self.wrapped, self.optimiser, self.schedule = prepared
        self.accelerator.init_trackers("tensorboard")

    def steps(self, start: int, workers: int) -> Iterator[Tensor]:
        """Train from step ``start`` on; yield each step's loss."""
        batches = self.accelerator.prepare(
            _batches(self.recipe, start, self.accelerator.num_processes, workers)
        )
        self._set_training_mode()
        loss = torch.zeros((), device=self.accelerator.device)
        for batch in batches:
            with self.accelerator.accumulate(self.wrapped):
                part = self.recipe.objective(self._forward(batch), batch)
                self.accelerator.backward(part)
                if self.accelerator.sync_gradients:
                    most = self.recipe.max_gradient_norm
                    self.accelerator.clip_grad_norm_(self.wrapped.parameters(), most)
                self.optimiser.step()
                self.optimiser.zero_grad()
            loss = loss + part.detach() / self.recipe.accumulate
            if self.accelerator.sync_gradients:
                self.schedule.step()
                yield loss
                loss = torch.zeros_like(loss)

    def _forward(self, batch: Batch) -> DecoderOutput:
        images = self.recipe.preprocessing.normalise(batch.images)
        images = images.contiguous(memory_format=torch.channels_last)
        text, valid = self.embed(batch.classes)
        output: DecoderOutput = self.wrapped(images, text, valid=valid)
        return output

    def log(self, step: int, losses: list[Tensor]) -> float:
        """Write the mean of ``losses``, over all processes, and the rate to TensorBoard."""
        mean = float(self.accelerator.gather(torch.stack(losses)).mean())
        self.accelerator.log({"loss": mean, "learning_rate": self.rate}, step=step)
        return mean

    @property
    def rate(self) -> float:
        """The learning rate of the first group."""
        return float(self.schedule.get_last_lr()[0])

    def validate(self, step: int) -> dict[str, float]:
        """The mIoU of each validation set, on the main process."""
        found: dict[str, float] = {}
        recipe = self.recipe
        if self.accelerator.is_main_process and recipe.validation:
            self.model.eval()
            with self.accelerator.autocast():
                for name, miou in validate(
                    self.model, recipe.validation, recipe.preprocessing, recipe.validate_most
                ):
                    found[name] = miou
                    self.accelerator.log({f"miou/{name}": miou}, step=step)
                    logger.info("step %d: mIoU of %s %.3f", step, name, miou)
            self._set_training_mode()
        self.accelerator.wait_for_everyone()
        return found

    def _set_training_mode(self) -> None:
        self.model.train()
        self.model.text_encoder.eval()
        if self.recipe.freeze_norms:
            for module in self.model.encoder.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def save_checkpoint(self, step: int) -> None:
        """Write all that the next step depends on, then drop the checkpoint before."""
        final = self.output / f"checkpoint-{step:07d}"
        partial = self.output / "checkpoint-partial"
        main = self.accelerator.is_main_process
        if main and partial.exists():
            shutil.rmtree(partial)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if main:
            partial.rename(final)
            for older in self.output.glob(_CHECKPOINTS):
                if older != final:
                    shutil.rmtree(older)

    def save_final(self, figures: dict[str, float]) -> Path:
        """Write the weights, with what is known of them."""
        recipe = self.recipe
        path = self.output / f"{recipe.name}.safetensors"
        if self.accelerator.is_main_process:
            classes = recipe.training_classes()
            names = {name.casefold() for name in classes}
            info = ModelInfo(
                name=recipe.name,
                config=recipe.config,
                preprocessing=recipe.preprocessing,
                training_classes=classes,
                data_terms=recipe.data_terms,
                figures={"validation mIoU": figures} if figures else {},
                knows_background=BACKGROUND in names,
            )
            save_model(self.model, info, path)
        self.accelerator.wait_for_everyone()
        return path


class TextTable:
    """Class lists -> padded text embeddings; each class is encoded once in a run."""

    def __init__(self, model: SED) -> None:
        self._model = model
        self._known: dict[tuple[str, ...], Tensor] = {}

    def __call__(self, lists: Sequence[ClassList]) -> tuple[Tensor, Tensor | None]:
        """B lists -> text (B, T, P, C) and which of it is no padding (B, T); None: all of it.

        Where all lists are equal, text is (T, P, C).
        """
        new = list(dict.fromkeys(n for names in lists for n in names if n not in self._known))
        if new:
            self._known.update(zip(new, self._model.encode_text(new), strict=True))
        if len(set(lists)) == 1:
            return torch.stack([self._known[n] for n in lists[0]]), None
        text = [torch.stack([self._known[n] for n in names]) for names in lists]
        if len({len(names) for names in lists}) == 1:
            return torch.stack(text), None
        valid = [torch.ones(len(t), dtype=torch.bool, device=t.device) for t in text]
        return pad_sequence(text, batch_first=True), pad_sequence(valid, batch_first=True)


def _cosine(
    optimiser: torch.optim.Optimizer, iterations: int, warmup: int
) -> torch.optim.lr_scheduler.LRScheduler:
    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(iterations - warmup, 1)))

    return torch.optim.lr_scheduler.LambdaLR(optimiser, factor)


def _batches(recipe: Recipe, start: int, processes: int, workers: int) -> DataLoader[Batch]:
    parts = processes * recipe.accumulate
    if recipe.batch_size % parts:
        raise InputError(
            f"A batch of {recipe.batch_size} cannot be split over {processes} processes x "
            f"{recipe.accumulate} accumulated parts; choose numbers that divide it."
        )
    first, last = start * recipe.batch_size, recipe.iterations * recipe.batch_size
    return DataLoader(
        recipe.examples,
        batch_size=recipe.batch_size // parts,
        sampler=range(first, last),
        collate_fn=Batch.of,
        num_workers=workers,
        # Of its own: drawing from the common one would change what a resumed run draws next.
        generator=torch.Generator(),
        persistent_workers=workers > 0,
    )


def _progress(run: _Run) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("loss {task.fields[loss]:.4f} rate {task.fields[rate]:.1e}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        speed_estimate_period=600,
        disable=not run.accelerator.is_main_process,
    )
