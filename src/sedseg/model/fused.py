"""The decoder, computed faster: the same numbers up to rounding, for inference alone.

What is gained, and by what (docs/performance.md has the figures):

- Classes go through in chunks that fit the processor's caches, positions in tiles where classes
  attend to one another; nothing but the features themselves ever exists for all classes at once.
- The image's part of a joined convolution is computed once for an image, not for each class.
- A class's features and its costs are upsampled by one transposed convolution (block diagonal).
- The first rejection needs one number a pixel and class. Two convolutions in a row are one, so it
  comes straight from the cost map; features are made for the survivors alone.
- Auxiliary maps are computed where something is to be rejected only.

Dimensions: B images, T classes, N rows (classes left of an image), P prompt templates, C embedding
channels, D channels, G guidance channels, M = D - G, h w pixels of the current stage.
Features are kept as (N, h, w, D).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sedseg.model.decoder import (
    ClassAttention,
    DecoderOutput,
    DecoderStage,
    GradualFusionDecoder,
    SkipLayerFusion,
    SpatialAggregation,
)
from sedseg.model.sed import SED

_CHUNK_BYTES = 6 * 2**20
"""Of the widest features of a chunk, on a CPU: some of its own cache, and under what the C library
gives back to the system at once (then every use would begin with page faults)."""


@torch.no_grad()
def fuse(model: SED, shared: Sequence[nn.Module] = ()) -> SED:
    """A copy that computes the same faster, for inference; the model itself is left alone.

    The copy has no gradients and no auxiliary maps, and its decoder's weights are laid out anew, so
    it can be neither trained nor saved. Fuse in float32 and change the type afterwards.

    Args:
        model: the model.
        shared: parts of it that the copy uses as they are, such as ``model.text_encoder``; what is
            done to one is then done to both.
    """
    fused = copy.deepcopy(model, {id(part): part for part in shared}).eval()
    fused.decoder.requires_grad_(False)
    if isinstance(fused.decoder, GradualFusionDecoder):  # else it is fused already
        fused.decoder = FusedDecoder(fused.decoder)
    return fused


class FusedDecoder(nn.Module):
    """A :class:`GradualFusionDecoder`, taken over with its weights."""

    def __init__(self, plain: GradualFusionDecoder) -> None:
        super().__init__()
        self.reject = plain.reject
        self.embed = plain.embed
        first_head: Any = plain.aux_heads[0]
        stages: Any = plain.stages
        self.first_head = ComposedHead(plain.embed, first_head)
        self.stages = nn.ModuleList(FusedStage(stage) for stage in stages)
        self.aux_heads = plain.aux_heads
        self.head = plain.head

    def forward(
        self,
        dense: Tensor,
        text: Tensor,
        levels: Sequence[Tensor],
        top_k: int | None = None,
        valid: Tensor | None = None,
    ) -> DecoderOutput:
        """As :meth:`GradualFusionDecoder.forward`, but without auxiliary maps and cost map."""
        images = []
        for i in range(len(dense)):
            words = text if text.ndim == 3 else text[i]
            here = None if valid is None else valid[i]
            images.append(self._image(dense[i], words, [f[i : i + 1] for f in levels], top_k, here))
        if len(images) == 1:  # nothing to copy: with 10,000 classes that is 700 MB
            logits, kept = (part[None] for part in images[0])
        else:
            logits, kept = (torch.stack(part) for part in zip(*images, strict=True))
        return DecoderOutput(logits, (), kept, None)

    def _image(
        self,
        dense: Tensor,
        text: Tensor,
        levels: Sequence[Tensor],
        top_k: int | None,
        valid: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """(C, h, w), (T, P, C) -> logits (T, H/4, W/4) and kept (3, T)."""
        kept = text.new_ones(len(text), dtype=torch.bool) if valid is None else valid
        pixels = F.normalize(dense, dim=0).permute(1, 2, 0)
        text = text.to(pixels.dtype)
        history = []
        if not kept.any():
            side = [4 * 2 * s for s in pixels.shape[:2]]
            return text.new_full((len(text), *side), float("-inf")), kept.expand(3, -1)
        if top_k is not None and int(kept.sum()) > top_k:
            kept = self._survivors(self._first_scores(pixels, text, kept), kept, top_k)
        x, costs = self._begin(pixels, _rows(text, kept))
        for i, stage in enumerate(self.stages):
            if i and top_k is not None and int(kept.sum()) > top_k:
                aux_head = self.aux_heads[i]
                survivors = self._survivors(_by_chunks(aux_head, x), kept, top_k)
                rows = survivors[kept]
                x, costs, kept = x[rows], costs[rows], survivors
            history.append(kept)
            last = i + 1 == len(self.stages)
            x, costs = stage(x, costs, levels[i], self.head if last else None)
        scores = x[..., 0]
        logits = scores.new_full((len(kept), *scores.shape[1:]), float("-inf"))
        logits[kept] = scores
        return logits, torch.stack(history)

    def _survivors(self, scores: Tensor, kept: Tensor, top_k: int) -> Tensor:
        """Scores (N, h, w) of the kept classes -> (T,) bool."""
        alive = torch.ones_like(kept[:1]).expand(1, len(scores))
        survivors = kept.clone()
        survivors[kept] = self.reject(scores[None], alive, top_k)[0]
        return survivors

    def _first_scores(self, pixels: Tensor, text: Tensor, kept: Tensor) -> Tensor:
        """(N, h, w): the auxiliary logits that the first rejection goes by."""
        asked = _rows(text, kept)
        h, w, _ = pixels.shape
        if min(h, w) < 3:  # narrower than the composed kernel's border
            return _by_chunks(self.aux_heads[0], self._begin(pixels, asked)[0])
        chunks = _chunks(len(asked), h * w * text.shape[1], pixels)
        return torch.cat([self.first_head(_costs(pixels, asked[rows])) for rows in chunks])

    def _begin(self, pixels: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, h, w, D) and costs (N, h, w, P) of these classes."""
        h, w, _ = pixels.shape
        costs = pixels.new_empty(len(text), h, w, text.shape[1])
        x = pixels.new_empty(len(text), h, w, self.embed.out_channels)
        for rows in _chunks(len(text), h * w * self.embed.out_channels, pixels):
            costs[rows] = _costs(pixels, text[rows])
            x[rows] = _convolve(self.embed, costs[rows])
        return x, costs


