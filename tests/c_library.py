"""The embedding library as a program has it, through ctypes: for tests that compare it with the Python package."""

import ctypes
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

OK = 0
CODES = ("ok", "input", "bundle", "ledger", "backend", "cancelled", "not delivered", "out of memory", "internal", "abi")
ABI = 1
WARNING = 2  # DDM_RT_LOG_WARNING
TERMINATED = ctypes.c_int64(-1)  # in place of a text's size
ALL = -(2**63)  # DDM_RT_ALL

_TEXTS = {
    "negative_prompt": "set_negative_prompt",
    "sampler": "set_sampler",
    "target": "set_target",
    "balance": "set_balance",
    "scope": "set_scope",
}
_INTEGERS = {"n": "set_n", "num_steps": "set_num_steps", "height": "set_height", "width": "set_width"}
_NUMBERS = {
    "guidance_scale": "set_guidance_scale",
    "indicator_guidance_scale": "set_indicator_guidance_scale",
}
_SEVERAL_NUMBERS = {"guidance_interval": "set_guidance_interval", "apg": "set_apg", "cads": "set_cads"}
_NO_NUMBERS = {"off": 0, "auto": -1}  # of a cache's calls: DDM_RT_CACHE_OFF, DDM_RT_CACHE_AUTO
_FLAGS = {
    "shuffle": "set_shuffle",
    "allow_stale": "set_allow_stale",
    "provenance": "set_provenance",
    "provenance_code": "set_provenance_code",
}
_LISTS = {"prompt": "add_prompt", "leave_alone": "add_leave_alone"}

_LOG = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p)


class CError(Exception):
    """An error that a call returned: its code in words, what it is about, and its message."""

    def __init__(self, code: int, field: str, message: str) -> None:
        super().__init__(message)
        self.status, self.field = CODES[code], field


def sized(text: str | bytes) -> tuple[bytes, ctypes.c_int64]:
    """A text and its size, as functions take them."""
    content = text.encode() if isinstance(text, str) else text
    return content, ctypes.c_int64(len(content))


@dataclass(frozen=True)
class Made:
    images: NDArray[np.uint8]  # [n, H, W, 3]
    codes: tuple[int, ...]
    seeds: tuple[int, ...]
    manifest: dict[str, Any]
    text: str  # of the manifest
    xmp: tuple[bytes | None, ...]  # of each image's file, and of a sheet of all


class CLibrary:
    """libddm_rt.so."""

    def __init__(self, path: Path) -> None:
        self.functions = ctypes.CDLL(str(path))
        for name in ("error_field", "error_message", "version", "model_describe", "images_manifest", "images_xmp"):
            self.function(name).restype = ctypes.c_char_p
        for name in ("bundle_id", "name", "family", "backend", "provider", "precision"):
            self.function(f"model_{name}").restype = ctypes.c_char_p
        self.function("images_rgb").restype = ctypes.POINTER(ctypes.c_uint8)
        for name in ("count", "height", "width", "code", "index"):
            self.function(f"images_{name}").restype = ctypes.c_int64
        for name in ("num_codes", "num_top_codes", "image_size", "size_multiple", "threads"):
            self.function(f"model_{name}").restype = ctypes.c_int64
        self.function("images_seed").restype = ctypes.c_uint64

    def function(self, name: str) -> Any:
        return getattr(self.functions, f"ddm_rt_{name}")

    def call(self, name: str, *arguments: Any) -> None:
        """A function that returns an error. Raises CError."""
        function = self.function(name)
        function.restype = ctypes.c_void_p
        error = ctypes.c_void_p(function(*arguments))
        if not error:
            return
        field, message = (self.function(f"error_{part}")(error).decode() for part in ("field", "message"))
        found = CError(self.function("error_code")(error), field, message)
        self.function("error_destroy")(error)
        raise found

    def json(self, name: str, *arguments: Any) -> Any:
        """Of a function that gives text to be freed."""
        text = ctypes.c_char_p()
        self.call(name, *arguments, ctypes.byref(text))
        found = json.loads(text.value or b"")
        self.function("free")(text)
        return found

    @contextmanager
    def created(self, kind: str) -> Iterator[ctypes.c_void_p]:
        handle = ctypes.c_void_p()
        self.call(f"{kind}_create", ctypes.byref(handle))
        try:
            yield handle
        finally:
            self.function(f"{kind}_destroy")(handle)

    @contextmanager
    def model(
        self,
        bundle: Path,
        *,
        backend: str = "auto",
        threads: int | None = 1,
        onnxruntime: str | None = None,
        provider: str | None = None,
        batching: bool = True,
    ) -> Iterator[ctypes.c_void_p]:
        handle = ctypes.c_void_p()
        with self.created("model_options") as options:
            self.call("model_options_set_backend", options, *sized(backend))
            self.call("model_options_set_batching", options, int(batching))
            if threads is not None:
                self.call("model_options_set_threads", options, threads)
            if provider is not None:
                self.call("model_options_set_provider", options, *sized(provider))
            if onnxruntime is not None:
                self.call("model_options_set_onnxruntime", options, *sized(onnxruntime))
            self.call("model_open_abi", ABI, *sized(str(bundle)), options, ctypes.byref(handle))
        try:
            yield handle
        finally:
            self.function("model_close")(handle)

    @contextmanager
    def session(
        self, model: ctypes.c_void_p, *, ledger: Path | None = None, warnings: list[str] | None = None
    ) -> Iterator["CPipeline"]:
        said: list[str] = [] if warnings is None else warnings
        log = _LOG(lambda _, __, message: said.append(message.decode()))
        handle = ctypes.c_void_p()
        with self.created("session_options") as options:
            self.call("session_options_set_log", options, WARNING, log, None)
            if ledger is not None:
                self.call("session_options_set_ledger", options, str(ledger).encode(), TERMINATED, 0)
            self.call("session_open", model, options, ctypes.byref(handle))
        try:
            yield CPipeline(self, model, handle)
        finally:
            self.function("session_close")(handle)
            del log  # it lives as long as the handle

    @contextmanager
    def pipeline(
        self, bundle: Path, *, ledger: Path | None = None, warnings: list[str] | None = None, **options: Any
    ) -> Iterator["CPipeline"]:
        """A model with one session."""
        with self.model(bundle, **options) as model, self.session(model, ledger=ledger, warnings=warnings) as session:
            yield session


