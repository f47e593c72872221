"""The public op `ddm_rt::indicator_attention`: decoupled cross-attention of text and indicator tokens.

Names are loaded on use, so that the tile table can be read without torch. `op` registers the op with torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddm_rt.kernels.indicator_attention.op import indicator_attention
    from ddm_rt.kernels.indicator_attention.reference import attention_reference, indicator_attention_reference

__all__ = ["attention_reference", "indicator_attention", "indicator_attention_reference"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'op' if name == 'indicator_attention' else 'reference'}"), name)
