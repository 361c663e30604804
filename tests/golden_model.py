"""The models that the golden numbers were recorded with."""

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from sedseg import SED, SEDConfig
from sedseg.model.official import official_name
from sedseg.preprocessing import Preprocessing

GOLDEN = Path(__file__).parent / "golden"

TINY_CLIP = {
    "embed_dim": 32,
    "vision_cfg": {
        "timm_model_name": "test_convnext",
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": 160,
    },
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 48,
        "heads": 4,
        "layers": 2,
    },
}
TINY = SEDConfig(clip=TINY_CLIP, hidden_dim=64)
BASE = SEDConfig(clip="convnext_base_w_320")


def official_weights(seed: int, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Weights that depend on the seed, the official name and the shape alone."""
    weights = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        values = np.asarray(rng.standard_normal(shape), dtype=np.float32)
        last = name.rsplit(".", 1)[-1]
        if len(shape) > 1:
            values = values * np.sqrt(1 / np.prod(shape[1:]))
        elif last in ("weight", "gamma"):
            values = 1 + values * np.float32(0.1)
        else:
            values = values * np.float32(0.1)
        weights[name] = torch.from_numpy(np.asarray(values, dtype=np.float32))
    return weights


def golden_model(config: SEDConfig, seed: int) -> SED:
    model = SED(config)
    shapes = {official_name(n): tuple(t.shape) for n, t in model.state_dict().items()}
    model.load_official(official_weights(seed, shapes))
    return model.eval()


def as_at_test(image: np.ndarray) -> torch.Tensor:
    """(H, W, 3) uint8 -> (1, 3, 768, 768): the test protocol from its second resize on."""
    pixels = Preprocessing().normalise(torch.from_numpy(image).permute(2, 0, 1))[None]
    return F.interpolate(pixels, (768, 768), mode="bilinear", align_corners=False)
