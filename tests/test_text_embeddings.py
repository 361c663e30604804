import warnings

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

from golden_model import TINY_CLIP
from sedseg import SED, SEDConfig
from sedseg.errors import InputError
from sedseg.text_embeddings import (
    UNRELATED,
    NearSynonymWarning,
    TextEmbeddings,
    near_synonyms,
)
from sedseg.vocabulary import Vocabulary

WORDS = Vocabulary.of("sky, sofa|couch, road, background")

# A random tower tells no words apart; what it warns of is not the matter of most tests.
pytestmark = pytest.mark.filterwarnings("ignore::sedseg.text_embeddings.NearSynonymWarning")


class CountingSED(SED):
    """Counts the classes that its text tower embeds."""

    def __init__(self, **config):
        torch.manual_seed(0)
        super().__init__(
            SEDConfig(**{"clip": TINY_CLIP, "hidden_dim": 64, "templates": 2, **config})
        )
        self.embedded = []
        self.text_encoder.register_forward_pre_hook(lambda _, args: self.embedded.extend(args[0]))


@pytest.fixture
def model():
    return CountingSED()


def without_probe(classes):
    """Less the words by which a text tower's scale is measured."""
    return [words for words in classes if words[0] not in UNRELATED]


def test_what_the_tower_gives_is_what_memory_and_disk_give(model, tmp_path):
    expected = SED.encode_text(model, WORDS.synonyms)
    model.embedded.clear()
    embeddings = TextEmbeddings(model, tmp_path)
    first = embeddings.embeddings(WORDS)
    assert torch.equal(first, expected)
    assert first.dtype == torch.float32
    assert first.device.type == "cpu"
    assert without_probe(model.embedded) == list(WORDS.synonyms)
    model.embedded.clear()
    assert embeddings.embeddings(WORDS) is first
    again = TextEmbeddings(CountingSED(), tmp_path).embeddings(WORDS)
    assert torch.equal(again, expected)
    assert model.embedded == []


def test_second_start_does_not_run_the_text_tower(tmp_path):
    words = Vocabulary.of("ade20k-847")
    first, second = CountingSED(), CountingSED()
    text = TextEmbeddings(first, tmp_path).embeddings(words)
    assert len(without_probe(first.embedded)) >= 840
    assert torch.equal(TextEmbeddings(second, tmp_path).embeddings(words), text)
    assert second.embedded == []
    assert len(list(tmp_path.rglob("*.safetensors"))) < 16


@pytest.mark.parametrize("restart", [True, False])
def test_a_longer_list_embeds_only_what_is_new(model, tmp_path, restart):
    embeddings = TextEmbeddings(model, tmp_path)
    known = embeddings.embeddings(WORDS)
    model.embedded.clear()
    if restart:
        embeddings = TextEmbeddings(model, tmp_path)
    longer = embeddings.embeddings(Vocabulary.of("car, road, sofa|couch, sky, couch potato"))
    assert without_probe(model.embedded) == [("car",), ("couch potato",)]
    assert torch.equal(longer[[3, 2, 1]], known[:3])
    assert torch.allclose(
        longer,
        SED.encode_text(model, ["car", "road", "sofa, couch", "sky", "couch potato"]),
        atol=1e-6,
    )


@pytest.mark.parametrize("change", ["weights", "templates", "shape"])
def test_another_tower_has_other_embeddings(model, tmp_path, change):
    before = TextEmbeddings(model, tmp_path).embeddings(WORDS)
    if change == "templates":
        model = CountingSED(templates=("{}", "a {}"))
    elif change == "shape":  # the same weights, differently used
        clip = {**TINY_CLIP, "text_cfg": {**TINY_CLIP["text_cfg"], "heads": 2}}
        model = CountingSED(clip=clip)
    else:
        with torch.no_grad():
            model.text_encoder.clip.text_projection[0, 0] += 1e-3
    model.embedded.clear()
    after = TextEmbeddings(model, tmp_path).embeddings(WORDS)
    assert len(without_probe(model.embedded)) == len(WORDS)
    assert not torch.equal(before, after)


