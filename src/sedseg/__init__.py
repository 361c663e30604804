"""Open-vocabulary semantic segmentation: a photo and any words -> which word fits every pixel.

segmenter = sedseg.load("sed-tiny")
result = segmenter("photo.jpg", "sky, building, road|street, car")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sedseg.errors import InputError

if TYPE_CHECKING:
    from sedseg.model.config import SEDConfig
    from sedseg.model.fused import fuse
    from sedseg.model.sed import SED
    from sedseg.segmentation import Segmentation
    from sedseg.segmenter import Segmenter, load
    from sedseg.training.losses import losses
    from sedseg.vocabulary import Vocabulary

__version__ = "0.1.0"
__all__ = [
    "SED",
    "InputError",
    "SEDConfig",
    "Segmentation",
    "Segmenter",
    "Vocabulary",
    "fuse",
    "load",
    "losses",
]

# Imported when first used: torch alone takes seconds, which `sedseg --help` should not.
_PLACES = {
    "SED": "sedseg.model.sed",
    "SEDConfig": "sedseg.model.config",
    "Segmentation": "sedseg.segmentation",
    "Segmenter": "sedseg.segmenter",
    "Vocabulary": "sedseg.vocabulary",
    "fuse": "sedseg.model.fused",
    "load": "sedseg.segmenter",
    "losses": "sedseg.training.losses",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'sedseg' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
