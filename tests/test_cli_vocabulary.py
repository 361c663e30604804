import json
import re

import pytest
import torch
from typer.testing import CliRunner

from golden_model import TINY_CLIP
from sedseg import SED, SEDConfig, weights
from sedseg.cli import app
from sedseg.errors import InputError
from sedseg.label_sets import LABEL_SETS
from sedseg.model_info import ModelInfo
from sedseg.preprocessing import Preprocessing
from sedseg.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    config = SEDConfig(clip=TINY_CLIP, hidden_dim=64, templates=("{}",))
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    torch.manual_seed(0)
    weights.save_model(SED(config), ModelInfo("tiny", config, Preprocessing()), path)
    return path


@pytest.fixture
def run(model_file, tmp_path, monkeypatch):
    monkeypatch.setenv("SEDSEG_CACHE", str(tmp_path / "cache"))

    def run(*words, model=model_file):
        options = ["--model", str(model)] if "check" in words else []
        return CliRunner().invoke(
            app, ["vocabulary", *map(str, words), *options], catch_exceptions=True
        )

    return run


def test_check_lists_pairs_with_similarities(run, tmp_path):
    file = tmp_path / "classes.txt"
    file.write_text("tree\nred [bold] car\nred [bold] cars\n")
    pairs = json.loads(run("check", file, "--threshold", "-9", "--json").stdout)["near_synonyms"]
    assert len(pairs) == 3
    assert pairs[0]["similarity"] == max(pair["similarity"] for pair in pairs)
    shown = run("check", file, "--threshold", "-9")
    assert shown.exit_code == 0
    rows = [tuple(re.split(r" {2,}", line.strip())) for line in shown.stdout.splitlines()]
    for pair in pairs:
        assert (pair["a"], pair["b"], f"{pair['similarity']:.2f}") in rows


def test_check_says_when_all_is_well(run, tmp_path):
    file = tmp_path / "classes.json"
    file.write_text('["tree", "background", "sofa|couch"]')
    result = run("check", file, "--threshold", "1.1")
    assert result.exit_code == 0
    assert result.stdout == "3 classes; tiny tells all of them apart by name.\n"
    found = json.loads(run("check", file, "--threshold", "1.1", "--json").stdout)
    assert found["near_synonyms"] == []
    assert found["classes"] == [["tree"], ["background"], ["sofa", "couch"]]
    assert found["background"] == 1


@pytest.mark.parametrize(
    ("content", "said"), [("sky\nsky\n", "twice"), (None, "does not exist"), ("\n", "empty")]
)
def test_check_refuses_bad_lists(run, tmp_path, content, said):
    file = tmp_path / "classes.txt"
    if content is not None:
        file.write_text(content)
    result = run("check", file)
    assert isinstance(result.exception, InputError)
    assert said in str(result.exception)
    assert str(file) in str(result.exception) or said == "empty"


def test_check_of_a_missing_file_of_any_name(run):
    assert "There is no file" in str(run("check", "my-words").exception)


def test_list_names_every_set(run):
    result = run("list")
    assert result.exit_code == 0
    for name in LABEL_SETS:
        assert f"\n {name} " in result.stdout


def test_show_prints_a_class_file(run, tmp_path):
    result = run("show", "coco-stuff")
    assert result.exit_code == 0
    file = tmp_path / "again.txt"
    file.write_text(result.stdout)
    assert Vocabulary.of(file) == Vocabulary.of("coco-stuff")
    assert "ade20k-150" in str(run("show", "ade").exception)
