"""Evaluation: what is counted, how photos are shown, and what is refused."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import miniature_benchmarks as miniature
import sedseg
from labelled_photos import write_set
from sedseg import InputError
from sedseg.data.benchmarks import prepare
from sedseg.data.folder import FolderDataset
from sedseg.evaluation.evaluate import evaluate, predict
from sedseg.evaluation.metrics import ConfusionMatrix
from sedseg.evaluation.task import EvaluationTask, open_task
from sedseg.evaluation.views import Views, score
from sedseg.preprocessing import Preprocessing
from sedseg.vocabulary import Vocabulary

EXAMPLES = Path(__file__).parent.parent / "examples"
CLASSES = "building|palace\ntree\nbackground"
SMALL = Preprocessing(shortest_side=128, longest_side=512, square=None)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEDSEG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def segmenter(own_cache):
    found = sedseg.load("sed-tiny", device="cpu", dtype="float32")
    found.info = replace(found.info, preprocessing=SMALL)
    return found


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Five real photos, small; their labels are rectangles, right by chance alone."""
    root = write_set(tmp_path_factory.mktemp("sets") / "shapes", CLASSES, 5, "test")
    names = ("palace", "cat", "astronaut", "coffee", "palace")
    for name, file in zip(names, sorted(root.glob("test/images/*")), strict=True):
        size = Image.open(file).size
        Image.open(EXAMPLES / f"{name}.jpg").convert("RGB").resize(size).save(file)
    return root


def command(*words):
    return [sys.executable, "-m", "sedseg", "evaluate", *map(str, words)]


def test_it_counts_what_a_user_s_call_gives(segmenter, photos):
    task = open_task(photos)
    found = evaluate(segmenter, task, top_ks=(1, None))
    for measured in found.measured:
        matrix = ConfusionMatrix.empty(3)
        for image, labels in (task.dataset[i] for i in range(5)):
            result = segmenter(image, task.prompts, top_k=measured.top_k)
            matrix.add(labels, torch.from_numpy(result.mask))
        assert torch.equal(matrix.counts, measured.matrix.counts)
        assert len(measured.photos) == 5
        assert measured.seconds > 0
    assert found.measured[1].kept == (3, 3, 3)
    assert 1 < found.measured[0].kept[2] < 3
    assert (found.measured[1].matrix.counts.sum(0)[:3] > 100).all()
    one = predict(segmenter, task, Views(SMALL), 0, None)
    alone = ConfusionMatrix.of(task.dataset[0][1], torch.from_numpy(one), 3)
    assert alone.pixel_accuracy == found.measured[1].photos[0].pixel_accuracy


def test_prompts_scored_as_one_class_and_distractors(segmenter, photos):
    dataset = FolderDataset.open(photos, "test")
    prompts = Vocabulary.of(["building", "tree", "sky", "person"])
    task = EvaluationTask(dataset, "test", dataset.vocabulary.names, prompts, (0, 1, 2, 2))
    (found,) = evaluate(segmenter, task).measured
    by_hand = ConfusionMatrix.empty(3)
    for image, labels in (dataset[i] for i in range(5)):
        mask = segmenter(image, prompts, top_k=None).mask
        by_hand.add(labels, torch.from_numpy(np.where(mask == 3, 2, mask)))
    assert torch.equal(found.matrix.counts, by_hand.counts)

    plain = EvaluationTask.of(dataset, "test", ["building", "tree", "background"])
    more = plain.with_distractors(["TREE", "cat"])
    assert more.prompts.names == ("building", "tree", "background", "cat")
    assert more.scored_as == (0, 1, 2, -1)
    assert "1 distractors" in more.notes[0]
    (found,) = evaluate(segmenter, more).measured
    lost = found.matrix.counts[:, -1].sum()
    masks = [segmenter(dataset[i][0], more.prompts, top_k=None).mask for i in range(5)]
    labels = [dataset[i][1].numpy() for i in range(5)]
    assert lost > 100
    assert lost == sum(((m == 3) & (t < 3)).sum() for m, t in zip(masks, labels, strict=True))


def test_background_is_a_class_even_for_a_model_that_does_not_know_it(segmenter, photos):
    task = open_task(photos)
    info = segmenter.info
    try:
        segmenter.info = replace(info, knows_background=False)
        segmenter._latest = None
        (found,) = evaluate(segmenter, task).measured
        mask = segmenter(task.dataset[0][0], task.prompts, top_k=None).mask
    finally:
        segmenter.info, segmenter._latest = info, None
    assert found.matrix.counts[2].sum() > 0
    expected = ConfusionMatrix.of(task.dataset[0][1], torch.from_numpy(mask), 3)
    assert found.photos[0].pixel_accuracy == expected.pixel_accuracy


