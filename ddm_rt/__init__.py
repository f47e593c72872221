"""ddm_rt: balanced sampling from diffusion models. Public names load on first use, so the import is cheap."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"  # of this package, and of the C library beside it
__all__ = ["Bundle", "Pipeline", "Request", "__version__"]

if TYPE_CHECKING:
    from ddm_rt.bundle import Bundle
    from ddm_rt.sample.pipeline import Pipeline
    from ddm_rt.sample.request import Request

_LAZY = {"Bundle": "ddm_rt.bundle", "Pipeline": "ddm_rt.sample.pipeline", "Request": "ddm_rt.sample.request"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'ddm_rt' has no attribute {name!r}")
