"""The nodes: balanced images, and how the balance stands."""

import base64
import io
import urllib.parse

import numpy as np
import torch
from PIL import Image

from .client import ServerError, ask, own_server

_CATEGORY = "ddm-rt"
_LARGEST_SEED = 2**53 - 1  # that the page of ComfyUI keeps to the last digit


def _server():
    return ("STRING", {"default": own_server(), "tooltip": "Address of a ddm-rt server."})


class BalancedGenerate:
    """Images whose codes are balanced over all requests of a scope."""

    DESCRIPTION = "Images from a ddm-rt server, balanced over all requests of a scope."
    CATEGORY = _CATEGORY
    RETURN_TYPES = ("IMAGE", "STRING", "INT")
    RETURN_NAMES = ("images", "codes", "code")
    OUTPUT_IS_LIST = (False, False, True)
    OUTPUT_TOOLTIPS = ("All images.", "Their codes, with commas.", "Their codes, one by one.")
    FUNCTION = "generate"

    @classmethod
    def INPUT_TYPES(cls):
        seed = {"default": 0, "min": 0, "max": _LARGEST_SEED, "control_after_generate": True}
        return {
            "required": {
                "server": _server(),
                "prompt": ("STRING", {"default": "", "multiline": True, "tooltip": "Ignored by a model without any."}),
                "n": ("INT", {"default": 4, "min": 1, "max": 1024, "tooltip": "How many images."}),
                "seed": ("INT", {**seed, "tooltip": "The same seed and codes give the same images."}),
                "scope": ("STRING", {"default": "", "tooltip": "Balanced together. Empty: the server's scope."}),
                "target": ("STRING", {"default": "uniform", "tooltip": "Shares that are asked for."}),
                "steps": ("INT", {"default": 0, "min": 0, "max": 1000, "tooltip": "0: as the model has it."}),
                "size": ("STRING", {"default": "auto", "tooltip": "WIDTHxHEIGHT, or auto: as the model has it."}),
            }
        }

    def generate(self, server, prompt, n, seed, scope, target, steps, size):
        """Returns images, float32 [n, height, width, 3] in 0 to 1; the codes as a text; and as a list."""
        body = {"n": n, "seed": seed, "target": target, "size": size, "response_format": "b64_json"}
        given = {"prompt": prompt, "scope": scope, "steps": steps}  # what is empty, the server decides
        answer = ask(server, "/v1/images/generations", body | {name: value for name, value in given.items() if value})
        try:
            files = [base64.b64decode(image["b64_json"]) for image in answer["data"]]
            codes = [int(image["code"]) for image in answer["data"]]
        except (KeyError, TypeError, ValueError):
            raise ServerError(f"{server} answers without images and codes; expected a ddm-rt server") from None
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
        images = torch.from_numpy(pixels.astype(np.float32) / 255)
        return images, ", ".join(map(str, codes)), codes


class BalanceStatus:
    """Shares that were assigned, and that a judge measured, by scope and target."""

    DESCRIPTION = "Shares that a ddm-rt server assigned, and that its judge measured, by scope and target."
    CATEGORY = _CATEGORY
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("status",)
    FUNCTION = "status"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "server": _server(),
                "scope": ("STRING", {"default": "", "tooltip": "Empty: all scopes."}),
            },
            "optional": {"after": ("IMAGE", {"tooltip": "Images that are to be there first."})},
        }

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")  # equal to nothing: it is asked anew each time

    def status(self, server, scope, after=None):
        """Returns the text, which the node shows too."""
        query = f"?{urllib.parse.urlencode({'scope': scope})}" if scope else ""
        found = ask(server, f"/v1/balance{query}")["data"]
        text = "\n\n".join(map(_told, found)) or "no images yet"
        return {"ui": {"text": (text,)}, "result": (text,)}


def _told(stream):
    """A paragraph about one scope and target."""
    assigned = stream["assigned"]
    lines = [
        f"{stream['scope']}, target {stream['target']}",
        f"assigned: {assigned['issued']} images ({assigned['done']} done, {assigned['in_progress']} under way, "
        f"{assigned['pooled']} to be handed out again)",
    ]
    lines += [f"  top code {top['top_code']}: {top['share']:.3f} ({top['issued']})" for top in stream["top_codes"]]
    if (measured := stream["measured"]) is None:
        return "\n".join([*lines, "measured: nothing"])
    lines.append(f"measured: {measured['images']} images")
    for group in measured["groups"]:
        interval = f"{group['low']:.3f} to {group['high']:.3f}"
        lines.append(f"  group {group['group']}: {group['share']:.3f} ({interval}, {group['images']})")
    return "\n".join(lines)
