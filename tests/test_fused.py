"""The fused decoder computes what the plain one does."""

import copy
from dataclasses import replace

import pytest
import torch

from golden_model import TINY, golden_model
from sedseg.model import fused
from sedseg.model.fused import fuse

CLASSES = 23


@pytest.fixture(scope="module")
def plain():
    return golden_model(replace(TINY, templates=4), 3)


def words(*shape, seed=0):
    text = torch.randn(*shape, 4, 32, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(text, dim=-1)


def photos(count, height, width):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def assert_same(ours, theirs):
    assert torch.equal(ours.kept, theirs.kept)
    alive = theirs.kept[:, -1]
    assert torch.isneginf(ours.logits[~alive]).all()
    torch.testing.assert_close(ours.logits[alive], theirs.logits[alive], atol=1e-4, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("chunk", [1, 200_000, fused._CHUNK_BYTES])
@pytest.mark.parametrize("top_k", [None, 1, 2, CLASSES])
@pytest.mark.parametrize("size", [(96, 128), (64, 70), (160, 96)])
def test_logits_and_kept_sets_in_float32(plain, size, top_k, chunk, monkeypatch):
    monkeypatch.setattr(fused, "_CHUNK_BYTES", chunk)
    text, images = words(CLASSES), photos(2, *size)
    theirs = plain(images, text, top_k)
    if top_k in (1, 2):
        assert theirs.kept[:, 0].sum(1).min() > 1
        assert theirs.kept[:, 0].sum(1).max() < CLASSES
    assert_same(fuse(plain)(images, text, top_k), theirs)


@torch.inference_mode()
def test_lists_of_their_own_of_other_lengths_and_a_single_class(plain):
    images, text = photos(3, 96, 96), words(3, 9)
    valid = torch.arange(9) < torch.tensor([[9], [4], [1]])
    for top_k in (None, 1):
        ours, theirs = (m(images, text, top_k, valid) for m in (fuse(plain), plain))
        assert_same(ours, theirs)
    assert_same(fuse(plain)(images, words(1), 8), plain(images, words(1), 8))
    valid[1] = False
    assert_same(*(m(images, text, 1, valid) for m in (fuse(fuse(plain)), plain)))


@torch.inference_mode()
def test_the_first_rejection_s_numbers_come_straight_from_the_cost_map(plain):
    decoder = fuse(plain).decoder
    costs = torch.randn(5, 6, 7, 4, generator=torch.Generator().manual_seed(2))
    theirs = plain.decoder.aux_heads[0](plain.decoder.embed(costs.permute(0, 3, 1, 2)))[:, 0]
    torch.testing.assert_close(decoder.first_head(costs), theirs, atol=1e-5, rtol=0)


def test_fusing_leaves_the_model_alone_and_is_for_inference(plain):
    before = copy.deepcopy(plain.state_dict())
    quick = fuse(plain)
    quick.to(torch.bfloat16)
    assert all(torch.equal(before[name], t) for name, t in plain.state_dict().items())
    assert all(p.requires_grad for p in plain.decoder.parameters())
    assert not any(p.requires_grad for p in quick.decoder.parameters())


@torch.inference_mode()
def test_bfloat16_is_as_near_as_the_plain_decoder_s(plain):
    images, text = photos(2, 128, 128), words(CLASSES)
    exact = plain(images, text).logits

    def error(model):
        for part in (model.encoder, model.decoder):
            part.to(torch.bfloat16)
        return float((model(images.bfloat16(), text.bfloat16()).logits.float() - exact).std())

    assert error(fuse(plain)) < 1.2 * error(copy.deepcopy(plain)) < 0.1 * float(exact.std())
