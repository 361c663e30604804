import numpy as np
import pytest
import torch
from PIL import Image

from labelled_photos import write_set
from sedseg import InputError
from sedseg.data.augment import Augment, distort_colours
from sedseg.data.examples import Batch, ClassSampling, ExampleStream, Source
from sedseg.data.folder import UNLABELLED, FolderDataset, open_all, read_labels


@pytest.fixture
def root(tmp_path):
    return write_set(tmp_path / "shapes")


def stream(dataset, **options):
    options = {"ignored_count": False, **options}
    return ExampleStream((Source(dataset, foreign=("cat", "dog")),), Augment(64, 64), **options)


def check_both(root):
    for split in ("train", "val"):
        FolderDataset.open(root, split).check()


def test_a_tenth_is_carved_off_for_validation_the_same_each_time(tmp_path):
    root = write_set(tmp_path / "shapes", photos=40)
    train, val = (FolderDataset.open(root, split) for split in ("train", "val"))
    assert len(val) == 4
    assert len(train) == 36
    assert not set(train.photos) & set(val.photos)
    assert FolderDataset.open(root, "val").photos == val.photos


def test_photos_of_one_scene_stay_together(tmp_path):
    root = write_set(tmp_path / "shapes", photos=40)
    for path in [*root.glob("train/*/*.png")]:
        number = int(path.stem)
        path.rename(path.with_name(f"film{number // 4}_{number:03d}.png"))
    scenes = [
        {p.stem.split("_")[0] for p in FolderDataset.open(root, split).photos}
        for split in ("train", "val")
    ]
    assert scenes[1]
    assert not scenes[0] & scenes[1]


@pytest.mark.parametrize("name", ["IMG_{:04d}", "frame{}", "photo-{:03d}"])
def test_names_that_tell_no_scenes_apart_are_carved_by_neighbourhood(tmp_path, name):
    root = write_set(tmp_path / "shapes", photos=40)
    for path in [*root.glob("train/*/*.png")]:
        path.rename(path.with_name(name.format(int(path.stem)) + ".png"))
    train, val = (FolderDataset.open(root, split) for split in ("train", "val"))
    assert 2 <= len(val) <= 6
    assert len(train) + len(val) == 40


def test_synonyms_are_trained_on_together(tmp_path):
    root = write_set(tmp_path / "shapes", classes="red|crimson\ngreen\nBackground")
    example = stream(FolderDataset.open(root, "train"), sampling=ClassSampling(own=3, total=4))[0]
    assert ("red", "crimson") in example.classes
    background = example.labels == example.classes.index(("Background",))
    assert not example.counted[-1][background].any()


def test_ssd_s_colour_distortion():
    grey = torch.full((3, 8, 8), 128, dtype=torch.uint8)
    colour = torch.tensor([200, 100, 50], dtype=torch.uint8).view(3, 1, 1).expand(3, 8, 8)
    torch.manual_seed(0)
    greys = [distort_colours(grey) for _ in range(300)]
    assert all((g == g[0]).all() for g in greys), "hue and saturation leave grey alone"
    values = torch.tensor([int(g[0, 0, 0]) for g in greys])
    assert values.min() < 70
    assert values.max() > 190
    assert 0.15 < (values == 128).float().mean() < 0.35, "brightness and contrast: a half each"
    ratios = torch.tensor([float(distort_colours(colour)[0, 0, 0]) for _ in range(50)])
    assert ratios.unique().numel() > 20


def test_16_bit_labels_read_as_8_bit_ones(tmp_path):
    labels = np.array([[0, 3], [255, 255]], np.uint8)
    Image.fromarray(labels).save(tmp_path / "8.png")
    wide = np.array([[0, 3], [65535, 300]], np.uint16)
    Image.fromarray(wide).save(tmp_path / "16.png")
    assert read_labels(tmp_path / "8.png").tolist() == [[0, 3], [UNLABELLED, UNLABELLED]]
    assert read_labels(tmp_path / "16.png").tolist() == [[0, 3], [UNLABELLED, 300]]


def test_a_label_outside_the_class_list_is_named(root):
    bad = root / "train/labels/003.png"
    Image.fromarray(np.full((64, 96), 7, np.uint8)).save(bad)
    with pytest.raises(InputError, match=r"003\.png holds the label 7, but .* 3 classes"):
        check_both(root)


def test_sizes_that_differ_are_named(root):
    Image.fromarray(np.zeros((10, 20), np.uint8)).save(root / "train/labels/004.png")
    with pytest.raises(InputError, match=r"004\.png has 20x10 pixels, its photo 96x72"):
        check_both(root)


def test_a_photo_without_label_is_named(root):
    (root / "train/labels/005.png").unlink()
    with pytest.raises(InputError, match=r"005\.png has no label"):
        FolderDataset.open(root, "train")


def test_missing_classes_and_folders_are_named(tmp_path, root):
    with pytest.raises(InputError, match="no data set"):
        open_all(tmp_path / "shapes" / "train", "train")
    with pytest.raises(InputError, match="images is missing"):
        FolderDataset.open(root, "test")


def test_an_example_is_a_function_of_its_number(root):
    dataset = FolderDataset.open(root, "train")
    first, again = (stream(dataset)[5], stream(dataset)[5])
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.image, stream(dataset)[6].image)


def test_photo_and_labels_are_cropped_together(root):
    for i in range(6):
        example = stream(FolderDataset.open(root, "train"))[i]
        red = example.labels == example.classes.index(("red",))
        pixels = example.image.float()
        eroded = -torch.nn.functional.max_pool2d(-red.float()[None], 5, 1, 2)[0] > 0
        assert eroded.sum() > 50
        assert (pixels[0] > pixels[1])[eroded].float().mean() > 0.99


def test_foreign_words_are_negatives_on_objects_but_not_on_background(root):
    example = stream(FolderDataset.open(root, "train"), sampling=ClassSampling(own=3, total=4))[0]
    assert example.classes[-1] in (("cat",), ("dog",))
    background = example.labels == example.classes.index(("background",))
    unlabelled = example.labels == UNLABELLED
    assert background.any()
    assert unlabelled.any()
    assert not example.counted[-1][background].any()
    assert example.counted[0][background].all()
    assert not example.counted[:, unlabelled].any()
    assert example.counted[-1][~background & ~unlabelled].all()


def test_at_most_so_many_classes_and_synonyms(root):
    sampling = ClassSampling(own=2, synonyms={"red": ("crimson",)}, swap=1.0)
    example = stream(FolderDataset.open(root, "train"), sampling=sampling)[1]
    assert len(example.classes) == 2
    assert ("red",) not in example.classes
    batch = Batch.of([example, stream(FolderDataset.open(root, "train"))[2]])
    assert batch.counted.shape == (2, 3, 64, 64)
    assert not batch.counted[0, 2].any()


def test_rare_classes_are_drawn_as_often_as_common_ones(tmp_path):
    root = write_set(tmp_path / "shapes", photos=30)
    for path in sorted(root.glob("train/labels/*.png"))[1:]:  # green stays in one photo alone
        label = np.array(Image.open(path))
        label[label == 1] = 2
        Image.fromarray(label).save(path)
    dataset = FolderDataset.open(root, "train")
    assert dataset.classes_shown()[:2] == [{0, 1, 2}, {0, 2}]

    def share(by_class):
        source = Source(dataset, by_class=by_class)
        drawn = ExampleStream((source,), Augment(64, 64), ignored_count=False, cache=True)
        return sum(bool((drawn[i].labels == 1).any()) for i in range(60)) / 60

    assert share(0.0) < 0.15
    assert 0.15 < share(1.0) < 0.55
