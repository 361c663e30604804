"""The model's claims that need no recorded numbers."""

from dataclasses import replace

import pytest
import torch

from golden_model import TINY, TINY_CLIP
from sedseg import SED, InputError, SEDConfig
from sedseg.model.decoder import LinearAttention
from sedseg.model.rejection import surviving_classes

CLASSES = ["wall", "building, edifice", "sky", "tree", "road", "floor", "car"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SED(replace(TINY, templates=4)).eval()


@pytest.fixture(scope="module")
def text(model):
    return model.encode_text(CLASSES)


def photos(count, height=96, width=128):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
@pytest.mark.parametrize("top_k", [None, 1, 2])
def test_a_batch_equals_its_images_one_by_one(model, text, top_k):
    images = photos(3)
    batch = model(images, text, top_k=top_k)
    for i in range(3):
        alone = model(images[i : i + 1], text, top_k=top_k)
        torch.testing.assert_close(batch.logits[i : i + 1], alone.logits, atol=1e-4, rtol=1e-4)
        assert torch.equal(batch.kept[i : i + 1], alone.kept)
    if top_k == 1:
        assert len({tuple(k.tolist()) for k in batch.kept[:, -1]}) > 1, "images keep other classes"


@torch.inference_mode()
def test_rejecting_nothing_equals_dense(model, text):
    dense, everything = model(photos(2), text), model(photos(2), text, top_k=len(CLASSES))
    assert torch.equal(dense.logits, everything.logits)
    assert everything.kept.all()


@torch.inference_mode()
def test_a_rejected_class_has_no_logit_and_leaves_the_others_as_if_never_listed(model, text):
    found = (model(photos(20)[i : i + 1], text, top_k=1) for i in range(20))
    i, out = next(
        (i, o) for i, o in enumerate(found) if o.kept[0, 0].equal(o.kept[0, 2]) and not o.kept.all()
    )
    kept = out.kept[0, -1]
    assert torch.isneginf(out.logits[0, ~kept]).all()
    assert torch.isfinite(out.logits[0, kept]).all()
    alone = model(photos(20)[i : i + 1], text[kept])
    torch.testing.assert_close(out.logits[:, kept], alone.logits, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_padded_class_lists_equal_short_ones(model, text):
    images = photos(2)
    both = torch.stack([text, torch.cat([text[:3], torch.zeros_like(text[3:])])])
    valid = torch.tensor([[True] * 7, [True] * 3 + [False] * 4])
    out = model(images, both, valid=valid)
    torch.testing.assert_close(out.logits[:1], model(images[:1], text).logits, atol=1e-4, rtol=1e-4)
    short = model(images[1:], text[:3]).logits
    torch.testing.assert_close(out.logits[1:, :3], short, atol=1e-4, rtol=1e-4)
    assert torch.isneginf(out.logits[1, 3:]).all()


@torch.inference_mode()
@pytest.mark.parametrize(("height", "width"), [(1, 1), (33, 64), (70, 31), (96, 200)])
def test_any_size_and_a_single_class(model, text, height, width):
    out = model(photos(1, height, width), text[:1], top_k=8)
    assert out.logits.shape == (1, 1, -(-height // 4), -(-width // 4))
    assert [m.shape[-1] for m in out.aux] == [-(-width // s) for s in (32, 16, 8)]
    assert torch.isfinite(out.logits).all()


@torch.inference_mode()
def test_order_of_classes_does_not_matter(model, text):
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    out, permuted = model(photos(1), text), model(photos(1), text[order])
    torch.testing.assert_close(out.logits[:, order], permuted.logits, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_bfloat16_agrees(model, text):
    half = SED(model.config).eval()
    half.load_state_dict(model.state_dict())
    half.to(torch.bfloat16)
    full = model(photos(2), text).logits
    low = half(photos(2).bfloat16(), text.bfloat16()).logits.float()
    assert (full - low).abs().max() < 0.05 * full.abs().max()


@torch.inference_mode()
def test_training_text_can_be_sliced_to_its_length(model):
    tokens = model.text_encoder.tokenize(["a photo of a cat", "a small photo of the big red bus"])
    whole = model.text_encoder.clip.encode_text(tokens)
    torch.testing.assert_close(model.text_encoder._encode(tokens), whole, atol=1e-6, rtol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize(
    "trunk", ["mobilenetv2_100", "fastvit_mci0", "resnet18", "convnext_atto", "RN50"]
)
def test_any_trunk_with_four_levels_is_a_matter_of_configuration(trunk):
    vision = {"timm_model_name": trunk, "timm_pool": "", "timm_proj": "linear", "image_size": 64}
    if trunk == "RN50":  # open_clip's own ResNet
        vision = {"layers": [1, 1, 1, 1], "width": 16, "patch_size": None, "image_size": 64}
    small = SED(SEDConfig(clip={**TINY_CLIP, "vision_cfg": vision}, hidden_dim=64, templates=1))
    out = small.eval()(photos(1, 64, 96), small.encode_text(["cat", "dog"]), top_k=1)
    assert out.logits.shape == (1, 2, 16, 24)
    assert small.encoder(photos(1, 64, 96)).dense.shape == (1, 32, 2, 3)


def test_a_vision_transformer_is_refused():
    vision = {"layers": 1, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 64}
    with pytest.raises(InputError, match="no levels at strides"):
        SED(SEDConfig(clip={**TINY_CLIP, "vision_cfg": vision}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"clip": "convnext_huge_xyz"}, "knows no model named"),
        ({"templates": 81}, "not between 1 and 80"),
        ({"templates": ("a photo",)}, "lacks {}"),
        ({"hidden_dim": 32}, "not wider"),
        ({"kernel_size": 8}, "even"),
        ({"decoder_dims": (64, 32, 24)}, "multiples of 16"),
    ],
)
def test_a_configuration_that_cannot_be_is_named(change, said):
    with pytest.raises(InputError, match=said):
        SED(replace(TINY, **change))


def test_no_classes_and_no_top_k_are_named(model, text):
    with pytest.raises(InputError, match="class list is empty"):
        model.encode_text([])
    with pytest.raises(InputError, match="top_k=0 keeps no class"):
        model(photos(1), text, top_k=0)


def test_survivors_are_the_union_of_the_best_of_each_pixel():
    logits = torch.tensor([[5.0, 1.0], [4.0, 9.0], [3.0, 2.0], [float("-inf")] * 2])
    logits = logits.view(1, 4, 1, 2)
    kept = torch.tensor([[True, True, True, False]])
    assert surviving_classes(logits, kept, 1).tolist() == [[True, True, False, False]]
    assert surviving_classes(logits, kept, 2).tolist() == [[True, True, True, False]]
    assert surviving_classes(logits, kept, 9).tolist() == [[True, True, True, False]]


def test_linear_attention_equals_its_definition():
    torch.manual_seed(0)
    attention = LinearAttention(8, num_heads=2)
    x = torch.randn(1, 5, 1, 1, 8)
    q, k = (torch.nn.functional.elu(f(x)) + 1 for f in (attention.q, attention.k))
    q, k, v = (y.view(5, 2, 4) for y in (q, k, attention.v(x)))
    weights = torch.einsum("thd,shd->hts", q, k)
    expected = torch.einsum("hts,shd->thd", weights / weights.sum(-1, keepdim=True), v)
    torch.testing.assert_close(attention(x).view(5, 2, 4), expected, atol=1e-5, rtol=1e-5)