class FusedStage(nn.Module):
    """A :class:`DecoderStage`."""

    def __init__(self, plain: DecoderStage) -> None:
        super().__init__()
        self.spatial = FusedSpatial(plain.spatial)
        self.classes = FusedAttention(plain.classes)
        self.fusion = FusedFusion(plain.fusion)

    def forward(
        self, x: Tensor, costs: Tensor, level: Tensor, head: nn.Conv2d | None = None
    ) -> tuple[Tensor, Tensor]:
        """(N, h, w, D), (N, h, w, .), (1, ., 2h, 2w) -> (N, 2h, 2w, D'), (N, 2h, 2w, G).

        ``x`` is overwritten. With a ``head`` its result (N, 2h, 2w, 1) stands for the features,
        which then never exist for all classes, and no costs are handed on.
        """
        n, h, w, dim = x.shape
        for rows in _chunks(n, h * w * 4 * dim, x):
            x[rows] = self.spatial(x[rows])
        flat = x.view(n, h * w, dim)
        for places in _chunks(h * w, n * 4 * dim, x):
            flat[:, places] = self.classes(flat[:, places])
        image_part = self.fusion.image_part(level)
        out = x.new_empty(n, 2 * h, 2 * w, 1 if head else self.fusion.dim_out)
        costs_out = x.new_empty(0 if head else n, 2 * h, 2 * w, self.fusion.guidance_dim)
        for rows in _chunks(n, 4 * h * w * dim, x):
            features, handed_on = self.fusion(x[rows], costs[rows], image_part)
            if head:
                out[rows] = _convolve(head, features)
            else:
                out[rows], costs_out[rows] = features, handed_on
        return out, costs_out


class FusedSpatial(nn.Module):
    """A :class:`SpatialAggregation`, its layer scale within the last projection."""

    def __init__(self, plain: SpatialAggregation) -> None:
        super().__init__()
        self.depthwise, self.norm, self.expand = plain.depthwise, plain.norm, plain.expand
        self.reduce = plain.reduce
        scale = plain.layer_scale
        self.reduce.weight.data = plain.reduce.weight * scale[:, None]
        self.reduce.bias.data = plain.reduce.bias * scale

    def forward(self, x: Tensor) -> Tensor:
        """(N, h, w, D) -> the same shape."""
        y = self.expand(self.norm(_convolve(self.depthwise, x)))
        return self.reduce(torch.ops.aten.gelu_(y)).add_(x)