def test_weights_loaded_later_are_noticed(model, tmp_path):
    embeddings = TextEmbeddings(model, tmp_path)
    before = embeddings.embeddings(WORDS)
    weights = {name: weight * 1.1 for name, weight in model.state_dict().items()}
    model.load_state_dict(weights)
    after = embeddings.embeddings(WORDS)
    assert not torch.equal(before, after)
    assert torch.equal(after, SED.encode_text(model, WORDS.synonyms))


def damages():
    def cut(data):
        return data[: len(data) // 2]

    def flip(at):
        def flipped(data):
            place = at if at >= 0 else len(data) + at
            return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]

        return flipped

    return [
        cut,
        flip(-5),
        flip(-900),
        flip(0),
        flip(20),
        flip(40),
        lambda _: b"",
        lambda _: b"x" * 99,
    ]


@pytest.mark.parametrize("damage", damages())
def test_damaged_entries_are_recomputed(model, tmp_path, damage):
    text = TextEmbeddings(model, tmp_path).embeddings(WORDS)
    for pack in tmp_path.rglob("*.safetensors"):
        pack.write_bytes(damage(pack.read_bytes()))
    model.embedded.clear()
    assert torch.equal(TextEmbeddings(model, tmp_path).embeddings(WORDS), text)
    assert without_probe(model.embedded) == list(WORDS.synonyms)
    model.embedded.clear()
    assert torch.equal(TextEmbeddings(model, tmp_path).embeddings(WORDS), text)
    assert model.embedded == []


def test_a_pack_of_other_words_is_not_trusted(model, tmp_path):
    """A row moved under another word keeps its bytes, but not its checksum."""
    text = TextEmbeddings(model, tmp_path).embeddings(WORDS)
    for pack in tmp_path.rglob("*.safetensors"):
        with safe_open(pack, "pt") as file:
            rows, about = file.get_tensor("text").clone(), file.metadata()
        save_file({"text": rows.flip(0)}, pack, about)
    assert torch.equal(TextEmbeddings(model, tmp_path).embeddings(WORDS), text)


def test_a_folder_that_cannot_be_written_costs_one_warning(model, tmp_path):
    (tmp_path / "file").write_text("in the way")
    embeddings = TextEmbeddings(model, tmp_path / "file")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        text = embeddings.embeddings(WORDS)
        embeddings.embeddings(Vocabulary.of("sky, moon"))
    assert torch.equal(text, SED.encode_text(model, WORDS.synonyms))
    said = [str(w.message) for w in caught if w.category is not NearSynonymWarning]
    assert len(said) == 1
    assert "SEDSEG_CACHE" in said[0]


def test_the_cache_folder_is_the_environments(model, tmp_path, monkeypatch):
    monkeypatch.setenv("SEDSEG_CACHE", str(tmp_path / "elsewhere"))
    TextEmbeddings(model).embeddings(WORDS)
    assert list((tmp_path / "elsewhere" / "text").rglob("*.safetensors"))
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".part"]


def test_memory_is_bounded(model, tmp_path):
    lists = [Vocabulary.of([f"word {n}", "sky"]) for n in range(4)]
    each = 2 * 2 * 32 * 4
    embeddings = TextEmbeddings(model, tmp_path, memory=2 * each)
    for words in lists:
        embeddings._embeddings(words)
        assert embeddings._bytes() <= 2 * each
    assert [key.vocabulary for key in embeddings._recent] == lists[2:]
    small = TextEmbeddings(model, tmp_path, memory=each - 1)
    small._embeddings(lists[0])
    assert not small._recent  # one that is larger than the bound is not kept


def test_other_types_of_number_are_the_same_rounded(model, tmp_path):
    whole = TextEmbeddings(model, tmp_path).embeddings(WORDS)
    half = TextEmbeddings(model, tmp_path).embeddings(WORDS, torch.bfloat16)
    assert torch.equal(half, whole.bfloat16())


