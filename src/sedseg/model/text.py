"""Class names -> text embeddings (SED, section 3.1): every synonym in every prompt template.

Dimensions: T classes, P prompt templates, C embedding channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sedseg.model.config import SEDConfig


class TextEncoder(nn.Module):
    """The frozen CLIP text tower with its tokenizer and prompt templates.

    Args:
        config: gives the templates and the tokenizer.
        clip: an open_clip model; its vision tower is taken off, the rest is kept as it is.
    """

    def __init__(self, config: SEDConfig, clip: nn.Module) -> None:
        super().__init__()
        del clip.visual
        self.clip = clip
        self.templates = config.prompts
        self.tokenize = _tokenizer(config)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, classes: Sequence[str | Sequence[str]], batch_size: int = 512) -> Tensor:
        """Embed classes.

        Args:
            classes: T names; ", " separates the synonyms of a name, or give them as a sequence.
            batch_size: prompts encoded at once; bounds the memory.

        Returns:
            (T, P, C), each of the vectors of length 1. Templates are not averaged: they are the
            channels of the cost map. Synonyms are averaged, within a template.
        """
        synonyms = [c.split(", ") if isinstance(c, str) else list(c) for c in classes]
        prompts = [t.format(s) for names in synonyms for s in names for t in self.templates]
        tokens = self.tokenize(prompts)
        device = next(self.clip.parameters()).device
        chunks = [F.normalize(self._encode(c.to(device)), dim=-1) for c in tokens.split(batch_size)]
        per_synonym = torch.cat(chunks).unflatten(0, (-1, len(self.templates)))
        per_class = per_synonym.split([len(names) for names in synonyms])
        return torch.stack([F.normalize(names.mean(0), dim=-1) for names in per_class])

    def _encode(self, tokens: Tensor) -> Tensor:
        """(N, length) token ids -> (N, C), not normalised.

        A causal tower cannot look past a prompt's end, so the padding that all prompts of a batch
        share is cut off: exact, and several times faster.
        """
        clip: Any = self.clip
        if not _is_causal(clip):
            return clip.encode_text(tokens)
        end = tokens.argmax(dim=-1)
        tokens = tokens[:, : int(end.max()) + 1]
        length = tokens.shape[1]
        x = clip.token_embedding(tokens) + clip.positional_embedding[:length]
        x = clip.transformer(x, attn_mask=clip.attn_mask[:length, :length])
        return clip.ln_final(x)[torch.arange(len(x)), end] @ clip.text_projection


def build_clip(config: SEDConfig) -> nn.Module:
    """The open_clip model of a configuration, with random weights."""
    clip_config = config.clip_config
    custom = clip_config.pop("custom_text", False)
    for key in ("multimodal_cfg", "hf_tokenizer_name"):
        clip_config.pop(key, None)
    return (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**clip_config)


def _tokenizer(config: SEDConfig) -> Any:
    text = config.clip_config["text_cfg"]
    if isinstance(config.clip, str) and "hf_tokenizer_name" in text:
        return open_clip.get_tokenizer(config.clip)
    return open_clip.SimpleTokenizer(context_length=text.get("context_length", 77))


def _is_causal(clip: Any) -> bool:
    return (
        isinstance(clip, open_clip.CLIP)
        and getattr(clip, "attn_mask", None) is not None
        and clip.text_pool_type == "argmax"
        and isinstance(clip.text_projection, nn.Parameter)
    )
