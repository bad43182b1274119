"""X-Dyna: the denoiser, its pipeline, the conditions and the command line."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xdyna_model.conditions import Conditions
    from xdyna_model.errors import InputError
    from xdyna_model.pipeline import XDynaPipeline
    from xdyna_model.unet import XDynaUNet

__all__ = ["Conditions", "InputError", "XDynaPipeline", "XDynaUNet"]

_ROOMS = {"Conditions": "conditions", "InputError": "errors", "XDynaPipeline": "pipeline", "XDynaUNet": "unet"}


def __getattr__(name: str) -> Any:
    """Imports on first use: torch and diffusers take seconds, and `xdyna --help` shall not."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
