"""Photos + words -> segmentations. Files, devices, number types and batches live here.

Dimensions: B photos, T classes, P prompt templates, C embedding channels, H W pixels.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from huggingface_hub import ModelHubMixin
from PIL import Image
from torch import Tensor

from sedseg.asked_words import AskedWords
from sedseg.devices import choose_device, choose_dtype
from sedseg.errors import InputError
from sedseg.model.decoder import DecoderOutput
from sedseg.model.fused import fuse
from sedseg.model.sed import SED
from sedseg.photos import PhotoSource, read_photo
from sedseg.segmentation import Segmentation
from sedseg.text_embeddings import TextEmbeddings
from sedseg.vocabulary import Vocabulary
from sedseg.weights import ModelInfo, load_model, save_model

CPU_MEMORY = 2 * 2**30
"""Bytes that a batch may take on a CPU; a GPU gives half of what it has free."""

_BYTES_PER_SCORE = 56  # a photo's pixel and class, in float32 and with 128 hidden channels
_LARGEST_BATCH = 16  # more is no faster


_MODEL_CARD = """---
{{ card_data }}
---

# {{ name }}

An open-vocabulary segmentation model (SED, arXiv 2311.15537) for
sedseg:

    import sedseg
    segmenter = sedseg.load("<this repository>")
    segmenter("photo.jpg", "sky, building, road|street, car").overlay()

Data and terms: {{ data_terms or "not stated." }}

