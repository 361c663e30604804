"""SED: encoder -> cost map -> decoder (Xie et al., "SED: A Simple Encoder-Decoder for
Open-Vocabulary Semantic Segmentation", CVPR 2024, arXiv 2311.15537).

Dimensions: B images, T classes, P prompt templates, C embedding channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from sedseg.errors import InputError
from sedseg.model.config import SEDConfig
from sedseg.model.decoder import DecoderOutput, GradualFusionDecoder
from sedseg.model.encoder import STRIDE, HierarchicalEncoder
from sedseg.model.official import from_official
from sedseg.model.text import TextEncoder, build_clip


class EncodedImages(NamedTuple):
    """What decoding needs of images: once made, it serves any number of class lists.

    dense: (B, C, h, w) at stride 32. guidance: F4, F3, F2, (B, ., 2h, 2w) to (B, ., 8h, 8w).
    size: height and width of the images before padding.
    """

    dense: Tensor
    guidance: tuple[Tensor, ...]
    size: tuple[int, int]


class SED(nn.Module):
    """The whole model, with random weights until some are loaded.

    Raises:
        InputError: the configuration names no usable CLIP.
    """

    def __init__(self, config: SEDConfig) -> None:
        super().__init__()
        self.config = config
        clip = build_clip(config)
        self.encoder = HierarchicalEncoder(clip.get_submodule("visual"))
        self.text_encoder = TextEncoder(config, clip)
        f2, f3, f4, _ = self.encoder.level_dims
        self.decoder: nn.Module = GradualFusionDecoder(
            templates=len(config.prompts),
            hidden_dim=config.hidden_dim,
            decoder_dims=config.decoder_dims,
            level_dims=(f4, f3, f2),
            guidance_dims=config.guidance_dims,
            num_heads=config.num_heads,
            kernel_size=config.kernel_size,
        )

    def encode_text(self, classes: Sequence[str | Sequence[str]]) -> Tensor:
        """T class names (", " separates synonyms) -> (T, P, C) embeddings of length 1.

        Raises:
            InputError: the list is empty.
        """
        if not classes:
            raise InputError("The class list is empty; give at least one class.")
        return self.text_encoder(classes)

    def forward(
        self,
        images: Tensor,
        text: Tensor,
        top_k: int | None = None,
        valid: Tensor | None = None,
    ) -> DecoderOutput:
        """Score every class at every pixel.

        Args:
            images: (B, 3, H, W) normalised; any size. A size that is no multiple of 32 is padded
                at the right and the bottom with zeros, the mean colour.
            text: (T, P, C) from :meth:`encode_text`, or (B, T, P, C), one list for each image.
            top_k: reject classes early, keeping those among the best ``top_k`` of some pixel
                (section 3.4); None keeps all.
            valid: (B, T) bool; False where an image's class list is shorter than T. Such classes
                are left out as if they had been rejected from the start. None: all are there.

        Returns:
            logits (B, T, ceil(H/4), ceil(W/4)), -inf where rejected; the three auxiliary maps at
            strides 32, 16 and 8; and kept (B, 3, T) bool, the classes alive after each rejection.

        Raises:
            InputError: ``top_k`` is less than 1.
        """
        return self.decode(self.encode_images(images), text, top_k, valid)

    def encode_images(self, images: Tensor) -> EncodedImages:
        """(B, 3, H, W), normalised, of any size -> what :meth:`decode` takes."""
        height, width = images.shape[-2:]
        encoded = self.encoder(F.pad(images, (0, -width % STRIDE, 0, -height % STRIDE)))
        f2, f3, f4, _ = encoded.levels
        detach = self.config.detach_guidance
        guidance = tuple(f.detach() if detach else f for f in (f4, f3, f2))
        return EncodedImages(encoded.dense, guidance, (height, width))

    def decode(
        self,
        encoded: EncodedImages,
        text: Tensor,
        top_k: int | None = None,
        valid: Tensor | None = None,
    ) -> DecoderOutput:
        """The rest of :meth:`forward`; arguments, result and errors are explained there."""
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k={top_k} keeps no class; give 1 or more, or None to keep all.")
        height, width = encoded.size
        out = self.decoder(encoded.dense, text, encoded.guidance, top_k, valid)
        return DecoderOutput(
            _crop(out.logits, height, width, 4),
            tuple(_crop(m, height, width, s) for m, s in zip(out.aux, (32, 16, 8), strict=False)),
            out.kept,
            out.cost,
        )

    def load_official(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load weights that carry the names of the authors' public checkpoints, strictly.

        Raises:
            InputError: a name is missing or unknown, or a shape differs.
        """
        ours = from_official(state_dict, self.state_dict())
        self.load_state_dict(ours, strict=True)


def _crop(maps: Tensor, height: int, width: int, stride: int) -> Tensor:
    return maps[..., : -(-height // stride), : -(-width // stride)]
