"""What distinguishes one SED from another."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import open_clip

from sedseg.errors import InputError

IMAGENET_TEMPLATES: tuple[str, ...] = tuple(
    template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES
)


@dataclass(frozen=True)
class SEDConfig:
    """The shape of a SED model (paper, section 3); weights and photos are elsewhere.

    Attributes:
        clip: an open_clip model name ("convnext_base_w_320") or an open_clip configuration
            (``embed_dim``, ``vision_cfg``, ``text_cfg``). Any vision tower made of a timm trunk
            with four levels at strides 4, 8, 16 and 32, or open_clip's own ResNets, will do.
        hidden_dim: D, the channels a class has after the 7x7 embedding of its cost map.
        decoder_dims: channels after each of the three decoder stages.
        guidance_dims: G, channels of the image features joined in at each stage.
        num_heads: heads of the class attention.
        kernel_size: side of the depthwise kernel of the feature aggregation module.
        templates: the prompt templates, "{}" standing for the class name; a number n means the
            first n of the 80 ImageNet templates of CLIP.
        detach_guidance: the encoder learns through the cost map alone (section 3.2), not through
            the skip features. True in the paper.

    Raises:
        InputError: the numbers of the decoder do not fit together.
    """

    clip: str | Mapping[str, Any]
    hidden_dim: int = 128
    decoder_dims: tuple[int, int, int] = (64, 32, 16)
    guidance_dims: tuple[int, int, int] = (32, 16, 8)
    num_heads: int = 4
    kernel_size: int = 9
    templates: int | tuple[str, ...] = 80
    detach_guidance: bool = True

    def __post_init__(self) -> None:
        for field in ("decoder_dims", "guidance_dims"):  # JSON has lists only
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if not isinstance(self.templates, int):
            object.__setattr__(self, "templates", tuple(self.templates))
        if not len(self.decoder_dims) == len(self.guidance_dims) == 3:
            raise InputError("decoder_dims and guidance_dims have three numbers, one a stage.")
        for dim, guidance in zip(self.stage_dims, self.guidance_dims, strict=True):
            if dim % self.num_heads or dim <= guidance:
                raise InputError(
                    f"A decoder stage of {dim} channels is no multiple of num_heads="
                    f"{self.num_heads} or not wider than its {guidance} guidance channels."
                )
        if any(dim > 16 and dim % 16 for dim in self.decoder_dims):
            raise InputError("decoder_dims are multiples of 16, or less than 16.")
        if self.kernel_size % 2 == 0:
            raise InputError(f"kernel_size={self.kernel_size} is even; an odd one has a centre.")

    @property
    def stage_dims(self) -> tuple[int, ...]:
        """The channels that each decoder stage takes in."""
        return (self.hidden_dim, *self.decoder_dims[:-1])

    @property
    def prompts(self) -> tuple[str, ...]:
        """The P prompt templates.

        Raises:
            InputError: a template lacks "{}", or more ImageNet templates are asked for than exist.
        """
        if isinstance(self.templates, int):
            if not 1 <= self.templates <= len(IMAGENET_TEMPLATES):
                raise InputError(
                    f"templates={self.templates} is not between 1 and {len(IMAGENET_TEMPLATES)}, "
                    "the number of ImageNet templates."
                )
            return IMAGENET_TEMPLATES[: self.templates]
        for template in self.templates:
            if "{}" not in template:
                raise InputError(f"The template {template!r} lacks {{}} for the class name.")
        if not self.templates:
            raise InputError("The configuration has no prompt template; give at least ('{}',).")
        return self.templates

    @property
    def clip_config(self) -> dict[str, Any]:
        """The open_clip configuration, without pretrained trunks (weights are loaded apart).

        Raises:
            InputError: ``clip`` names no model that open_clip knows.
        """
        if isinstance(self.clip, str):
            found = open_clip.get_model_config(self.clip)
            if found is None:
                raise InputError(
                    f"open_clip knows no model named {self.clip!r}; "
                    "open_clip.list_models() lists those it knows."
                )
        else:
            found = copy.deepcopy(dict(self.clip))
        found["vision_cfg"] = {**found["vision_cfg"], "timm_model_pretrained": False}
        return found

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON; ``SEDConfig(**d)`` reads it back."""
        return asdict(self)
