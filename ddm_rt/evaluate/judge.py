"""Any ONNX classifier as the judge that measures groups. It is never used in training or sampling."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image

from ddm_rt.engine.cpu.ort import UNREADABLE
from ddm_rt.errors import DdmError
from ddm_rt.files import asset, sha256

SHIPPED = {"digits": "judge_digits.onnx"}


class Verdicts(NamedTuple):
    """What a judge says of N images."""

    labels: NDArray[np.str_]  # [N]
    probabilities: NDArray[np.float32]  # [N, K], columns in the order of `Judge.classes`
    features: NDArray[np.float32]  # [N, D], the space that `Judge.feature_space` names


@dataclass(frozen=True)
class Judge:
    """A loaded classifier: image float32 [B,C,H,W] in [-1, 1] -> logits [B,K] and perhaps features [B,D]."""

    name: str
    sha256: str
    classes: tuple[str, ...]
    confusion: NDArray[np.int64] | None  # [K, K] counts on held-out real images, row = truth
    training: Mapping[str, Any]  # provenance, as the file tells it
    feature_space: str  # "features", or "logits" where the graph has no such output
    channels: int
    size: tuple[int | None, int | None]  # H, W; None where the graph takes any
    _logits: str = field(repr=False)
    _session: ort.InferenceSession = field(repr=False)

    @classmethod
    def load(cls, source: str | Path, *, classes: Sequence[str] | None = None) -> "Judge":
        """Open an ONNX file, or a shipped judge by name ("digits").

        Outputs are found by name ("logits", "features"); without those names the first output is the logits.
        Metadata "classes", "confusion" and "training" (JSON) are read where present; `classes` names the K logits of a
        file that doesn't hold them.

        Raises DdmError: no such file, not an ONNX graph, wrong input or outputs, malformed or missing metadata.
        """
        path = asset(SHIPPED[str(source)]) if str(source) in SHIPPED else Path(source)
        if not path.is_file():
            raise DdmError(f"judge {str(source)!r}: no such file; shipped judges: {', '.join(SHIPPED)}")
        session = _open(path)
        channels, *size = _input_shape(path, session)
        outputs = {output.name: output.shape for output in session.get_outputs()}
        logits = "logits" if "logits" in outputs else next(iter(outputs))
        for name in (logits, "features"):
            if name in outputs and len(outputs[name]) != 2:
                raise DdmError(f"{path}: output {name!r} has shape {outputs[name]}; expected rank 2")
        metadata = session.get_modelmeta().custom_metadata_map
        names = _classes(path, metadata, classes, outputs[logits][1])
        return cls(
            name=str(source) if str(source) in SHIPPED else path.stem,
            sha256=sha256(path),
            classes=names,
            confusion=_confusion(path, metadata, len(names)),
            training=_json(path, metadata, "training") or {},
            feature_space="features" if "features" in outputs else "logits",
            channels=channels,
            size=(size[0], size[1]),
            _logits=logits,
            _session=session,
        )

    @property
    def accuracy(self) -> float | None:
        """Share of held-out real images that were judged right; None where the file has no confusions."""
        return None if self.confusion is None else float(np.trace(self.confusion) / self.confusion.sum())

    def predict(self, images: NDArray[Any], batch_size: int = 256) -> Verdicts:
        """Judge images: uint8 [N,H,W,3] (or [N,H,W,1]), or float [N,C,H,W] in [-1, 1]; N at least 1.

        Channels are averaged for a grey judge and repeated for a colour judge; images are resized (bilinear,
        antialiased) where the graph's size is fixed and differs. Raises DdmError on other input.
        """
        x = _to_float(images)
        parts = [self._run(x[i : i + batch_size]) for i in range(0, len(x), batch_size)]
        logits, features = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)
        return Verdicts(np.array(self.classes)[logits.argmax(axis=1)], probabilities, features)

    def _run(self, x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        wanted = [self._logits] if self.feature_space == "logits" else [self._logits, "features"]
        try:
            outputs = self._session.run(wanted, {self._session.get_inputs()[0].name: self._fit(x)})
        except UNREADABLE as error:
            raise DdmError(f"judge {self.name}: cannot run on images {list(x.shape)}: {error}") from error
        logits, features = outputs[0], outputs[-1]
        if logits.shape != (len(x), len(self.classes)):
            raise DdmError(
                f"judge {self.name}: logits {list(logits.shape)} for {len(x)} images; "
                f"expected a column for each of {len(self.classes)} classes"
            )
        if not (np.isfinite(logits).all() and np.isfinite(features).all()):
            raise DdmError(f"judge {self.name}: outputs that are not finite")
        return logits, features

    def _fit(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        if x.shape[1] != self.channels:
            x = x.mean(axis=1, keepdims=True) if self.channels == 1 else x.repeat(self.channels, axis=1)
        height, width = (want or have for want, have in zip(self.size, x.shape[2:], strict=True))
        if (height, width) == x.shape[2:]:
            return x
        planes = [
            np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR))
            for plane in x.reshape(-1, *x.shape[2:])
        ]
        return np.stack(planes).reshape(*x.shape[:2], height, width)


def _open(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # features are bit-equal only at one count
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except UNREADABLE as error:
        raise DdmError(f"{path}: not an ONNX graph that can be run: {error}") from error


def _input_shape(path: Path, session: ort.InferenceSession) -> tuple[int, int | None, int | None]:
    """C, H, W of the only input."""
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type != "tensor(float)":
        found = ", ".join(f"{node.name} {node.type} {node.shape}" for node in inputs)
        raise DdmError(f"{path}: inputs are {found}; expected one float32 input [B,C,H,W]")
    batch, channels, height, width = inputs[0].shape
    if isinstance(batch, int) or channels not in (1, 3):
        raise DdmError(f"{path}: input shape {inputs[0].shape}; expected a free batch axis and 1 or 3 channels")
    return channels, *(side if isinstance(side, int) else None for side in (height, width))


def _json(path: Path, metadata: Mapping[str, str], key: str) -> Any:
    try:
        return json.loads(metadata[key]) if key in metadata else None
    except json.JSONDecodeError as error:
        raise DdmError(f"{path}: metadata {key!r} is not JSON ({error})") from error


def _classes(
    path: Path, metadata: Mapping[str, str], given: Sequence[str] | None, columns: int | str | None
) -> tuple[str, ...]:
    stored = _json(path, metadata, "classes")
    names = stored if stored is not None else given
    if names is None:
        raise DdmError(f"{path}: no metadata 'classes'; name the classes of its logits, in order")
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise DdmError(f"{path}: classes {names!r}; expected a list of strings")
    if given is not None and list(given) != list(names):
        raise DdmError(f"{path}: its metadata names the classes {names}; {list(given)} were given")
    if len(names) < 2 or len(set(names)) != len(names):
        raise DdmError(f"{path}: classes {list(names)}; expected two or more different names")
    if isinstance(columns, int) and columns != len(names):
        raise DdmError(f"{path}: {columns} logits but {len(names)} classes: {', '.join(names)}")
    return tuple(names)


def _confusion(path: Path, metadata: Mapping[str, str], num_classes: int) -> NDArray[np.int64] | None:
    rows = _json(path, metadata, "confusion")
    if rows is None:
        return None
    expected = f"expected {num_classes} rows of {num_classes} counts"
    if not isinstance(rows, list) or any(not isinstance(row, list) or len(row) != num_classes for row in rows):
        raise DdmError(f"{path}: metadata 'confusion' has another shape; {expected}")
    cells = [cell for row in rows for cell in row]
    if len(rows) != num_classes or any(type(cell) is not int or cell < 0 for cell in cells) or not any(cells):
        raise DdmError(f"{path}: metadata 'confusion' is not a table of counts; {expected}")
    return np.array(rows, dtype=np.int64)


def _to_float(images: NDArray[Any]) -> NDArray[np.float32]:
    """float32 [N,C,H,W] in [-1, 1]."""
    found = f"images: {images.dtype} {list(images.shape)}"
    if images.ndim != 4 or len(images) == 0:
        raise DdmError(f"{found}; expected uint8 [N,H,W,3] or float [N,C,H,W], N at least 1")
    if images.dtype == np.uint8:
        if images.shape[3] not in (1, 3):
            raise DdmError(f"{found}; expected uint8 [N,H,W,3]")
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(127.5) - 1
    if not np.issubdtype(images.dtype, np.floating) or images.shape[1] not in (1, 3):
        raise DdmError(f"{found}; expected uint8 [N,H,W,3] or float [N,C,H,W] with 1 or 3 channels")
    if not np.abs(images).max() <= 1:
        raise DdmError("images: float values outside [-1, 1] or not finite")
    return images.astype(np.float32)
