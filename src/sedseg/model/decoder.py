"""The gradual fusion decoder (SED, section 3.3), with early rejection as a step of its loop.

Every class is decoded by the same weights; classes meet in the class attention alone. So the
decoder works on rows: a row is one class of one image, and an image has as many rows as it has
classes left.

Dimensions: B images, T classes, N rows, P prompt templates, D channels, G guidance channels,
h w pixels of the current stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sedseg.model.cost_map import cost_map
from sedseg.model.rejection import surviving_classes


class DecoderOutput(NamedTuple):
    """What the decoder says; -inf stands where a class was rejected.

    logits: (B, T, H/4, W/4). aux: three maps (B, T, ...) at strides 32, 16 and 8.
    kept: (B, 3, T) bool, the classes alive after each of the three rejections.
    cost: (B, T, P, h, w), the cost map that was decoded.
    A fused decoder keeps neither the auxiliary maps nor the cost map: (), None.
    """

    logits: Tensor
    aux: tuple[Tensor, ...]
    kept: Tensor
    cost: Tensor | None


class GradualFusionDecoder(nn.Module):
    """Cost map -> logits, in three stages from stride 32 to stride 4.

    Args:
        templates: P.
        hidden_dim: D of the first stage.
        decoder_dims: D after each stage.
        level_dims: channels of F4, F3, F2.
        guidance_dims: G of each stage.
        num_heads, kernel_size: of the class attention and the aggregation block.
    """

    def __init__(
        self,
        *,
        templates: int,
        hidden_dim: int,
        decoder_dims: Sequence[int],
        level_dims: Sequence[int],
        guidance_dims: Sequence[int],
        num_heads: int,
        kernel_size: int,
    ) -> None:
        super().__init__()
        dims = (hidden_dim, *decoder_dims)
        cost_dims = (templates, *guidance_dims)
        self.embed = nn.Conv2d(templates, hidden_dim, 7, padding=3)
        self.stages = nn.ModuleList(
            DecoderStage(
                dim_in=dims[i],
                dim_out=dims[i + 1],
                level_dim=level_dims[i],
                cost_dim=cost_dims[i],
                guidance_dim=guidance_dims[i],
                num_heads=num_heads,
                kernel_size=kernel_size,
            )
            for i in range(len(decoder_dims))
        )
        self.reject = surviving_classes
        self.aux_heads = nn.ModuleList(nn.Conv2d(dim, 1, 3, padding=1) for dim in dims[:-1])
        self.head = nn.Conv2d(dims[-1], 1, 3, padding=1)

    def forward(
        self,
        dense: Tensor,
        text: Tensor,
        levels: Sequence[Tensor],
        top_k: int | None = None,
        valid: Tensor | None = None,
    ) -> DecoderOutput:
        """Compare pixels and words, and decode the cost map.

        Args:
            dense: (B, C, h, w), the image embedding of each pixel.
            text: (T, P, C), or (B, T, P, C) where each image has its own list.
            levels: F4, F3, F2 of the image, (B, ., 2h, 2w) to (B, ., 8h, 8w).
            top_k: before each stage keep the classes among the best ``top_k`` of some pixel
                (section 3.4; the paper's k is 8); None keeps all.
            valid: (B, T) bool, the classes to decode; None decodes all.
        """
        cost = cost_map(dense, text)
        if valid is None:
            valid = torch.ones(cost.shape[:2], dtype=torch.bool, device=cost.device)
        kept, whole_cost, cost = valid, cost, cost[valid]
        x = self.embed(cost)
        aux, history = [], []
        for stage, aux_head, level in zip(self.stages, self.aux_heads, levels, strict=True):
            aux.append(scatter_rows(aux_head(x.detach()), kept))
            if top_k is not None:
                survivors = self.reject(aux[-1], kept, top_k)
                rows = survivors[kept]
                x, cost, kept = x[rows], cost[rows], survivors
            history.append(kept)
            x, cost = stage(x, cost, level, kept)
        logits = scatter_rows(self.head(x), kept)
        return DecoderOutput(logits, tuple(aux), torch.stack(history, dim=1), whole_cost)


class DecoderStage(nn.Module):
    """One feature aggregation module and one skip-layer fusion module; doubles the resolution."""

    def __init__(
        self,
        *,
        dim_in: int,
        dim_out: int,
        level_dim: int,
        cost_dim: int,
        guidance_dim: int,
        num_heads: int,
        kernel_size: int,
    ) -> None:
        super().__init__()
        self.spatial = SpatialAggregation(dim_in, kernel_size)
        self.classes = ClassAttention(dim_in, num_heads)
        self.fusion = SkipLayerFusion(dim_in, dim_out, level_dim, cost_dim, guidance_dim)

    def forward(
        self, x: Tensor, cost: Tensor, level: Tensor, kept: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Fuse x (N, D, h, w), cost (N, ., h, w), level (B, ., 2h, 2w); kept (B, T) has N true.

        Returns:
            x (N, D_out, 2h, 2w) and cost (N, G, 2h, 2w).
        """
        x = self.classes(self.spatial(x), kept.sum(1).tolist())
        return self.fusion(x, cost, level, kept.nonzero()[:, 0])


class SpatialAggregation(nn.Module):
    """A ConvNeXt block: depthwise convolution, LayerNorm, MLP, layer scale, residual."""

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.expand = nn.Linear(dim, 4 * dim)
        self.reduce = nn.Linear(4 * dim, dim)
        self.layer_scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(N, D, h, w) -> the same shape."""
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.layer_scale * self.reduce(F.gelu(self.expand(y)))
        return x + y.permute(0, 3, 1, 2)


class ClassAttention(nn.Module):
    """Linear attention over the classes of an image, at each position."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = LinearAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, counts: list[int]) -> Tensor:
        """(N, D, h, w), rows of an image together, ``counts`` rows each -> the same shape.

        The pooled features themselves are added, not only their update: so the public code
        computes, and so its weights were trained.
        """
        # Pooling makes training affordable; at test the paper's numbers come from no pooling.
        pooled = F.avg_pool2d(x, 2, ceil_mode=True) if self.training else x
        y = pooled.permute(0, 2, 3, 1)
        y = y + self._attend(self.norm1(y), counts)
        y = (y + self.mlp(self.norm2(y))).permute(0, 3, 1, 2)
        if self.training:
            y = F.interpolate(y, x.shape[-2:], mode="bilinear", align_corners=True)
        return x + y

    def _attend(self, y: Tensor, counts: list[int]) -> Tensor:
        if len(set(counts)) == 1:
            return self.attention(y.unflatten(0, (len(counts), -1))).flatten(0, 1)
        return torch.cat([self.attention(rows[None])[0] for rows in y.split(counts)])


class LinearAttention(nn.Module):
    """Attention whose cost is linear in the number of classes (Katharopoulos et al., 2020)."""

    def __init__(self, dim: int, num_heads: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.num_heads = num_heads
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, h, w, D) -> the same shape; attends over T."""
        heads = (self.num_heads, -1)
        q = (F.elu(self.q(x)) + 1).unflatten(-1, heads)
        k = (F.elu(self.k(x)) + 1).unflatten(-1, heads)
        v = self.v(x).unflatten(-1, heads)
        context = torch.einsum("bthwnd,bthwne->bhwnde", k, v)
        normaliser = torch.einsum("bthwnd,bhwnd->bthwn", q, k.sum(1)) + self.eps
        return (torch.einsum("bthwnd,bhwnde->bthwne", q, context) / normaliser[..., None]).flatten(
            -2
        )


class SkipLayerFusion(nn.Module):
    """Upsample a class's features and join the image's and its own cost map's."""

    def __init__(
        self, dim_in: int, dim_out: int, level_dim: int, cost_dim: int, guidance_dim: int
    ) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(dim_in, dim_in - guidance_dim, 2, stride=2)
        self.project_level = nn.Conv2d(level_dim, guidance_dim, 3, padding=1)
        self.project_cost = nn.ConvTranspose2d(cost_dim, guidance_dim, 2, stride=2)
        joined = dim_in + guidance_dim
        self.fuse = nn.Sequential(*_conv_norm(joined, dim_out), *_conv_norm(dim_out, dim_out))

    def forward(
        self, x: Tensor, cost: Tensor, level: Tensor, image: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Fuse x (N, D, h, w), cost (N, ., h, w), level (B, ., 2h, 2w); image (N,), each row's.

        Returns:
            x (N, D_out, 2h, 2w) and cost (N, G, 2h, 2w).
        """
        cost = F.relu(self.project_cost(cost))
        guidance = F.relu(self.project_level(level))[image]  # one map per image, shared by classes
        return self.fuse(torch.cat([self.up(x), guidance, cost], dim=1)), cost


def _conv_norm(dim_in: int, dim_out: int) -> list[nn.Module]:
    return [
        nn.Conv2d(dim_in, dim_out, 3, padding=1, bias=False),
        nn.GroupNorm(max(dim_out // 16, 1), dim_out),
        nn.ReLU(),
    ]


def scatter_rows(rows: Tensor, kept: Tensor) -> Tensor:
    """(N, 1, h, w) logits of the kept classes -> (B, T, h, w), -inf for the others."""
    if kept.all():
        return rows.reshape(*kept.shape, *rows.shape[-2:])
    full = rows.new_full((*kept.shape, *rows.shape[-2:]), float("-inf"))
    full[kept] = rows[:, 0]
    return full