{% if figures %}Measured: `{{ figures }}`{% endif %}
"""


class Segmenter(
    ModelHubMixin,
    library_name="sedseg",
    pipeline_tag="image-segmentation",
    paper_url="https://arxiv.org/abs/2311.15537",
    model_card_template=_MODEL_CARD,
):
    """Segments photos with any words; make one with :func:`load`.

    ``push_to_hub``, ``save_pretrained`` and ``from_pretrained`` are the Hugging Face hub's own.

    Args:
        model: moved to the device and put in evaluation mode.
        info: what is known of it.
        device: "cpu", "cuda", "cuda:1", "mps" or a torch.device. Default: a GPU if there is one.
        dtype: "float32", "bfloat16" or the torch.dtype, for the image side of the model
            (text is embedded in float32). Default: bfloat16 where the device computes with it
            faster, else float32.
        source: where the model was loaded from, for the records of results.

    Raises:
        InputError: the device is not there, or the type is none of these.
    """

    def __init__(
        self,
        model: SED,
        info: ModelInfo,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        source: str = "",
    ) -> None:
        self.source = source
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device)
        self.info = info
        self.model = model.to(self.device).eval()
        self.text_embeddings = TextEmbeddings(self.model)
        self.network = _in_type(self.model, self.dtype)
        """What segments: the model fused, in ``dtype``."""
        self._latest: AskedWords | None = None  # most often the next call asks for the same
        self._hub_mixin_config = {"name": info.name, "library": "sedseg"}  # written as config.json

    @overload
    def __call__(
        self,
        photos: PhotoSource,
        classes: Any,
        top_k: int | None = 8,
        threshold: float | None = None,
    ) -> Segmentation: ...

    @overload
    def __call__(
        self,
        photos: list[PhotoSource] | tuple[PhotoSource, ...],
        classes: Any,
        top_k: int | None = 8,
        threshold: float | None = None,
    ) -> list[Segmentation]: ...

    def __call__(
        self,
        photos: PhotoSource | list[PhotoSource] | tuple[PhotoSource, ...],
        classes: Any,
        top_k: int | None = 8,
        threshold: float | None = None,
    ) -> Segmentation | list[Segmentation]:
        """Find the class of every pixel.

        The score of a class is the sigmoid of its logit, enlarged bilinearly to the photo's size
        (SED, section 4: the test protocol); the class with the best score has the pixel.

        A class named "background" means none of the others. A model that was trained with it
        scores it as a class among classes. For any other, it is scored as the absence of the
        others: 1 minus the largest score among them at that pixel. So it has a pixel where all
        others score under one half.

        Args:
            photos: one photo, or a list of them, as :func:`sedseg.photos.read_photo` takes them.
                Photos of a list that the model sees at one size are computed together, as many
                as fit in memory.
            classes: what :meth:`Vocabulary.of` takes: a string such as "sky, road|street", a
                list, a file, or the name of a label set.
            top_k: reject early all classes that are not among the best ``top_k`` of any pixel
                (section 3.4): much faster with many classes, and hardly different. None: none.
            threshold: from 0 to 1; pixels whose best score is less get no class (-1).

        Returns:
            A :class:`Segmentation`, or a list of them in the photos' order.

        Raises:
            InputError: a photo cannot be read; a class list, top_k or threshold makes no sense.
        """
        if threshold is not None and not 0 <= threshold <= 1:
            raise InputError(f"The threshold is {threshold:g}; give a number from 0 to 1.")
        sources: list[Any] = list(photos) if isinstance(photos, (list, tuple)) else [photos]
        words = self.words(Vocabulary.of(classes))
        images = [read_photo(source) for source in sources]
        results: dict[int, Segmentation] = {}
        for batch in self._batches(images, len(words.asked)):
            out = self._infer([images[i] for i in batch], words.text, top_k)
            for i, logits, kept in zip(batch, out.logits, out.kept.cpu(), strict=True):
                photo = images[i]
                scores = logits[kept[-1].to(logits.device)].float().sigmoid()
                maps = words.score_maps(scores, kept[-1], photo.height, photo.width)
                mask, confidence = maps.best(threshold)
                results[i] = Segmentation(
                    classes=words.vocabulary.names,
                    mask=mask,
                    confidence=confidence,
                    photo=photo,
                    maps=maps.cpu(),
                    rejected=words.rejected(kept),
                    source=_path(sources[i]),
                    synonyms=words.vocabulary.synonyms,
                    settings={**self.settings, "top_k": top_k, "threshold": threshold},
                )
        in_order = [results[i] for i in range(len(images))]
        return in_order if isinstance(photos, (list, tuple)) else in_order[0]

    @property
    def settings(self) -> dict[str, Any]:
        """What, besides the call's arguments, decides a result; results keep it."""
        dtype = str(self.dtype).removeprefix("torch.")
        return {"model": self.info.name, "weights": self.source, "dtype": dtype}

    def prepare(self, classes: Any) -> None:
        """Embed the classes now rather than with the first photo.

        Raises:
            InputError: the class list makes no sense; see :meth:`Vocabulary.of`.
        """
        self.words(Vocabulary.of(classes))

    def words(self, vocabulary: Vocabulary) -> AskedWords:
        """The vocabulary, embedded, as this model is to be asked for it.

        Raises:
            InputError: nothing is left to ask, or a name is too long for the text tower.
        """
        absence = None if self.info.knows_background else vocabulary.background
        asked = tuple(i for i in range(len(vocabulary)) if i != absence)
        if not asked:
            raise InputError(
                f"{self.info.name} knows background only as the absence of other classes; "
                "name at least one other."
            )
        found = self._latest  # held here: another thread may replace it meanwhile
        if found is None or found.vocabulary != vocabulary:
            wanted = Vocabulary(tuple(vocabulary.synonyms[i] for i in asked))
            text = self.text_embeddings.embeddings(wanted, self.dtype).to(self.device)
            found = self._latest = AskedWords(vocabulary, text, asked, absence)
        return found

    def _batches(self, images: Sequence[Image.Image], classes: int) -> Iterator[list[int]]:
        """Indices of photos that the model sees at one size, in groups that fit in memory."""
        square = self.info.preprocessing.square

        def size(i: int) -> tuple[int, int]:
            if square is not None:
                return square, square
            return self.info.preprocessing.size(images[i].height, images[i].width)

        memory = CPU_MEMORY
        if self.device.type == "cuda":
            memory = torch.cuda.mem_get_info(self.device)[0] // 2
        width = self.model.config.hidden_dim / 128 * self.dtype.itemsize / 4
        for (h, w), same in itertools.groupby(sorted(range(len(images)), key=size), key=size):
            fitting = int(memory / (_BYTES_PER_SCORE * width * classes * h * w))
            step = max(1, min(fitting, _LARGEST_BATCH))
            indices = list(same)
            yield from (indices[k : k + step] for k in range(0, len(indices), step))

    @torch.inference_mode()
    def _infer(
        self, images: Sequence[Image.Image], text: Tensor, top_k: int | None
    ) -> DecoderOutput:
        pixels = torch.stack([self.info.preprocessing(image) for image in images])
        pixels = pixels.to(self.device, self.dtype, memory_format=torch.channels_last)
        out: DecoderOutput = self.network(pixels, text, top_k)
        return out

    def _save_pretrained(self, save_directory: Path) -> None:
        save_model(self.model, self.info, save_directory / "model.safetensors")

    @classmethod
    def _from_pretrained(  # type: ignore[override]  # the mixin passes all by keyword
        cls,
        *,
        model_id: str,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        **download: Any,
    ) -> Segmenter:
        path = Path(model_id) / "model.safetensors"
        if not Path(model_id).is_dir():
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(model_id, path.name, **download))
        return cls(*load_model(path), device=device, dtype=dtype, source=model_id)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> Any:
        """The card of the hub's page, with the model's data terms and measured figures."""
        known = {
            "name": self.info.name,
            "data_terms": self.info.data_terms,
            "figures": self.info.figures,
        }
        return super().generate_model_card(*args, **{**known, **kwargs})


def load(
    source: str | os.PathLike[str] = "sed-tiny",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> Segmenter:
    """Load a model, ready to segment photos.

    Args:
        source: "sed-tiny" (comes with sedseg), "sed-base" or "sed-large" (fetched once), a file
            or folder, a URL, or a Hugging Face repository ("user/name").
        device, dtype: see :class:`Segmenter`.

    Raises:
        InputError: there is no such model, it cannot be fetched, or the device is not there.
    """
    device = choose_device(device)  # a wrong device shows before the download, not after
    choose_dtype(dtype, device)
    model, info = load_model(source if isinstance(source, str) else Path(source))
    return Segmenter(model, info, device=device, dtype=dtype, source=os.fspath(source))


def _path(source: Any) -> str | None:
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else None


def _in_type(model: SED, dtype: torch.dtype) -> SED:
    """The model fused, its image side in ``dtype``, channels last: faster on every device.

    The given model keeps its float32 weights, to be saved.
    """
    shared = [model.text_encoder, *([model.encoder] if dtype == torch.float32 else [])]
    network = fuse(model, shared)
    for part in (network.encoder, network.decoder):
        part.to(dtype).to(memory_format=torch.channels_last)
    return network
