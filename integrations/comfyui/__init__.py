"""Nodes for ComfyUI that get balanced images from a ddm-rt server. This folder is copied into `custom_nodes`."""

from .nodes import BalancedGenerate, BalanceStatus

NODE_CLASS_MAPPINGS = {"DDMBalancedGenerate": BalancedGenerate, "DDMBalanceStatus": BalanceStatus}
NODE_DISPLAY_NAME_MAPPINGS = {
    "DDMBalancedGenerate": "DDM balanced generate",
    "DDMBalanceStatus": "DDM balance status",
}
__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