def picture(height=96, width=160):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (6, 10, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def scores(segmenter, views, top_k=None):
    words = segmenter.words(Vocabulary.of("building, tree, cat"))
    (found,) = score(segmenter.network, picture(), words, views, [top_k])
    return torch.from_numpy(found.maps.full())


def test_the_mirror_image_and_scales_are_averaged(segmenter):
    plain = scores(segmenter, Views(SMALL))
    flipped = scores(segmenter, Views(SMALL, flip=True))
    words = segmenter.words(Vocabulary.of("building, tree, cat"))
    mirror = picture().transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    (found,) = score(segmenter.network, mirror, words, Views(SMALL), [None])
    by_hand = (plain + torch.from_numpy(found.maps.full()).flip(-1)) / 2
    torch.testing.assert_close(flipped, by_hand, atol=1e-5, rtol=0)

    twice = scores(segmenter, Views(SMALL, scales=(1.0, 1.0)))
    torch.testing.assert_close(twice, plain, atol=1e-6, rtol=0)
    large = Views(replace(SMALL, shortest_side=192, longest_side=768))
    both = scores(segmenter, Views(SMALL, scales=(1.0, 1.5)))
    by_hand = (plain + scores(segmenter, large)) / 2
    assert (both - by_hand).abs().mean() < 0.01  # the smaller map is enlarged in two steps
    assert (both - plain).abs().mean() > 0.001


def test_a_sliding_window_covers_the_photo_and_averages_overlaps(segmenter):
    views = Views(SMALL, window=64, overlap=0.5)
    windows = views.windows(128, 224)
    covered = torch.zeros(128, 224)
    for rows, columns in windows:
        assert rows.stop - rows.start == columns.stop - columns.start == 64
        covered[rows, columns] += 1
    assert covered.min() == 1
    assert covered.max() == 4
    whole = scores(segmenter, Views(SMALL))
    torch.testing.assert_close(scores(segmenter, Views(SMALL, window=512)), whole)

    slid = scores(segmenter, views)
    words = segmenter.words(Vocabulary.of("building, tree, cat"))
    image = SMALL(picture())[None]
    total, count = torch.zeros(3, 32, 56), torch.zeros(32, 56)
    for rows, columns in views.windows(*image.shape[-2:]):
        out = segmenter.network(image[..., rows, columns], words.text)
        place = slice(rows.start // 4, rows.stop // 4), slice(columns.start // 4, columns.stop // 4)
        total[:, place[0], place[1]] += out.logits[0].detach().sigmoid()
        count[place] += 1
    assert image.shape[-2:] == (128, 224)
    by_hand = words.score_maps(total / count, torch.ones(3, dtype=torch.bool), 96, 160).full()
    torch.testing.assert_close(slid, torch.from_numpy(by_hand), atol=1e-5, rtol=0)


def test_only_the_paper_s_own_protocol_is_called_so():
    paper = Preprocessing(mean=(1.0, 2.0, 3.0))
    assert Views(paper).protocol == "paper"
    assert Views(paper, flip=True, window=64).protocol == "paper + flip + window"
    assert Views(SMALL, scales=(1.0, 2.0)).protocol == "native + scales"
    assert Views(replace(paper, square=512)).protocol == "square 512"


def test_a_benchmark_is_known_to_be_incomplete_or_asked_by_other_words(tmp_path):
    miniature.ade20k_150(tmp_path, [[1, 2], [3, 150]])
    prepare("ade20k-150", tmp_path)
    notes = open_task("ade20k-150", root=tmp_path).notes
    assert notes == (
        "1 of ade20k-150's 2,000 photos are here; the figures compare with no published ones.",
    )
    other = [f"thing {i}" for i in range(150)]
    notes = open_task("ade20k-150", root=tmp_path, words=other).notes
    assert "1 of ade20k-150's 2,000" in notes[0]
    assert "not ade20k-150's own" in notes[1]
    described = tmp_path / "ade20k-150/dataset.json"
    described.write_text(described.read_text().replace('"photos": 1,', '"photos": 2000,'))
    assert "1 of ade20k-150's 2,000" in open_task("ade20k-150", root=tmp_path).notes[0]
    (tmp_path / "ade20k-150/classes.txt").write_text("wall\n")
    with pytest.raises(InputError, match=r"classes\.txt is not ade20k-150's any more"):
        open_task("ade20k-150", root=tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"window": 50}, "multiple of 32"), ({"overlap": 1.0}, "overlap"), ({"scales": ()}, "scales")],
)
def test_views_out_of_range(options, said):
    with pytest.raises(InputError, match=said):
        Views(SMALL, **options)


