"""The names of the authors' public checkpoints, and ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from sedseg.errors import InputError

_CLIP = "sem_seg_head.predictor.clip_model."
_DECODER = "sem_seg_head.predictor.transformer."

# Ours on the left; the stage's number {0} counts from 0, theirs in "decoderN" {1} from 1.
_RULES = [
    (r"encoder\.visual\.(.*)", _CLIP + "visual.{0}"),
    (r"text_encoder\.clip\.(.*)", _CLIP + "{0}"),
    (r"decoder\.embed\.(.*)", _DECODER + "conv1.{0}"),
    (r"decoder\.head\.(.*)", _DECODER + "head.{0}"),
    (r"decoder\.aux_heads\.(\d)\.(.*)", _DECODER + "head{0}.{1}"),
]
_STAGE_RULES = [
    (r"spatial\.depthwise\.(.*)", "decoder{n}.cnext.dwconv.{0}"),
    (r"spatial\.norm\.(.*)", "decoder{n}.cnext.norm.{0}"),
    (r"spatial\.expand\.(.*)", "decoder{n}.cnext.pwconv1.{0}"),
    (r"spatial\.reduce\.(.*)", "decoder{n}.cnext.pwconv2.{0}"),
    (r"spatial\.layer_scale", "decoder{n}.cnext.gamma"),
    (r"classes\.mlp\.(.*)", "decoder{n}.attention.MLP.{0}"),
    (r"classes\.(.*)", "decoder{n}.attention.{0}"),
    (r"fusion\.up\.(.*)", "decoder{n}.up.{0}"),
    (r"fusion\.fuse\.(.*)", "decoder{n}.conv.double_conv.{0}"),
    (r"fusion\.project_level\.(.*)", "decoder_guidance_projection.{i}.0.{0}"),
    (r"fusion\.project_cost\.(.*)", "decoder_corr_guidance_projection.{i}.0.{0}"),
]


def official_name(name: str) -> str:
    """The public checkpoint's name of one of our parameters or buffers.

    Raises:
        KeyError: no parameter of SED has that name.
    """
    stage = re.fullmatch(r"decoder\.stages\.(\d)\.(.*)", name)
    rules = _STAGE_RULES if stage else _RULES
    i = int(stage[1]) if stage else 0
    for pattern, template in rules:
        found = re.fullmatch(pattern, stage[2] if stage else name)
        if found:
            theirs = template.format(*found.groups(), i=i, n=i + 1)
            return _DECODER + theirs if stage else theirs
    raise KeyError(name)


def from_official(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a public checkpoint.

    Args:
        theirs: the public state dict.
        ours: our model's state dict, for its names and shapes.

    Returns:
        A state dict with the names of ``ours``, every tensor of ``theirs`` used.

    Raises:
        InputError: a name is missing or left over, or a shape differs.
    """
    names = {official_name(name): name for name in ours}
    missing = sorted(names.keys() - theirs.keys())
    unknown = sorted(theirs.keys() - names.keys())
    if missing or unknown:
        what = f"lacks {missing[0]}" if missing else f"has the unknown {unknown[0]}"
        raise InputError(
            f"This is no checkpoint of this model: it {what} ({len(missing)} names missing, "
            f"{len(unknown)} unknown); check that the file and the model belong together."
        )
    for name, tensor in theirs.items():
        if tensor.shape != ours[names[name]].shape:
            raise InputError(
                f"This is no checkpoint of this model: {name} has shape {tuple(tensor.shape)} "
                f"instead of {tuple(ours[names[name]].shape)}; use the other model size."
            )
    return {names[name]: tensor for name, tensor in theirs.items()}
