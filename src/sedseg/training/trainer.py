"""The training loop, on accelerate: one process, several GPUs, or hosts started by torchrun.

Dimensions: B images, T classes, P prompt templates, C embedding channels.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from sedseg.data.examples import Batch
from sedseg.errors import InputError
from sedseg.evaluation.validation import validate
from sedseg.model.sed import SED
from sedseg.preprocessing import normalise
from sedseg.training.recipe import Recipe, optimiser_groups
from sedseg.weights import ModelInfo, save_model

logger = logging.getLogger(__name__)

_CHECKPOINT = "checkpoint-{:07d}"


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
            another run and ``resume`` is not asked for.
    """
    accelerator = Accelerator(
        mixed_precision=recipe.precision,
        gradient_accumulation_steps=recipe.accumulate,
        log_with="tensorboard",
        project_config=ProjectConfiguration(project_dir=str(output), logging_dir=str(output)),
        step_scheduler_with_optimizer=False,
    )
    newest = _newest_checkpoint(output)
    if newest and not resume:
        raise InputError(f"{output} holds {newest.name} of a run; resume it or name a new folder.")
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        for dataset in {id(s.dataset): s.dataset for s in recipe.examples.sources}.values():
            dataset.check()
        for dataset in recipe.validation:
            dataset.check()
    accelerator.wait_for_everyone()

    set_seed(recipe.seed)
    model = SED(recipe.config)
    if recipe.initialise:
        recipe.initialise(model)
    optimiser = torch.optim.AdamW(optimiser_groups(model, recipe))
    schedule = _cosine(optimiser, recipe.iterations, recipe.warmup)
    embed = TextTable(model)
    model.to(memory_format=torch.channels_last)
    prepared: Any = accelerator.prepare(model, optimiser, schedule)
    wrapped, optimiser, schedule = prepared
    start = 0
    if newest:
        accelerator.load_state(str(newest))
        start = int(newest.name.rsplit("-", 1)[1])
    batches = accelerator.prepare(_batches(recipe, start, accelerator.num_processes, workers))
    accelerator.init_trackers("tensorboard")

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} loss {task.fields[loss]:.4f}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        speed_estimate_period=600,
        disable=not accelerator.is_main_process,
    )
    with bar:
        task = bar.add_task(recipe.name, total=recipe.iterations, completed=start, loss=0.0)
        _set_training_mode(model, recipe)
        step, total = start, torch.zeros((), device=accelerator.device)
        for batch in batches:
            with accelerator.accumulate(wrapped):
                images = normalise(batch.images).contiguous(memory_format=torch.channels_last)
                text, valid = embed(batch.classes)
                out = wrapped(images, text, valid=valid)
                loss = recipe.objective(out, batch)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(wrapped.parameters(), recipe.max_gradient_norm)
                optimiser.step()
                optimiser.zero_grad()
            total += loss.detach() / recipe.accumulate
            if not accelerator.sync_gradients:
                continue
            schedule.step()
            step += 1
            if step % 10 == 0 or step == recipe.iterations:
                mean = float(accelerator.gather(total[None]).mean()) / (step % 10 or 10)
                total.zero_()
                rate = schedule.get_last_lr()[0]
                accelerator.log({"loss": mean, "learning_rate": rate}, step=step)
                bar.update(task, completed=step, loss=mean)
                if step % 100 == 0 and not bar.console.is_terminal:
                    logger.info("step %d of %d: loss %.4f", step, recipe.iterations, mean)
            if step % recipe.validate_every == 0 or step == recipe.iterations:
                _validate(accelerator, model, recipe, step)
            if step % recipe.checkpoint_every == 0 and step < recipe.iterations:
                _save_checkpoint(accelerator, output, step)
    accelerator.end_training()
    return _save_final(accelerator, model, recipe, output)


class TextTable:
    """Class lists -> padded text embeddings; each name is encoded once in a run."""

    def __init__(self, model: SED) -> None:
        self._model = model
        self._known: dict[str, Tensor] = {}

    def __call__(self, lists: Sequence[tuple[str, ...]]) -> tuple[Tensor, Tensor | None]:
        """B lists -> text (B, T, P, C) and which of it is no padding (B, T); None: none is."""
        new = list(dict.fromkeys(n for names in lists for n in names if n not in self._known))
        if new:
            self._known.update(zip(new, self._model.encode_text(new), strict=True))
        text = [torch.stack([self._known[n] for n in names]) for names in lists]
        if len({len(names) for names in lists}) == 1:
            return torch.stack(text), None
        valid = [torch.ones(len(t), dtype=torch.bool, device=t.device) for t in text]
        return pad_sequence(text, batch_first=True), pad_sequence(valid, batch_first=True)


def _set_training_mode(model: SED, recipe: Recipe) -> None:
    model.train()
    model.text_encoder.eval()
    if recipe.freeze_norms:
        for module in model.encoder.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


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
        persistent_workers=workers > 0,
    )


def _validate(accelerator: Accelerator, model: SED, recipe: Recipe, step: int) -> None:
    if accelerator.is_main_process and recipe.validation:
        model.eval()
        with accelerator.autocast():
            for name, miou in validate(
                model, recipe.validation, recipe.preprocessing, recipe.validate_most
            ):
                accelerator.log({f"miou/{name}": miou}, step=step)
                logger.info("step %d: mIoU of %s %.3f", step, name, miou)
        _set_training_mode(model, recipe)
    accelerator.wait_for_everyone()


def _newest_checkpoint(output: Path) -> Path | None:
    return max(output.glob("checkpoint-" + "[0-9]" * 7), default=None)


def _save_checkpoint(accelerator: Accelerator, output: Path, step: int) -> None:
    final = output / _CHECKPOINT.format(step)
    partial = output / "checkpoint-partial"
    if accelerator.is_main_process and partial.exists():
        shutil.rmtree(partial)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        partial.rename(final)
        for older in output.glob("checkpoint-" + "[0-9]" * 7):
            if older != final:
                shutil.rmtree(older)


def _save_final(accelerator: Accelerator, model: SED, recipe: Recipe, output: Path) -> Path:
    path = output / f"{recipe.name}.safetensors"
    if accelerator.is_main_process:
        classes = recipe.training_classes()
        info = ModelInfo(
            name=recipe.name,
            config=recipe.config,
            preprocessing=recipe.preprocessing,
            training_classes=classes,
            data_terms=recipe.data_terms,
            figures=recipe.figures,
            knows_background="background" in classes,
        )
        save_model(model, info, path)
    accelerator.wait_for_everyone()
    return path