def test_two_processes_count_as_one(photos):
    options = ["--dataset", photos, "--top-k", "1,none", "--json", "--dtype", "float32"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    one = subprocess.run(command(*options), capture_output=True, check=True, env=environment)
    # "--multi_gpu" is accelerate's word for several processes on a machine, GPUs or not.
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--main_process_port", "0", "-m", *command(*options)[2:]]
    two = subprocess.run(
        [sys.executable, *launch], capture_output=True, check=True, env=environment
    )
    alone, together = json.loads(one.stdout), json.loads(two.stdout)  # one document each
    assert together["settings"]["processes"] == 2
    assert together["photos"] == alone["photos"] == 5
    for a, b in zip(alone["results"], together["results"], strict=True):
        del a["seconds_per_photo"], b["seconds_per_photo"]
        assert a == b


def run(capsys, monkeypatch, *words):
    from sedseg.cli import main

    monkeypatch.setattr("sys.argv", ["sedseg", "evaluate", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    out = capsys.readouterr()
    return ended.value.code, out.out, out.err


def refused(capsys, monkeypatch, *words):
    """Before the model is even loaded."""
    monkeypatch.setattr("sedseg.segmenter.load", None)
    status, out, err = run(capsys, monkeypatch, *words)
    assert status == 2
    assert not out
    return err


def test_faulty_data_is_refused_before_the_run(tmp_path, capsys, monkeypatch):
    root = write_set(tmp_path / "shapes", photos=3, split="val")
    label = root / "val/labels/001.png"
    options = (capsys, monkeypatch, "--dataset", root)
    whole = label.read_bytes()

    Image.fromarray(np.full((72, 96), 7, np.uint8)).save(label)
    said = refused(*options)
    assert "001.png" in said
    assert "label 7" in said
    Image.fromarray(np.zeros((10, 10), np.uint8)).save(label)
    said = refused(*options)
    assert "001.png" in said
    assert "10x10" in said
    label.unlink()
    assert "001.png is missing" in refused(*options)
    label.write_bytes(whole)
    said = refused(*options, "--classes", "red, green")
    assert "2 classes" in said
    assert "shapes has 3" in said
    words = tmp_path / "words.txt"
    words.write_text("a\nb\nc\nd")
    assert "words.txt has 4 classes" in refused(*options, "--classes-file", words)
    said = refused(capsys, monkeypatch, "--dataset", "ade20k-15O")
    assert "did you mean 'ade20k-150'" in said
    assert "There is no folder no/where" in refused(capsys, monkeypatch, "--dataset", "no/where")
    assert "--protocol" in refused(*options, "--protocol", "papre")
    assert "multiple of 32" in refused(*options, "--window", "50")
    (tmp_path / "file").write_text("")
    assert "cannot be written to" in refused(*options, "--output", tmp_path / "file")

    photo = root / "val/images/002.jpg"
    Image.open(photo.with_suffix(".png")).save(photo)
    assert "would have one label" in refused(*options)
    photo.with_suffix(".png").unlink()
    photo.write_bytes(photo.read_bytes()[:-400])
    assert "002.jpg is no image, or damaged" in refused(*options)
    assert "--top-k" in refused(*options, "--top-k", "0")
    assert "--scales" in refused(*options, "--scales", "big")


def test_json_is_one_document_and_says_what_it_means(photos, capsys, monkeypatch):
    status, out, _ = run(
        capsys, monkeypatch, "--dataset", photos, "--json", "--most", 2, "--protocol", "paper"
    )
    assert not status
    found = json.loads(out)
    assert found["photos"] == 2
    assert found["split"] == "test"
    assert found["settings"]["protocol"] == "paper"
    assert (found["settings"]["shortest_side"], found["settings"]["square"]) == (640, 768)
    assert {"miou_ground_truth", "miou_union"} <= set(found["definitions"])
    rows = found["results"][0]["per_class"]
    assert [row["class"] for row in rows] == ["building", "tree", "background"]


def test_the_table_for_people(photos, capsys, monkeypatch):
    status, out, _ = run(capsys, monkeypatch, "--dataset", photos, "--most", 1, "--top-k", "1,none")
    assert not status
    assert "mIoU" in out
    assert "union" in out
    assert "none" in out


_PEAK = """
import numpy as np, sys
from PIL import Image
from pathlib import Path
from sedseg import load
from sedseg.evaluation.evaluate import evaluate
from sedseg.evaluation.task import open_task
found = evaluate(load("sed-tiny"), open_task(sys.argv[1]).with_distractors("ade20k-847"))
assert len(found.prompts) > 800
print(*(line.split()[1] for line in open("/proc/self/status") if "VmHWM" in line))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_847_classes_on_a_2048_pixel_photo_within_4_gb(tmp_path):
    root = write_set(tmp_path / "large", photos=1, split="test")
    rng = np.random.default_rng(0)
    size = (2048, 1536)
    noise = Image.fromarray(rng.integers(0, 255, (96, 128, 3)).astype(np.uint8)).resize(size)
    noise.save(root / "test/images/000.png")
    label = Image.fromarray(rng.integers(0, 3, (6, 8)).astype(np.uint8))
    label.resize(size, Image.Resampling.NEAREST).save(root / "test/labels/000.png")
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(root)], capture_output=True, check=True, text=True
    )
    assert int(done.stdout) * 1024 < 4e9
