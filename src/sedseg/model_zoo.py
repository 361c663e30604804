"""The named models: their configurations and where their weights come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sedseg.model.config import SEDConfig
from sedseg.model_info import ModelInfo
from sedseg.preprocessing import Preprocessing
from sedseg.vocabulary import Vocabulary

# open_clip's convnext_base_w_320 and convnext_large_d_320, but with the regularisation that SED
# trains with: none for base; stochastic depth and dropout before the projection for large.
SED_BASE = SEDConfig(
    clip={
        "embed_dim": 640,
        "vision_cfg": {
            "timm_model_name": "convnext_base",
            "timm_pool": "",
            "timm_proj": "linear",
            "timm_drop": 0.0,
            "timm_drop_path": 0.0,
            "image_size": 320,
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 640,
            "heads": 10,
            "layers": 12,
        },
    }
)
SED_LARGE = SEDConfig(
    clip={
        "embed_dim": 768,
        "vision_cfg": {
            "timm_model_name": "convnext_large",
            "timm_pool": "",
            "timm_proj": "mlp",
            "timm_drop": 0.1,
            "timm_drop_path": 0.1,
            "image_size": 320,
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 768,
            "heads": 12,
            "layers": 16,
        },
    }
)

_TERMS = (
    "Weights published by the authors of SED under their terms; trained on COCO-Stuff "
    "(annotations CC BY 4.0, photos from Flickr under their owners' terms) from a CLIP "
    "trained on LAION-2B or LAION-Aesthetics."
)


@dataclass(frozen=True)
class PublishedModel:
    """A model of the paper, with the weights that its authors publish on Google Drive.

    Attributes:
        name: the name to load it by.
        config: its shape.
        drive_id: the file's id on Google Drive.
        figures: what the paper reports.
        preprocessing: the paper's test protocol.
    """

    name: str
    config: SEDConfig
    drive_id: str
    figures: dict[str, Any]
    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    @property
    def address(self) -> str:
        """The web page that offers the file."""
        return f"https://drive.google.com/file/d/{self.drive_id}/view"

    def info(self) -> ModelInfo:
        """What is known of the published weights."""
        return ModelInfo(
            name=self.name,
            config=self.config,
            preprocessing=self.preprocessing,
            training_classes=Vocabulary.of("coco-stuff").names,
            data_terms=_TERMS,
            figures=self.figures,
        )


def _reported(dense: tuple[float, ...], top_8: tuple[float, ...]) -> dict[str, Any]:
    sets = ("ade20k-847", "pascal-context-459", "ade20k-150", "pascal-context-59", "pascal-voc-20")
    return {
        "source": "the paper (arXiv 2311.15537)",
        "mIoU over the classes in the ground truth, percent": {
            "dense": dict(zip(sets, dense, strict=True)),
            "top_k=8": dict(zip(sets, top_8, strict=True)),
        },
    }


PUBLISHED = {
    model.name: model
    for model in (
        PublishedModel(
            name="sed-base",
            config=SED_BASE,
            drive_id="1qx6zGZgSPkF6TObregRz4uzQqSRHrgUw",
            figures=_reported((11.2, 18.6, 31.8, 57.7, 94.4), (11.4, 18.6, 31.6, 57.3, 94.4)),
        ),
        PublishedModel(
            name="sed-large",
            config=SED_LARGE,
            drive_id="1zAXE0QXy47n0cVn7j_2cSR85eqxdDGg8",
            figures=_reported((13.7, 22.1, 35.3, 60.9, 96.1), (13.9, 22.6, 35.2, 60.6, 96.1)),
        ),
    )
}
"""Named models that are fetched when first used."""

EMBEDDED = {"sed-tiny": Path(__file__).parent / "assets" / "sed-tiny.safetensors"}
"""Named models that come inside the package; the file holds the configuration too."""