class CPipeline:
    """A session, and the model that it is over."""

    def __init__(self, library: CLibrary, model: ctypes.c_void_p, handle: ctypes.c_void_p) -> None:
        self._library, self.model, self._handle = library, model, handle

    def describe(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._library.function("model_describe")(self.model))
        return found

    def ledger(self, scope: str | None = None) -> list[dict[str, Any]]:
        text = (None, ctypes.c_int64(0)) if scope is None else sized(scope)
        found: list[dict[str, Any]] = self._library.json("session_ledger", self._handle, *text)
        return found

    def generate(self, seed: int = 0, codes: Sequence[int] | None = None, **settings: Any) -> Made:
        """Arguments are those of Python's `Pipeline.generate`."""
        library = self._library
        with library.created("request") as request:
            library.call("request_set_seed", request, ctypes.c_uint64(seed))
            if codes is not None:
                numbers = (ctypes.c_int64 * len(codes))(*codes)
                library.call("request_set_codes", request, numbers, ctypes.c_int64(len(codes)))
            for name, value in settings.items():
                if value is not None:
                    self._set(request, name, value)
            return self._made("generate", request)

    def replay(self, manifest: str | bytes, index: int = ALL, name: str = "manifest") -> Made:
        return self._made("replay", *sized(manifest), *sized(name), ctypes.c_int64(index), None)

    def _set(self, request: ctypes.c_void_p, name: str, value: Any) -> None:
        library = self._library
        if name in _LISTS:
            for text in [value] if isinstance(value, str) else value:
                library.call(f"request_{_LISTS[name]}", request, *sized(text))
            return
        if name in _SEVERAL_NUMBERS:
            library.call(f"request_{_SEVERAL_NUMBERS[name]}", request, *map(ctypes.c_double, value))
            return
        if name == "cache":
            library.call("request_set_cache", request, ctypes.c_int64(_NO_NUMBERS.get(value, value)))
            return
        if name in _TEXTS:
            library.call(f"request_{_TEXTS[name]}", request, *sized(value))
            return
        tables: tuple[tuple[dict[str, str], Callable[[Any], Any]], ...] = (
            (_INTEGERS, ctypes.c_int64),
            (_NUMBERS, ctypes.c_double),
            (_FLAGS, ctypes.c_int32),
        )
        function, convert = next((table[name], convert) for table, convert in tables if name in table)
        library.call(f"request_{function}", request, convert(value))

    def _made(self, function: str, *arguments: Any) -> Made:
        library, images = self._library, ctypes.c_void_p()
        library.call(function, self._handle, *arguments, ctypes.byref(images))
        try:
            n, height, width = (library.function(f"images_{name}")(images) for name in ("count", "height", "width"))
            numbers = [ctypes.c_int64(i) for i in range(n)]
            pixels = [
                np.ctypeslib.as_array(library.function("images_rgb")(images, i), (height, width, 3)).copy()
                for i in numbers
            ]
            text = library.function("images_manifest")(images).decode()
            return Made(
                images=np.stack(pixels),
                codes=tuple(library.function("images_code")(images, i) for i in numbers),
                seeds=tuple(library.function("images_seed")(images, i) for i in numbers),
                manifest=json.loads(text),
                text=text,
                xmp=tuple(library.function("images_xmp")(images, i) for i in (*numbers, ctypes.c_int64(ALL))),
            )
        finally:
            library.function("images_destroy")(images)
