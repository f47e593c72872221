"""What the product is timed against: each peer is a small adapter that does what its users write, and no more."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from subjects import Subject

Call = Callable[[], NDArray[np.float32]]


class Peer(Protocol):
    """A subject opened by one library. Whatever it prepares once, it prepares when it is made. It has the kinds of call
    that its cases ask for.
    """

    versions: dict[str, str]

    def step(self, feeds: dict[str, NDArray[Any]]) -> Call:
        """One denoiser call on these inputs, ready to run: output float32 [B,C,H,W]."""

    def images(self, n: int) -> Call:
        """A request for n images in one batch, ready to run: float32 [n,C,H,W] in [-1, 1], others each time."""

    def train(self, batch: int, side: int) -> Call:
        """One optimizer step on latents of that side, ready to run: the loss, float32 [1]."""


@dataclass(frozen=True)
class Configuration:
    """A peer with its options, as rows name it."""

    name: str
    peer: str  # in PEERS
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def precision(self) -> str:
        """What it computes in: the peers' own default is fp32."""
        precision: str = self.options.get("precision", "fp32")
        return precision


# Name -> ("module:class", the install extra that brings what it needs; None: the product itself does).
PEERS: dict[str, tuple[str, str | None]] = {
    "eager": ("peers.eager:Eager", "train"),
    "compiled": ("peers.eager:Compiled", "train"),
    "tuned": ("peers.eager:Tuned", "train"),
    "tuned-indicator": ("peers.eager:TunedWithIndicator", "train"),
    "onnxruntime": ("peers.ort:PlainOrt", None),
    "openvino": ("peers.ov:PlainOpenVino", "openvino"),
    "ours": ("peers.ours:Ours", None),
    "ours-compiled": ("peers.ours:OursCompiled", "train"),
    "script-lora": ("peers.training:ScriptLora", "train"),
    "ours-lora": ("peers.training:OursLora", "train"),
}


def load(name: str, subject: Subject, threads: int, options: dict[str, Any]) -> Peer:
    """The peer, opened. Raises ModuleNotFoundError where its extra isn't installed."""
    module, attribute = PEERS[name][0].split(":")
    peer: Peer = getattr(import_module(module), attribute)(subject, threads, **options)
    return peer
