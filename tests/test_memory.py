"""How much memory large photos and long class lists take beyond the model."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sedseg.evaluation.speed import Setting, measure
from sedseg.model.fused import fuse
from sedseg.model.sed import SED
from sedseg.weights import named_config

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the peak of a process can be read on Linux alone"
)


@pytest.fixture(scope="module")
def base():
    network = fuse(SED(named_config("sed-base")))
    for part in (network.encoder, network.decoder):
        part.to(torch.bfloat16).to(memory_format=torch.channels_last)
    return network


def test_150_classes_take_under_2_gb(base):
    text = torch.nn.functional.normalize(torch.randn(150, 80, 640), dim=-1)
    found = measure(base, text, Setting("fast", 150, None, None, 768, 1), repeats=1)
    assert found["kept"] == 150
    assert found["peak_bytes"] < 2e9


def test_10_000_classes_take_under_3_gb(base):
    text = torch.nn.functional.normalize(torch.randn(100, 80, 640), dim=-1).bfloat16()
    text = text.repeat(100, 1, 1)
    found = measure(base, text, Setting("fast", 10_000, 8, 20, 768, 1), repeats=1)
    assert found["kept"] == 20
    assert found["peak_bytes"] + text.nbytes < 3e9


_LARGE_PHOTO = """
import sys, numpy as np, sedseg
from PIL import Image
from sedseg.evaluation.speed import _Memory
segmenter = sedseg.load("sed-tiny", device="cpu")
segmenter.prepare("ade20k-150")
segmenter(Image.new("RGB", (64, 64)), "ade20k-150")
photo = Image.open(sys.argv[1]).convert("RGB").resize((6000, 4000))
memory = _Memory(segmenter.device)
result = segmenter(photo, "ade20k-150", top_k=None)
assert result.mask.shape == (4000, 6000)
print(memory.peak())
"""


def test_a_photo_of_24_megapixels_takes_under_1_5_gb():
    photo = Path(__file__).parent.parent / "examples/palace.jpg"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _LARGE_PHOTO, str(photo)],
        capture_output=True,
        check=True,
        text=True,
    )
    assert 0 < int(done.stdout) < 1.5e9
