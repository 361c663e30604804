"""The confusion matrix, on pixels counted by hand."""

import math

import pytest
import torch

from sedseg.evaluation.metrics import ConfusionMatrix
from sedseg.model.decoder import DecoderOutput
from sedseg.training.losses import dice_loss


def test_two_definitions_of_miou_on_hand_counted_pixels():
    matrix = ConfusionMatrix.empty(4)
    # Class 0: 3 pixels, 2 found; class 1: 2 pixels, 1 found; class 2 never; class 3 only predicted.
    labels = torch.tensor([[0, 0, 0, 1], [1, 65535, 65535, 65535]])
    mask = torch.tensor([[0, 0, 1, 1], [3, 0, 1, 2]])
    matrix.add(labels, mask)
    assert matrix.counts[0].tolist() == [2, 1, 0, 0, 0]
    assert matrix.iou[:2].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert math.isnan(matrix.iou[2])
    assert matrix.iou[3] == 0
    assert matrix.miou_ground_truth == pytest.approx(1 / 2)
    assert matrix.miou_union == pytest.approx(1 / 3)
    assert matrix.pixel_accuracy == pytest.approx(3 / 5)
    assert matrix.accuracy[:2].tolist() == pytest.approx([2 / 3, 1 / 2])
    assert math.isnan(matrix.accuracy[3])
    assert matrix.mean_accuracy == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert matrix.frequency_weighted_iou == pytest.approx((3 * 2 / 3 + 2 * 1 / 3) / 5)
    assert matrix.truth_pixels.tolist() == [3, 2, 0, 0]
    assert sorted(matrix.most_confused(9)) == [(0, 1, 1, 1 / 3), (1, 3, 1, 1 / 2)]
    assert torch.equal((matrix + matrix).counts, 2 * matrix.counts)


def test_a_pixel_without_a_class_is_a_miss():
    matrix = ConfusionMatrix.empty(2)
    matrix.add(torch.tensor([[0, 1]]), torch.tensor([[-1, 1]]))
    assert matrix.counts.tolist() == [[0, 0, 1], [0, 1, 0]]
    assert matrix.miou_ground_truth == pytest.approx(1 / 2)


def test_dice_is_1_minus_overlap_over_the_classes_present():
    logits = torch.full((1, 2, 2, 2), -50.0)
    logits[0, 0, 0] = 50.0  # half of the pixels, of which all are of class 0, as are two more
    kept = torch.ones(1, 3, 2, dtype=torch.bool)
    output = DecoderOutput(logits, (logits,) * 3, kept, logits[:, :, None])
    labels = torch.zeros(1, 2, 2, dtype=torch.long)
    assert float(dice_loss(output, labels)) == pytest.approx(1 - 2 * 2 / (2 + 4))
    counted = torch.ones(1, 2, 2, 2, dtype=torch.bool)
    labels[0, 1] = 255
    assert float(dice_loss(output, labels, counted=counted)) == pytest.approx(0, abs=1e-6)
