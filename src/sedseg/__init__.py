"""Open-vocabulary semantic segmentation: a photo and any words -> which word fits every pixel."""

from sedseg.errors import InputError
from sedseg.losses import losses
from sedseg.model.config import SEDConfig
from sedseg.model.sed import SED

__version__ = "0.1.0"
__all__ = ["SED", "InputError", "SEDConfig", "losses"]