def test_more_classes_than_a_pack_or_a_block_holds(model, tmp_path, monkeypatch):
    names = [f"{a} {b}" for a in ("red", "blue", "old", "big") for b in ("cat", "dog", "car")]
    names = Vocabulary.of(names)
    whole = TextEmbeddings(model, tmp_path / "whole")
    pairs = whole.near_synonyms(names, threshold=-1000)
    monkeypatch.setattr("sedseg.text_embeddings._PACK", 5)
    monkeypatch.setattr("sedseg.text_embeddings._BLOCK", 5)
    for _ in range(2):  # from the tower, then from disk
        parts = TextEmbeddings(model, tmp_path / "parts")
        assert torch.allclose(parts.embeddings(names), whole.embeddings(names), atol=1e-6)
        assert len(parts.near_synonyms(names, threshold=-1000)) == len(pairs) == 66


def test_half_precision_and_inference_mode_do_not_reach_the_cache(model, tmp_path):
    expected = SED.encode_text(model, WORDS.synonyms)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        text = TextEmbeddings(model, tmp_path).embeddings(WORDS)
    assert torch.equal(text, expected)
    assert not text.is_inference()


def test_too_long_a_name(model, tmp_path):
    fits = "very " * 60 + "long"
    TextEmbeddings(model, tmp_path).embeddings(Vocabulary.of([fits]))
    with pytest.raises(InputError, match=r"'very very .*\.\.\.' is too long.*77"):
        TextEmbeddings(model, tmp_path).embeddings(Vocabulary.of(["sky", "very " * 90 + "long"]))


def test_a_folder_may_be_shared(model, tmp_path):
    """Two at work at once: what one has written the other finds, or does without."""
    other_model = CountingSED()
    one, other = TextEmbeddings(model, tmp_path), TextEmbeddings(other_model, tmp_path)
    one.embeddings(Vocabulary.of("sky, road"))
    other.embeddings(Vocabulary.of("sky, car"))
    assert without_probe(other_model.embedded) == [("car",)]
    model.embedded.clear()
    one.embeddings(Vocabulary.of("car, sky, tree"))
    assert model.embedded == [("tree",)]
    for pack in tmp_path.rglob("*.safetensors"):
        pack.unlink()
    words = Vocabulary.of("sky, road, tree")  # "road" and "tree" are on the other's index only
    assert torch.equal(other.embeddings(words), SED.encode_text(model, words.synonyms))


def unit(*rows):
    return F.normalize(torch.tensor(rows, dtype=torch.float32), dim=-1)[:, None].expand(-1, 3, -1)


def test_near_synonyms():
    text = unit([1, 0, 0], [1, 0.1, 0], [0, 1, 0], [0.1, 1, 0.3], [1, 0, 0])
    pairs = near_synonyms(["sofa", "couch", "sky", "heaven", "background"], text)
    assert [(a, b) for a, b, _ in pairs] == [("sofa", "couch"), ("sky", "heaven")]
    assert pairs[0].similarity == pytest.approx(1 / 1.01**0.5, abs=1e-4)


def test_similarity_is_measured_from_unrelated_words():
    text = unit([3, 1, 0], [3, 0, 1], [3, 0.9, 0.1])  # a tower for which all words are alike
    names = ["cat", "sky", "kitten"]
    assert len(near_synonyms(names, text)) == 3
    pairs = near_synonyms(names, text, unrelated=0.9)
    assert [(a, b) for a, b, _ in pairs] == [("cat", "kitten")]


def test_near_synonyms_are_warned_of_once(model, tmp_path):
    embeddings = TextEmbeddings(model, tmp_path)
    words = Vocabulary.of(["trees", "trees!", "Background"])
    model.text_encoder.register_forward_hook(
        lambda _, args, out: unit(*[near(w[0]) for w in args[0]])
    )

    def near(word):
        noise = torch.Generator().manual_seed(len(word.strip("!")) * 1000 + ord(word[0]))
        return torch.randn(32, generator=noise).tolist()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        embeddings.embeddings(words)
        embeddings.embeddings(words)
        TextEmbeddings(model, tmp_path).embeddings(words)
    assert [(w.category, w.filename) for w in caught] == [(NearSynonymWarning, __file__)]
    assert "trees / trees! (1.00)" in str(caught[0].message)
    assert "ackground" not in str(caught[0].message)
