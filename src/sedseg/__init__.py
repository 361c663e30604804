"""Open-vocabulary semantic segmentation: a photo and any words -> which word fits every pixel.

segmenter = sedseg.load("sed-tiny")
result = segmenter("photo.jpg", "sky, building, road|street, car")
"""

from sedseg.errors import InputError
from sedseg.losses import losses
from sedseg.model.config import SEDConfig
from sedseg.model.sed import SED
from sedseg.segmentation import Segmentation
from sedseg.segmenter import Segmenter, load
from sedseg.vocabulary import Vocabulary

__version__ = "0.1.0"
__all__ = [
    "SED",
    "InputError",
    "SEDConfig",
    "Segmentation",
    "Segmenter",
    "Vocabulary",
    "load",
    "losses",
]
