"""Photos and words in, segmentations out: the test protocol, batches, background, the hub."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from golden_model import TINY
from sedseg import score_maps
from sedseg.errors import InputError
from sedseg.model.sed import SED
from sedseg.preprocessing import Preprocessing
from sedseg.score_maps import ScoreMaps
from sedseg.segmenter import Segmenter, load
from sedseg.weights import ModelInfo

CONFIG = dataclasses.replace(TINY, templates=2)
WORDS = ["sky", "road|street", "car", "tree", "dog", "cat"]
pytestmark = pytest.mark.filterwarnings("ignore::sedseg.text_embeddings.NearSynonymWarning")


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEDSEG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield toy_segmenter(Preprocessing(64, 256, None))


def toy_segmenter(preprocessing: Preprocessing, **info: Any) -> Segmenter:
    torch.manual_seed(0)
    model = SED(CONFIG)
    for parameter in model.decoder.parameters():  # so that photos and classes make a difference
        torch.nn.init.normal_(parameter, std=0.2)
    return Segmenter(
        model, ModelInfo("toy", CONFIG, preprocessing, **info), device="cpu", dtype="float32"
    )


def a_photo(height: int, width: int, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def test_the_test_protocol(segmenter: Segmenter) -> None:
    photo = a_photo(90, 130)
    result = segmenter(photo, WORDS, top_k=None)
    with torch.inference_mode():
        text = segmenter.model.encode_text(
            [["sky"], ["road", "street"], ["car"], ["tree"], ["dog"], ["cat"]]
        )
        logits = segmenter.model(segmenter.info.preprocessing(photo)[None], text).logits
    expected = F.interpolate(logits.sigmoid(), (90, 130), mode="bilinear", align_corners=False)[0]
    assert result.scores.shape == (6, 90, 130)
    np.testing.assert_allclose(result.scores, expected, atol=1e-5)
    chosen = np.take_along_axis(expected.numpy(), result.mask[None].astype(np.int64), 0)[0]
    np.testing.assert_allclose(chosen, expected.amax(0), atol=1e-6)  # equal, but for ties
    np.testing.assert_allclose(result.confidence, expected.amax(0), atol=1e-3)
    np.testing.assert_array_equal(result.score_map("tree"), result.scores[3])
    assert result.classes == ("sky", "road", "car", "tree", "dog", "cat")
    assert result.rejected == ((), (), ())
    assert len(np.unique(result.mask)) > 1
    with pytest.raises(InputError, match="zebra"):
        result.score_map("zebra")


def test_threshold(segmenter: Segmenter) -> None:
    free = segmenter(a_photo(64, 64), WORDS)
    level = float(np.median(free.scores.max(0)))
    result = segmenter(a_photo(64, 64), WORDS, threshold=level)
    under = free.scores.max(0) < level
    assert 0 < under.mean() < 1
    np.testing.assert_array_equal(result.mask, np.where(under, -1, free.mask))
    assert result.unlabelled.pixels == under.sum()
    with pytest.raises(InputError, match="threshold"):
        segmenter(a_photo(64, 64), WORDS, threshold=1.5)


def test_rejection_is_told(segmenter: Segmenter) -> None:
    photo = a_photo(64, 96)
    result = segmenter(photo, WORDS, top_k=1)
    dropped = [name for stage in result.rejected for name in stage]
    assert dropped
    assert len(set(dropped)) == len(dropped)
    with torch.inference_mode():
        text = segmenter.text_embeddings.embeddings(segmenter._latest.vocabulary)  # type: ignore[union-attr]
        kept = segmenter.model(segmenter.info.preprocessing(photo)[None], text, 1).kept[0]
    for stage, names in zip(kept, np.cumsum([len(s) for s in result.rejected]), strict=True):
        assert (~stage).sum() == names
    for i, name in enumerate(result.classes):
        assert (result.scores[i] == 0).all() == (name in dropped)
        assert bool(kept[-1, i]) == (name not in dropped)


def test_a_list_equals_its_photos(
    segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_photo(96, 64, 3).save(tmp_path / "x.png")
    photos = [
        a_photo(64, 96, 0), str(tmp_path / "x.png"), np.asarray(a_photo(64, 96, 1)),
        a_photo(128, 192, 2), a_photo(1, 1, 4), (tmp_path / "x.png").read_bytes(),
    ]  # fmt: skip
    batches = []
    infer = segmenter._infer

    def counted(images: Any, *rest: Any) -> Any:
        batches.append(len(images))
        return infer(images, *rest)

    monkeypatch.setattr(segmenter, "_infer", counted)
    together = segmenter(photos, WORDS, top_k=2)
    assert sorted(batches) == [1, 2, 3]  # 64 x 96 thrice, once from a photo twice as large
    for photo, result in zip(photos, together, strict=True):
        alone = segmenter(photo, WORDS, top_k=2)
        np.testing.assert_allclose(result.scores, alone.scores, atol=1e-4)
        assert result.rejected == alone.rejected
        assert (result.mask == alone.mask).mean() > 0.999
    assert [r.source for r in together] == [None, photos[1], None, None, None, None]
    assert segmenter([], WORDS) == []
    monkeypatch.setattr("sedseg.segmenter.CPU_MEMORY", 1)
    batches.clear()
    segmenter(photos[:3], WORDS)
    assert batches == [1, 1, 1]


def test_background_as_the_absence_of_the_others(segmenter: Segmenter) -> None:
    photo = a_photo(70, 90)
    result = segmenter(photo, ["sky", "background", "car", "tree"], top_k=None)
    others = segmenter(photo, ["sky", "car", "tree"], top_k=None).scores
    np.testing.assert_allclose(result.scores[[0, 2, 3]], others, atol=1e-6)
    np.testing.assert_allclose(result.scores[1], 1 - others.max(0), atol=1e-6)
    np.testing.assert_array_equal(result.mask == 1, others.max(0) < 0.5)
    np.testing.assert_array_equal(result.score_map("background"), result.scores[1])
    assert 0 < (result.mask == 1).mean() < 1
    with pytest.raises(InputError, match="name at least one other"):
        segmenter(photo, ["background"])


def test_background_as_a_class_where_the_model_knows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEDSEG_CACHE", str(tmp_path))
    knowing = toy_segmenter(Preprocessing(64, 256, None), knows_background=True)
    photo = a_photo(64, 64)
    result = knowing(photo, ["sky", "background"], top_k=None)
    with torch.inference_mode():
        text = knowing.model.encode_text(["sky", "background"])
        logits = knowing.model(knowing.info.preprocessing(photo)[None], text).logits
    expected = F.interpolate(logits.sigmoid(), (64, 64), mode="bilinear", align_corners=False)[0]
    chosen = np.take_along_axis(expected.numpy(), result.mask[None].astype(np.int64), 0)[0]
    np.testing.assert_allclose(chosen, expected.amax(0), atol=1e-6)  # equal, but for ties
    assert (knowing(photo, ["background"]).mask == 0).all()


@pytest.mark.parametrize(
    ("classes", "coarse", "size"),
    [(7, (5, 9), (33, 71)), (3, (1, 1), (5, 4)), (4, (1, 6), (9, 3)), (5, (40, 30), (11, 7)),
     (30, (24, 32), (200, 300))],
)  # fmt: skip
@pytest.mark.parametrize("contrast", [1, 8])
@pytest.mark.parametrize("strip", [1, 2_000, 2**23])
def test_strips_are_exact(
    classes: int,
    coarse: tuple[int, int],
    size: tuple[int, int],
    contrast: int,
    strip: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(score_maps, "STRIP_ELEMENTS", strip)
    torch.manual_seed(1)
    scores = (contrast * torch.randn(classes, *coarse)).sigmoid()
    whole = F.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]
    maps = ScoreMaps(scores, tuple(range(classes)), (classes + 1, *size))
    np.testing.assert_allclose(maps.full()[:-1], whole, atol=1e-6)
    assert (maps.full()[-1] == 0).all()  # a class without a row was rejected
    mask, best = maps.best()
    chosen = whole.gather(0, torch.from_numpy(mask.astype(np.int64))[None])[0]
    np.testing.assert_allclose(chosen, whole.amax(0), atol=1e-6)  # the best, or as good as it
    np.testing.assert_allclose(best, whole.amax(0), atol=5e-4)
    np.testing.assert_array_equal(maps.best(0.7)[0] == -1, whole.amax(0) < 0.7)
    absent = dataclasses.replace(maps, absence=classes)
    np.testing.assert_array_equal(absent.best()[0] == classes, 1 - whole.amax(0) > whole.amax(0))


def test_a_large_photo_is_enlarged_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    enlarge = score_maps.enlarge_rows

    def watched(*args: Any) -> torch.Tensor:
        nonlocal largest
        rows = enlarge(*args)
        largest = max(largest, rows.numel())
        return rows

    monkeypatch.setattr(score_maps, "enlarge_rows", watched)
    monkeypatch.setattr(score_maps, "STRIP_ELEMENTS", 2**18)
    maps = ScoreMaps(torch.rand(60, 30, 40), tuple(range(60)), (60, 600, 800))
    maps.best()
    assert 0 < largest <= 2**18 < 60 * 600 * 800 / 100


def test_bfloat16_and_channels_last_agree(segmenter: Segmenter) -> None:
    model, info = segmenter.model, segmenter.info
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    low = Segmenter(model, info, device="cpu", dtype="bfloat16")
    assert low.dtype == torch.bfloat16
    photo = a_photo(64, 96)
    difference = low(photo, WORDS, None).scores - segmenter(photo, WORDS, None).scores
    assert 0 < np.abs(difference).max() < 0.1
    for name, tensor in model.state_dict().items():  # still to be saved in full
        assert torch.equal(tensor, before[name]), name


def test_through_the_hub_and_back(
    segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter.save_pretrained(tmp_path / "toy")
    assert "toy" in (tmp_path / "toy" / "README.md").read_text()
    expected = segmenter(a_photo(64, 64), WORDS)
    for again in (
        Segmenter.from_pretrained(tmp_path / "toy", device="cpu", dtype="float32"),
        load(tmp_path / "toy", device="cpu", dtype="float32"),
    ):
        assert again.info == segmenter.info
        np.testing.assert_array_equal(again(a_photo(64, 64), WORDS).scores, expected.scores)

    uploaded: set[str] = set()

    class Api:
        def __init__(self, **_: Any) -> None: ...

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return dataclasses.make_dataclass("Url", ["repo_id"])(repo_id)

        def upload_folder(self, folder_path: Path, **_: Any) -> str:
            uploaded.update(path.name for path in Path(folder_path).iterdir())
            return "commit"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert segmenter.push_to_hub("someone/toy") == "commit"
    assert {"model.safetensors", "config.json", "README.md"} <= uploaded


def test_wrong_devices_and_types(segmenter: Segmenter) -> None:
    for wrong in ("gpu", "cuda:99"):
        with pytest.raises(InputError, match=f"'{wrong}' is not available here; choose from cpu"):
            load("sed-tiny", device=wrong)
    with pytest.raises(InputError, match="'int8' is none of float32, bfloat16"):
        load("sed-tiny", device="cpu", dtype="int8")
    with pytest.raises(InputError, match="top_k=0"):
        segmenter(a_photo(8, 8), WORDS, top_k=0)