class FusedAttention(nn.Module):
    """A :class:`ClassAttention` without pooling, on some positions.

    All heads at once: the products of different heads are masked out, which costs less than
    taking the heads apart.
    """

    def __init__(self, plain: ClassAttention) -> None:
        super().__init__()
        self.norm1, self.norm2 = plain.norm1, plain.norm2
        mlp: Any = plain.mlp
        self.expand, _, self.reduce = mlp
        attention = plain.attention
        self.q, self.k, self.v, self.eps = attention.q, attention.k, attention.v, attention.eps
        dim = self.q.out_features
        head = torch.arange(dim) // (dim // attention.num_heads)
        self.register_buffer("same_head", (head[:, None] == head).to(self.q.weight.dtype))

    same_head: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(T, places, D) -> the same shape."""
        x = x.transpose(0, 1).contiguous()
        y = self.norm1(x)
        q, k, v = _positive(self.q(y)), _positive(self.k(y)), self.v(y)
        context = torch.bmm(k.transpose(1, 2), v).mul_(self.same_head)
        total = k.sum(1)[..., None] * self.same_head
        attended = torch.bmm(q, context).div_(torch.bmm(q, total).add_(self.eps))
        y = attended.add_(x)
        y = self.reduce(self.expand(self.norm2(y)).relu_()).add_(y)
        return y.add_(x).transpose(0, 1)


class FusedFusion(nn.Module):
    """A :class:`SkipLayerFusion`."""

    def __init__(self, plain: SkipLayerFusion) -> None:
        super().__init__()
        up, project_cost = plain.up, plain.project_cost
        self.dim_kept = up.out_channels
        self.guidance_dim = project_cost.out_channels
        self.project_level = plain.project_level
        layers: Any = plain.fuse
        first, self.norm1, _, self.second, self.norm2, _ = layers
        self.dim_out: int = first.out_channels
        weight = torch.zeros(
            up.in_channels + project_cost.in_channels,
            self.dim_kept + self.guidance_dim,
            *(2, 2),
            dtype=up.weight.dtype,
            device=up.weight.device,
        )
        weight[: up.in_channels, : self.dim_kept] = up.weight
        weight[up.in_channels :, self.dim_kept :] = project_cost.weight
        self.up_weight = nn.Parameter(weight, requires_grad=False)
        biases: Any = (up.bias, project_cost.bias)
        self.up_bias = nn.Parameter(torch.cat(biases), requires_grad=False)
        of_x, of_image, of_costs = first.weight.split(
            (self.dim_kept, self.guidance_dim, self.guidance_dim), dim=1
        )
        self.first_weight = nn.Parameter(torch.cat([of_x, of_costs], 1), requires_grad=False)
        self.image_weight = nn.Parameter(of_image.clone(), requires_grad=False)

    def image_part(self, level: Tensor) -> Tensor:
        """(1, ., 2h, 2w) -> (1, D', 2h, 2w), what the image adds to every class."""
        return F.conv2d(F.relu(self.project_level(level)), self.image_weight, padding=1)

    def forward(self, x: Tensor, costs: Tensor, image_part: Tensor) -> tuple[Tensor, Tensor]:
        """(N, h, w, D), (N, h, w, .) -> (N, 2h, 2w, D'), (N, 2h, 2w, G)."""
        joined = torch.cat([x, costs], -1).permute(0, 3, 1, 2)
        joined = F.conv_transpose2d(joined, self.up_weight, self.up_bias, stride=2)
        costs = joined[:, self.dim_kept :].relu_()
        y = F.conv2d(joined, self.first_weight, padding=1).add_(image_part)
        y = self.norm1(y).relu_()
        y = self.norm2(self.second(y)).relu_()
        return y.permute(0, 2, 3, 1), costs.permute(0, 2, 3, 1)


class ComposedHead(nn.Module):
    """A 7x7 and a 3x3 convolution to one channel in a row, as one 9x9 convolution.

    The second pads the first's result with zeros, where one convolution would go on. So what the
    positions just outside the map would have added is taken off again along the border; it is
    linear in the cost map too.

    Args:
        first: 7x7, padding 3. second: 3x3 to one channel, padding 1.
    """

    def __init__(self, first: nn.Conv2d, second: nn.Conv2d) -> None:
        super().__init__()
        taps = torch.einsum("dab,dpij->pabij", second.weight[0].float(), first.weight.float())
        dtype = first.weight.dtype

        def kernel(rows: Sequence[int], columns: Sequence[int]) -> nn.Parameter:
            """(1, P, 9, 9), of these taps of the second convolution alone."""
            whole = taps.new_zeros(taps.shape[0], 9, 9)
            for a in rows:
                for b in columns:
                    whole[:, a : a + 7, b : b + 7] += taps[:, a, b]
            return nn.Parameter(whole[None].to(dtype), requires_grad=False)

        every = range(3)
        # As nine columns, each an output channel: one channel alone leaves the processor idle.
        columns = kernel(every, every)[0].permute(2, 0, 1)[..., None].contiguous()
        self.columns = nn.Parameter(columns, requires_grad=False)
        self.top, self.bottom = kernel([0], every), kernel([2], every)
        self.left, self.right = kernel(every, [0]), kernel(every, [2])
        self.corners = nn.ParameterList(kernel([a], [b]) for a in (0, 2) for b in (0, 2))
        first_bias: Any = first.bias
        bias = torch.einsum("dab,d->ab", second.weight[0].float(), first_bias.float())
        self.bias_taps = nn.Parameter(bias[None, None].to(dtype), requires_grad=False)
        self.bias = second.bias

    def forward(self, costs: Tensor) -> Tensor:
        """(N, h, w, P) -> (N, h, w)."""
        _, h, w, _ = costs.shape
        maps = costs.permute(0, 3, 1, 2)
        by_column = F.pad(F.conv2d(maps, self.columns, padding=(4, 0)), (4, 4))
        out = torch.stack([by_column[:, j, :, j : j + w] for j in range(9)]).sum(0)
        # At the border row the kernel, shifted by its tap, meets the nearest three rows alone.
        near, far = slice(0, 3), slice(-3, None)
        out[:, 0] -= _strip(maps[:, :, near], self.top[..., 4:7, :], (0, 4))
        out[:, -1] -= _strip(maps[:, :, far], self.bottom[..., 2:5, :], (0, 4))
        out[:, :, 0] -= _strip(maps[..., near], self.left[..., 4:7], (4, 0))
        out[:, :, -1] -= _strip(maps[..., far], self.right[..., 2:5], (4, 0))
        parts = (near, slice(4, 7)), (far, slice(2, 5))
        places = ((i, j) for i in (0, 1) for j in (0, 1))
        for corner, (i, j) in zip(self.corners, places, strict=True):
            (rows, kernel_rows), (columns, kernel_columns) = parts[i], parts[j]
            kernel = corner[..., kernel_rows, kernel_columns]
            out[:, -i, -j] += F.conv2d(maps[:, :, rows, columns], kernel)[:, 0, 0, 0]
        ones = maps.new_ones(1, 1, h, w)
        return out.add_(F.conv2d(ones, self.bias_taps, self.bias, padding=1)[0, 0])


def _rows(things: Tensor, kept: Tensor) -> Tensor:
    return things if bool(kept.all()) else things[kept]


def _strip(maps: Tensor, kernel: Tensor, padding: tuple[int, int]) -> Tensor:
    return F.conv2d(maps, kernel, padding=padding).flatten(1)


def _costs(pixels: Tensor, text: Tensor) -> Tensor:
    """(h, w, C), (N, P, C) -> (N, h, w, P)."""
    h, w, _ = pixels.shape
    n, p, _ = text.shape
    costs = (pixels.flatten(0, 1) @ text.flatten(0, 1).T).view(h, w, n, p)
    return costs.permute(2, 0, 1, 3).contiguous()


def _convolve(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """(N, h, w, D) -> (N, h, w, D')."""
    return convolution(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _positive(x: Tensor) -> Tensor:
    return F.elu_(x).add_(1)


def _by_chunks(head: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """(N, h, w, D) -> (N, h, w) of a convolution to one channel."""
    n, h, w, dim = x.shape
    parts = [head(x[rows].permute(0, 3, 1, 2))[:, 0] for rows in _chunks(n, h * w * dim, x)]
    return torch.cat(parts)


def _chunks(count: int, elements: int, like: Tensor) -> Iterator[slice]:
    """Slices of ``count`` things of so many elements each."""
    step = count
    if like.device.type == "cpu":
        step = max(1, min(count, _CHUNK_BYTES // (elements * like.element_size())))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
