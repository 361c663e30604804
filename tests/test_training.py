import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file

from golden_model import TINY, TINY_CLIP
from labelled_photos import write_set
from sedseg import SED, InputError, SEDConfig, losses
from sedseg.cli.train import find_recipe
from sedseg.data.augment import Augment
from sedseg.data.examples import ExampleStream, Source
from sedseg.data.folder import UNLABELLED, open_all
from sedseg.evaluation.validation import validate
from sedseg.model.decoder import DecoderOutput
from sedseg.preprocessing import Preprocessing
from sedseg.recipes import RECIPES
from sedseg.recipes.sed_paper import sed_base
from sedseg.recipes.sed_tiny import choice_loss, sed_tiny
from sedseg.recipes.sed_tiny_words import HELD_OUT, SYNONYMS, foreign_words
from sedseg.training.recipe import ParameterGroup, Recipe, RecipeInputs, optimiser_groups
from sedseg.training.trainer import train
from sedseg.vocabulary import Vocabulary
from sedseg.weights import load_model

SMALL = SEDConfig(
    clip={**TINY_CLIP, "vision_cfg": {**TINY_CLIP["vision_cfg"], "timm_drop": 0.1}},
    hidden_dim=32,
    decoder_dims=(32, 16, 16),
    guidance_dims=(16, 8, 8),
    templates=1,
)


def tell_words_apart(model: SED) -> None:
    """A random text tower gives all words nearly one embedding; attention makes them differ."""
    for block in model.text_encoder.clip.get_submodule("transformer.resblocks"):
        torch.nn.init.normal_(block.attn.in_proj_weight, std=0.3)
        torch.nn.init.normal_(block.attn.out_proj.weight, std=0.5)


def small(inputs: RecipeInputs) -> Recipe:
    """A run of seconds, with dropout, augmentation, two rates and accumulation."""
    iterations = inputs.iterations or 6
    return Recipe(
        name="small",
        config=SMALL,
        preprocessing=Preprocessing(64, 256, None),
        examples=ExampleStream(
            tuple(Source(d) for d in open_all(inputs.data, "train")), Augment(64, 64)
        ),
        validation=tuple(open_all(inputs.data, "val")),
        groups=(
            ParameterGroup(lambda model: model.decoder, 3e-3),
            ParameterGroup(lambda model: model.encoder, 1e-3),
        ),
        initialise=tell_words_apart,
        iterations=iterations,
        batch_size=4,
        accumulate=2,
        max_gradient_norm=1.0,
        validate_every=1000,
        checkpoint_every=1,
        precision="no",
    )


def steady(inputs: RecipeInputs) -> Recipe:
    """As small, but with nothing random besides the examples."""
    recipe = small(replace(inputs, iterations=3))

    def initialise(model: SED) -> None:
        assert PartialState().num_processes == int(os.environ.get("WORLD_SIZE", "1"))
        tell_words_apart(model)

    plain = replace(SMALL, clip=TINY_CLIP)
    return replace(recipe, config=plain, checkpoint_every=1000, initialise=initialise)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("data") / "shapes")


def command(data, output, *more, recipe="small", launcher=()):
    return [
        *(sys.executable, *launcher, "-m", "sedseg", "train", f"{__file__}:{recipe}"),
        *("--workers", "0", "--data", str(data), "--output", str(output), *more),
    ]


