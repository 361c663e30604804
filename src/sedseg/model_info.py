"""What a weights file says about its model, kept as JSON in the file's metadata."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import sedseg
from sedseg.errors import InputError
from sedseg.model.config import SEDConfig
from sedseg.preprocessing import Preprocessing


@dataclass(frozen=True)
class ModelInfo:
    """All of a model that is not its weights.

    Attributes:
        name: what the model is called, such as "sed-base".
        config: its shape.
        preprocessing: how large it wants its photos.
        training_classes: the words it was trained on; empty if unknown.
        data_terms: under what terms its training data and weights may be used.
        figures: what was measured of it, as JSON values.
        knows_background: it was trained with "background" (none of the others) as a class.
    """

    name: str
    config: SEDConfig
    preprocessing: Preprocessing
    training_classes: tuple[str, ...] = ()
    data_terms: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    knows_background: bool = False

    def to_json(self) -> str:
        """With the version of sedseg that writes it; :meth:`from_json` reads it back."""
        written = {**asdict(self), "sedseg_version": sedseg.__version__}
        return json.dumps(written, ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> ModelInfo:
        """Read what :meth:`to_json` wrote.

        Raises:
            InputError: it has fields that this sedseg does not know, or lacks some.
        """
        version = "another version"
        try:
            values = json.loads(text)
            version = values.pop("sedseg_version")
            values["config"] = SEDConfig(**values["config"])
            values["preprocessing"] = Preprocessing(**values["preprocessing"])
            values["training_classes"] = tuple(values["training_classes"])
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"The model was saved by sedseg {version} and cannot be read by "
                f"{sedseg.__version__} ({error}); install that version or a newer one."
            ) from error
