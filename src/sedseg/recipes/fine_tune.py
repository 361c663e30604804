"""A model of your own from a few hundred labelled photos."""

from __future__ import annotations

from sedseg.data.augment import Augment
from sedseg.data.examples import ClassSampling, ExampleStream, Source
from sedseg.data.folder import open_all
from sedseg.model.sed import SED
from sedseg.recipes.sed_tiny import objective
from sedseg.training.recipe import ParameterGroup, Recipe, RecipeInputs
from sedseg.weights import load_model


def fine_tune(inputs: RecipeInputs) -> Recipe:
    """Go on training sed-tiny, or the model given with ``--pretrained``, on your data set.

        sedseg train fine_tune --data my-photos --output runs/mine

    1000 steps of 8 crops. The text tower stays frozen, so words that you did not train keep their
    meaning, though their accuracy may fall. ``--pretrained`` takes whatever ``sedseg.load`` takes.
    """
    start, info = load_model(inputs.pretrained or "sed-tiny")

    def initialise(model: SED) -> None:
        model.load_state_dict(start.state_dict())

    iterations, batch_size = inputs.iterations or 1000, 8
    shortest = info.preprocessing.square or info.preprocessing.shortest_side
    examples = ExampleStream(
        tuple(Source(dataset) for dataset in open_all(inputs.data, "train")),
        Augment(crop=shortest * 2 // 3 // 32 * 32, shortest_side=shortest, scales=(0.6, 1.5)),
        ClassSampling(own=16),
        ignored_count=False,
    )
    return Recipe(
        name="fine-tuned",
        config=info.config,
        preprocessing=info.preprocessing,
        examples=examples,
        validation=tuple(open_all(inputs.data, "val")),
        groups=(
            ParameterGroup(lambda model: model.decoder, 3e-4),
            ParameterGroup(lambda model: model.encoder, 1e-4),
        ),
        initialise=initialise,
        freeze_norms=True,
        iterations=iterations,
        batch_size=batch_size,
        weight_decay=0.01,
        warmup=min(50, iterations // 10),
        max_gradient_norm=1.0,
        objective=objective,
        validate_every=250,
        checkpoint_every=100,
        known=info.training_classes,
        data_terms=f"Fine-tuned from {info.name}: {info.data_terms}",
    )
