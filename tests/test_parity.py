"""The model computes what the authors' public code computes (tests/golden)."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from golden_model import BASE, GOLDEN, TINY, as_at_test, golden_model
from sedseg import losses
from sedseg.model.cost_map import cost_map
from sedseg.model.fused import fuse
from sedseg.model.official import official_name
from sedseg.preprocessing import Preprocessing

# Every how many-th pixel of the levels, scores; every how many-th template of text_features.
SAMPLING = {"tiny": (8, 4, 1), "base": (32, 2, 5)}


@pytest.fixture(scope="module", params=["tiny", "base", "tiny fused", "base fused"])
def case(request):
    name, *fused = request.param.split()
    golden = np.load(GOLDEN / f"{name}.npz")
    model = golden_model({"tiny": TINY, "base": BASE}[name], int(golden["weight_seed"]))
    model = fuse(model) if fused else model
    with torch.inference_mode():
        images = as_at_test(golden["image"])
        text = model.encode_text(golden["classes"].tolist())
        encoded = model.encoder(images)
        out = model(images, text)
    levels, scores, templates = SAMPLING[name]
    return SimpleNamespace(**locals())


def close(ours, theirs, absolute, relative=0.0):
    np.testing.assert_allclose(np.asarray(ours), theirs, atol=absolute, rtol=relative)


def resized_scores(logits, golden):
    size = golden["image"].shape[:2]
    return F.interpolate(logits.sigmoid(), size, mode="bilinear", align_corners=False)[0]


def same_argmax(scores, argmax):
    """Equal, but for pixels where the two best scores are the same to float32's accuracy."""
    best = scores.topk(2, dim=0).values
    differs = scores.argmax(0).numpy() != argmax
    assert differs.mean() < 1e-4
    assert all((best[0] - best[1])[torch.from_numpy(differs)] < 1e-6)


def test_text_features(case):
    close(case.text[:, :: case.templates], case.golden["text_features"], 1e-6, 1e-5)


def test_levels_and_dense_embedding(case):
    for i, level in enumerate(case.encoded.levels):
        ours = level[0, :16, :: case.levels, :: case.levels]
        close(ours, case.golden[f"res{i + 2}_sub"], 1e-5, 1e-5)
    close(case.encoded.dense[0], case.golden["dense"], 1e-5, 1e-5)


def test_cost_map(case):
    ours = cost_map(case.encoded.dense, case.text)[0].transpose(0, 1)
    close(ours[::8, :, ::4, ::4], case.golden["cost_sub"], 1e-6, 1e-5)


def test_logits_and_auxiliary_maps(case):
    close(case.out.logits[0, :, ::4, ::4], case.golden["logits_sub"], 1e-4)
    for i, maps in enumerate(case.out.aux):  # a fused decoder gives none
        step = 2**i
        close(maps[0, :, ::step, ::step], case.golden[f"aux{i}_sub"], 1e-4)


def test_scores_and_argmax(case):
    scores = resized_scores(case.out.logits, case.golden)
    close(scores[:, :: case.scores, :: case.scores], case.golden["scores_sub"], 1e-5)
    same_argmax(scores, case.golden["argmax"])


@pytest.mark.parametrize("top_k", [1, 2, 8])
def test_early_rejection(case, top_k):
    if f"cer{top_k}_kept" not in case.golden:
        pytest.skip("not recorded for this model")
    with torch.inference_mode():
        out = case.model(case.images, case.text, top_k=top_k)
    assert np.array_equal(out.kept[0], case.golden[f"cer{top_k}_kept"])
    scores = resized_scores(out.logits, case.golden)
    ours = scores[:, :: case.scores, :: case.scores]
    close(ours, case.golden[f"cer{top_k}_scores_sub"], 1e-5)
    same_argmax(scores, case.golden[f"cer{top_k}_argmax"])


def photo(height, width, seed):
    rng = np.random.default_rng([seed, height, width])
    low = rng.uniform(0, 255, (3, height // 32 + 1, width // 32 + 1)).astype(np.float32)
    smooth = F.interpolate(
        torch.from_numpy(low)[None], (height, width), mode="bilinear", align_corners=False
    )[0].numpy()
    return np.clip(np.rint(smooth + rng.normal(0, 8, smooth.shape)), 0, 255).astype(np.uint8)


def test_training_losses_and_gradients():
    golden = np.load(GOLDEN / "tiny_train.npz")
    model = golden_model(TINY, int(golden["weight_seed"])).train()
    images = torch.from_numpy(np.stack([photo(768, 768, 50 + b) for b in (0, 1)]))
    images = Preprocessing().normalise(images)
    labels = torch.from_numpy(golden["targets"].repeat(32, 1).repeat(32, 2)).long()
    labels[:, :40] = 255
    found = losses(model(images, model.encode_text(golden["classes"].tolist())), labels)
    close([float(x.detach()) for x in found], golden["losses"], 0, 1e-5)
    sum(found).backward()
    ours = {official_name(n): p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert set(ours) == set(golden["grad_names"])
    norms = [float(ours[name].norm()) for name in golden["grad_names"]]
    close(norms, golden["grad_norms"], 1e-12, 1e-3)
