"""How PEFT, diffusers of all ages, and kohya spell the two factors of a layer and their α."""

import re
from typing import Literal, NamedTuple

ALPHA = ".alpha"
_FACTOR = re.compile(
    r"(?P<module>.+?)"
    r"(?:\.(?P<peft>lora_[AB])(?:\.[^.]+)?"  # PEFT, with or without the adapter's name
    r"|\.(?:lora_|lora\.|lora_linear_layer\.)(?P<layer>down|up)"
    r"|\.(?:processor\.)?to_(?P<part>q|k|v|out)_lora\.(?P<processor>down|up))"  # when processors held the factors
    r"\.weight"
)
_SIDES: dict[str, Literal["A", "B"]] = {"lora_A": "A", "down": "A", "lora_B": "B", "up": "B"}
_PARTS = {
    "unet": {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"},
    "text_encoder": {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"},
}


class FactorName(NamedTuple):
    module: str  # path of the layer in its component
    side: Literal["A", "B"]


def factor_name(name: str, component: str) -> FactorName | None:
    """What tensor `name` (without the component's own name before it) is; None: no factor."""
    match = _FACTOR.fullmatch(name)
    if match is None:
        return None
    module = match["module"]
    if match["part"]:
        module += "." + _PARTS["unet" if component == "unet" else "text_encoder"][match["part"]]
    return FactorName(module, _SIDES[match["peft"] or match["layer"] or match["processor"]])


def alpha_layer(name: str, component: str) -> str:
    """The layer whose α tensor `name` is: it is called after the layer, or after its first factor."""
    owner = name.removesuffix(ALPHA)
    found = factor_name(owner, component)
    return owner if found is None else found.module
