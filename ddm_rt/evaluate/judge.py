"""Any ONNX classifier as the judge that measures groups. It is never used in training or sampling."""

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from mmap import ACCESS_READ, mmap
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image

from ddm_rt.config import parse
from ddm_rt.engine.ort.sessions import UNREADABLE
from ddm_rt.errors import DdmError
from ddm_rt.evaluate.preprocessing import FILE, Preprocessing, from_processor
from ddm_rt.files import asset, read, sha256

SHIPPED = {"digits": "judge_digits.onnx"}
_LOCATION = re.compile(rb"\n\x08location\x12([\x80-\xff]{0,4}[\x00-\x7f])")  # of external data; length of its value
_NO_TEXT = ("Cc", "Cs")  # Unicode's control characters and surrogates
_LONGEST = 255  # bytes of a file's name
_MOST_COUNTS = 10**12  # of a cell of held-out images
_CONFIG = "config.json"  # of transformers: its id2label names the classes


class Verdicts(NamedTuple):
    """What a judge says of N images."""

    labels: NDArray[np.str_]  # [N]
    probabilities: NDArray[np.float32]  # [N, K], columns in the order of `Judge.classes`
    features: NDArray[np.float32]  # [N, D], the space that `Judge.feature_space` names


@dataclass(frozen=True)
class Judge:
    """A loaded classifier: image float32 [B,C,H,W] -> logits [B,K] and perhaps features [B,D].

    Images come as `preprocessing` says; where nobody says, in [-1, 1], resized to the graph's size without a crop.
    """

    name: str
    sha256: str
    classes: tuple[str, ...]
    confusion: NDArray[np.int64] | None  # [K, K] counts on held-out real images, row = truth
    training: Mapping[str, Any]  # provenance, as the file tells it
    feature_space: str  # "features", or "logits" where the graph has no such output
    channels: int
    size: tuple[int | None, int | None]  # H, W; None where the graph takes any
    preprocessing: Preprocessing | None
    preprocessing_from: str  # who says so
    _logits: str = field(repr=False)
    _session: ort.InferenceSession = field(repr=False)
    _one_by_one: bool = field(default=False, repr=False)  # the graph's batch is 1
    _channels_last: bool = field(default=False, repr=False)

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        classes: Sequence[str] | None = None,
        preprocessing: Path | None = None,
        threads: int = 1,
    ) -> "Judge":
        """Open an ONNX file, or a shipped judge by name ("digits").

        Outputs are found by name ("logits", "features"); without those names the first output is the logits.
        Metadata "classes", "confusion", "preprocessing" and "training" (JSON) are read where present. `classes` names
        the K logits of a file that doesn't hold them, as does a config.json of transformers. `preprocessing` is a file
        in the form of preprocessor_config.json. One of that name beside the graph, or in the folder above it, is read
        without being named. Features are bit-equal only with one thread.

        Raises DdmError: no such file, not an ONNX graph, wrong input or outputs, malformed or missing metadata.
        """
        path = asset(SHIPPED[str(source)]) if str(source) in SHIPPED else Path(source)
        if not path.is_file():
            raise DdmError(f"judge {str(source)!r}: no such file; shipped judges: {', '.join(SHIPPED)}")
        weights = _weights(path)
        session = _open(path, threads)
        metadata = session.get_modelmeta().custom_metadata_map
        steps, steps_from = _preprocessing(path, metadata, preprocessing)
        batch, channels, size, last = _input_shape(path, session, None if steps is None else steps.mean)
        size = _known_size(path, size, steps)
        if channels == 1 and steps is not None and len(steps.mean or ()) == 3:
            raise DdmError(f"{path}: the graph takes grey images, its preprocessing has means of 3 colours")
        outputs = {output.name: output.shape for output in session.get_outputs()}
        logits = "logits" if "logits" in outputs else next(iter(outputs))
        for name in (logits, "features"):
            if name in outputs and len(outputs[name]) != 2:
                raise DdmError(f"{path}: output {name!r} has shape {outputs[name]}; expected rank 2")
        names = _classes(path, metadata, classes, outputs[logits][1])
        return cls(
            name=str(source) if str(source) in SHIPPED else path.stem,
            sha256=_digest([path, *weights]),
            classes=names,
            confusion=_confusion(path, metadata, len(names)),
            training=_training(path, metadata),
            feature_space="features" if "features" in outputs else "logits",
            channels=channels,
            size=size,
            preprocessing=steps,
            preprocessing_from=steps_from,
            _logits=logits,
            _session=session,
            _one_by_one=batch == 1,
            _channels_last=last,
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
        if self.preprocessing is not None:
            pixels = np.rint((x + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1).repeat(3 // x.shape[1], axis=3)
            x = np.stack([self.prepared(Image.fromarray(each)) for each in pixels])
        return self.verdicts(x, batch_size)

    def prepared(self, image: Image.Image) -> NDArray[np.float32]:
        """One image in RGB as this judge takes it: float32 [C,H,W]."""
        if self.preprocessing is None:
            fitted: NDArray[np.float32] = self._fit(_to_float(np.asarray(image)[None]))[0]
            return fitted
        return self.preprocessing(image if self.channels == 3 else image.convert("L"))

    def verdicts(self, x: NDArray[np.float32], batch_size: int = 256) -> Verdicts:
        """Judge images that are `prepared`, or in [-1, 1] where there is no preprocessing: float32 [N,C,H,W]."""
        step = 1 if self._one_by_one else batch_size
        parts = [self._run(x[i : i + step]) for i in range(0, len(x), step)]
        logits, features = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)
        return Verdicts(np.array(self.classes)[logits.argmax(axis=1)], probabilities, features)

    def _run(self, x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        wanted = [self._logits] if self.feature_space == "logits" else [self._logits, "features"]
        x = self._fit(x) if self.preprocessing is None else x
        given = np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if self._channels_last else x
        try:
            outputs = self._session.run(wanted, {self._session.get_inputs()[0].name: given})
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


def _open(path: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # between images there is other work
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except UNREADABLE as error:
        raise DdmError(f"{path}: not an ONNX graph that can be run: {error}") from error


def _input_shape(
    path: Path, session: ort.InferenceSession, means: Sequence[float] | None
) -> tuple[int | None, int, tuple[int | None, int | None], bool]:
    """B (None: free), C, (H, W) of the only input, and whether channels come last. A graph that leaves C free has as
    many as there are `means`, or 3.
    """
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type != "tensor(float)":
        found = ", ".join(f"{node.name} {node.type} {node.shape}" for node in inputs)
        raise DdmError(f"{path}: inputs are {found}; expected one float32 input [B,C,H,W]")
    batch, *rest = (edge if isinstance(edge, int) else None for edge in inputs[0].shape)
    last = rest[0] not in (1, 3) and rest[2] in (1, 3)
    channels, height, width = (rest[2], rest[0], rest[1]) if last else rest
    channels = (3 if means is None else len(means)) if channels is None else channels
    if batch not in (None, 1) or channels not in (1, 3):
        expected = "expected a free batch axis (or 1) and 1 or 3 channels"
        raise DdmError(f"{path}: input shape {inputs[0].shape}; {expected}")
    return batch, channels, (height, width), last


def _known_size(
    path: Path, size: tuple[int | None, int | None], steps: Preprocessing | None
) -> tuple[int | None, int | None]:
    """The graph's own, or what the preprocessing gives to a graph that takes any."""
    if steps is None or steps.output is None:
        return size
    if any(own is not None and own != given for own, given in zip(size, steps.output, strict=True)):
        raise DdmError(f"{path}: the graph takes {list(size)} pixels, its preprocessing gives {list(steps.output)}")
    return steps.output


def _weights(path: Path) -> list[Path]:
    """Files that tensors of the graph lie in. Raises DdmError for one outside of its folder.

    A graph that needs a file that isn't there can't be opened. Names are looked for as protocol buffers write them,
    because evaluating needs no package onnx.
    """
    found: dict[Path, None] = {}
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return []
        with mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            for match in _LOCATION.finditer(content):
                length = sum((byte & 127) << 7 * i for i, byte in enumerate(match[1]))
                name = content[match.end() : match.end() + length].decode("utf-8", "backslashreplace")
                place = PurePosixPath(name)
                if length > _LONGEST or not (path.parent / place).is_file():
                    continue  # not opened: some writers leave names of files that the weights lay in before
                if place.is_absolute() or ".." in place.parts:
                    raise DdmError(f"{path}: its weights lie in {name!r}; expected a file in the folder of the graph")
                found[path.parent / place] = None
    return list(found)


def _digest(files: Sequence[Path]) -> str:
    """Of the only file; of several, of their digests."""
    digests = [sha256(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _preprocessing(path: Path, metadata: Mapping[str, str], given: Path | None) -> tuple[Preprocessing | None, str]:
    """What is stated, and where: in `given`, in the file's metadata, in a file beside it or in the folder above it."""
    if given is not None:
        return from_processor(_sidecar(given), given), f"given: {given.name}"
    stored = _json(path, metadata, "preprocessing")
    if stored is not None:
        return parse(Preprocessing, stored, f"{path}: metadata 'preprocessing'"), "stated in the judge's file"
    if (beside := _beside(path, FILE)) is not None:
        return from_processor(_sidecar(beside), beside), f"read from {beside.name}"
    return None, "not stated: ddm_rt's own is assumed"


def _beside(path: Path, name: str) -> Path | None:
    """A file of that name beside the graph; in the folder above, where the graph's folder is `onnx` as on the Hub."""
    folders = (path.parent, path.parent.parent) if path.parent.name == "onnx" else (path.parent,)
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _sidecar(path: Path) -> Any:
    try:
        return json.loads(read(path, "expected JSON"))
    except (ValueError, RecursionError) as error:
        raise DdmError(f"{path}: not JSON ({error})") from error


def _json(path: Path, metadata: Mapping[str, str], key: str) -> Any:
    try:
        return json.loads(metadata[key]) if key in metadata else None
    except (ValueError, RecursionError) as error:
        raise DdmError(f"{path}: metadata {key!r} is not JSON ({error})") from error


def _training(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    told = _json(path, metadata, "training")
    if told is not None and not isinstance(told, dict):
        raise DdmError(f"{path}: metadata 'training' is no object; expected names and values")
    return told or {}


def _classes(
    path: Path, metadata: Mapping[str, str], given: Sequence[str] | None, columns: int | str | None
) -> tuple[str, ...]:
    stored = _json(path, metadata, "classes")
    if stored is None and given is None and (beside := _beside(path, _CONFIG)) is not None:
        stored = id2label(_sidecar(beside), beside)
    names = stored if stored is not None else given
    if names is None:
        raise DdmError(f"{path}: no metadata 'classes'; name the classes of its logits, in order")
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise DdmError(f"{path}: classes {names!r}; expected a list of strings")
    if bad := [name for name in names if not name.strip() or any(unicodedata.category(c) in _NO_TEXT for c in name)]:
        raise DdmError(f"{path}: class {bad[0]!r} is no name; expected text without control characters")
    if given is not None and list(given) != list(names):
        raise DdmError(f"{path}: its metadata names the classes {names}; {list(given)} were given")
    if len(names) < 2 or len(set(names)) != len(names):
        raise DdmError(f"{path}: classes {list(names)}; expected two or more different names")
    if isinstance(columns, int) and columns != len(names):
        raise DdmError(f"{path}: {columns} logits but {len(names)} classes: {', '.join(names)}")
    return tuple(names)


def id2label(tree: Any, where: Path) -> list[str] | None:
    """The classes of transformers' config.json in the order of its logits; None where it names none."""
    names = tree.get("id2label") if isinstance(tree, dict) else None
    if names is None:
        return None
    if not isinstance(names, dict) or set(names) != {str(i) for i in range(len(names))}:
        raise DdmError(f"{where}: field id2label is {names!r}; expected a name for each of 0, 1, ...")
    return [str(names[str(i)]) for i in range(len(names))]


def _confusion(path: Path, metadata: Mapping[str, str], num_classes: int) -> NDArray[np.int64] | None:
    rows = _json(path, metadata, "confusion")
    if rows is None:
        return None
    expected = f"expected {num_classes} rows of {num_classes} counts"
    if not isinstance(rows, list) or any(not isinstance(row, list) or len(row) != num_classes for row in rows):
        raise DdmError(f"{path}: metadata 'confusion' has another shape; {expected}")
    cells = [cell for row in rows for cell in row]
    if len(rows) != num_classes or any(type(cell) is not int or not 0 <= cell <= _MOST_COUNTS for cell in cells):
        raise DdmError(f"{path}: metadata 'confusion' is not a table of counts; {expected}")
    if not any(cells):
        raise DdmError(f"{path}: metadata 'confusion' is not a table of counts, because all are 0; {expected}")
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