def test_two_processes_train_as_one(data, tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    one, two = (tmp_path / n for n in ("one", "two"))
    subprocess.run(command(data, one, recipe="steady"), env=environment, check=True)
    subprocess.run(
        command(data, two, recipe="steady", launcher=launcher), env=environment, check=True
    )
    alone, together = (load_file(folder / "small.safetensors") for folder in (one, two))
    torch.manual_seed(0)
    start = SED(replace(SMALL, clip=TINY_CLIP)).state_dict()
    names = [n for n in alone if n.startswith("decoder.")]
    apart = sum(float((alone[n] - together[n]).square().sum()) for n in names)
    moved = sum(float((alone[n] - start[n]).square().sum()) for n in names)
    assert apart < 1e-3 * moved


def test_a_killed_run_resumes_to_the_very_same_weights(data, tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    subprocess.run(command(data, tmp_path / "whole"), env=environment, check=True)
    killed = subprocess.Popen(command(data, tmp_path / "killed"), env=environment)
    while killed.poll() is None and not list((tmp_path / "killed").glob("checkpoint-000000[2-5]")):
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed/small.safetensors").exists()
    subprocess.run(command(data, tmp_path / "killed", "--resume"), env=environment, check=True)
    whole, resumed = (load_file(tmp_path / n / "small.safetensors") for n in ("whole", "killed"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_training_learns_colours_and_measures_itself(data, tmp_path):
    recipe = replace(small(RecipeInputs(data, iterations=120)), checkpoint_every=1000)
    (validation,) = recipe.validation
    torch.manual_seed(0)
    ((_, before),) = validate(SED(SMALL).eval(), [validation], recipe.preprocessing, 100)
    model, info = load_model(train(recipe, tmp_path / "run"))
    ((_, after),) = validate(model, [validation], recipe.preprocessing, 100)
    assert after > max(0.5, before + 0.2)
    assert info.training_classes == ("red", "green", "background")
    assert info.knows_background


def test_a_second_run_does_not_overwrite_a_first(data, tmp_path):
    (tmp_path / "checkpoint-0000003").mkdir()
    with pytest.raises(InputError, match="resume it or name a new folder"):
        train(small(RecipeInputs(data)), tmp_path)


def test_faulty_data_stop_a_run_before_it_starts(tmp_path):
    root = write_set(tmp_path / "shapes", classes="red\ngreen")
    with pytest.raises(InputError, match="holds the label 2"):
        train(small(RecipeInputs(root)), tmp_path / "run")


def test_every_trained_parameter_gets_a_gradient():
    model = SED(replace(TINY, templates=2, detach_guidance=False)).train()
    optimiser_groups(model, replace_groups())
    out = model(torch.randn(2, 3, 64, 96), model.encode_text(["cat", "dog"]))
    torch.stack(losses(out, torch.randint(0, 2, (2, 64, 96)))).sum().backward()
    for name, parameter in model.named_parameters():
        frozen = name.startswith("text_encoder.")
        assert (parameter.grad is None) == frozen, name
        assert frozen or parameter.grad.abs().sum() > 0, name


def replace_groups():
    groups = (
        ParameterGroup(lambda model: model.decoder, 2e-4),
        ParameterGroup(lambda model: model.encoder, 2e-6),
    )
    return Recipe("x", TINY, Preprocessing(), None, groups, 1, 1)  # type: ignore[arg-type]


def test_groups_follow_modules_and_norms_are_not_decayed():
    model = SED(TINY)
    groups = optimiser_groups(model, replace_groups())
    found = {id(p): g for g in groups for p in g["params"]}
    assert found[id(model.decoder.head.weight)]["weight_decay"] == 1e-4
    assert found[id(model.decoder.head.bias)]["weight_decay"] == 1e-4
    assert found[id(model.decoder.stages[0].classes.norm1.weight)]["weight_decay"] == 0
    trunk = model.encoder.visual.trunk
    assert found[id(trunk.stages[0].blocks[0].norm.weight)]["weight_decay"] == 0
    assert found[id(trunk.stem[0].weight)]["lr"] == 2e-6
    assert len(found) == sum(p.requires_grad for p in model.parameters())


def test_the_paper_s_recipe(data):
    recipe = sed_base(RecipeInputs(data))
    assert recipe.iterations == 80_000
    assert recipe.batch_size == 4
    assert [g.learning_rate for g in recipe.groups] == pytest.approx([2e-4, 2e-6])
    assert (recipe.weight_decay, recipe.max_gradient_norm, recipe.warmup) == (1e-4, 0.01, 0)
    assert recipe.examples.augment == Augment(768, 768, 2666, (1.0, 1.0))
    assert recipe.examples.ignored_count
    assert recipe.config.clip["vision_cfg"]["timm_drop_path"] == 0
    assert recipe.config.detach_guidance


def test_unlabelled_pixels_count_or_not():
    logits = torch.full((1, 1, 4, 4), 3.0)
    kept = torch.ones(1, 3, 1, dtype=torch.bool)
    output = DecoderOutput(logits, (logits, logits, logits), kept, logits[:, :, None])
    labels = torch.zeros(1, 8, 8)
    labels[:, 4:] = 255
    good, bad = (torch.nn.functional.softplus(torch.tensor(s * 3.0)) for s in (-1, 1))
    assert losses(output, labels).logits == pytest.approx(float(good + bad) / 2)
    counted = (labels != 255)[:, None]
    assert losses(output, labels, counted=counted).aux_1 == pytest.approx(float(good))


def test_an_unknown_recipe_is_named_with_the_known_ones(tmp_path):
    with pytest.raises(InputError, match="No recipe is called 'sed_hug'; choose fine_tune"):
        find_recipe("sed_hug")
    with pytest.raises(InputError, match="does not exist"):
        find_recipe(f"{tmp_path}/mine.py:run")
    assert find_recipe("sed_tiny") is RECIPES["sed_tiny"]


def test_measured_synonyms_are_not_trained_on():
    trained = {word for words in SYNONYMS.values() for word in words} | set(SYNONYMS)
    trained |= set(Vocabulary.of("coco-stuff").names)
    assert not trained & set(HELD_OUT.values())
    assert "tiger" in foreign_words("camvid", ("road", "car"))
    assert "car" not in foreign_words("camvid", ("road", "car"))


def test_rare_pixels_weigh_more_in_the_choice_loss():
    maps = torch.zeros(1, 2, 4, 4)
    maps[:, 0] = 3.0  # says class 0 everywhere
    labels = torch.zeros(1, 4, 4, dtype=torch.int32)
    labels[0, 0, 0] = 1
    labels[0, 3] = UNLABELLED
    right, wrong = (float(torch.nn.functional.softplus(torch.tensor(s * 3.0))) for s in (-1, 1))
    weight = 11**0.5, 1.0  # 11 pixels of 1 / sqrt(11) each, and one of 1
    by_hand = (right * weight[0] + wrong * weight[1]) / sum(weight)
    assert float(choice_loss(maps, labels, None)) == pytest.approx(by_hand)
    nowhere = torch.full_like(labels, UNLABELLED)
    assert float(choice_loss(maps, nowhere, None)) == 0


def test_sed_tiny_goes_on_from_a_sed_tiny(data):
    model = SED(sed_tiny(RecipeInputs(data, "sed-tiny", iterations=1)).config)
    recipe = sed_tiny(RecipeInputs(data, "sed-tiny", iterations=1))
    recipe.initialise(model)
    packaged, _ = load_model("sed-tiny")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, packaged.state_dict()[name]), name
    with pytest.raises(InputError, match="give either with --pretrained"):
        sed_tiny(RecipeInputs(data)).initialise(model)
