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
STATUSES = ("ok", "input", "bundle", "ledger", "backend", "cancelled", "not delivered", "out of memory", "internal")
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
_FLAGS = {
    "shuffle": "set_shuffle",
    "allow_stale": "set_allow_stale",
    "provenance": "set_provenance",
    "provenance_code": "set_provenance_code",
}
_LISTS = {"prompt": "add_prompt", "leave_alone": "add_leave_alone"}

_WARN = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_char_p)


class CError(Exception):
    """A call that returned another status than DDM_RT_OK, and what the library says of it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = STATUSES[status]


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
        for name in ("last_error", "version", "backends", "pipeline_describe", "images_manifest", "images_xmp"):
            self.function(name).restype = ctypes.c_char_p
        self.function("images_rgb").restype = ctypes.POINTER(ctypes.c_uint8)
        for name in ("images_count", "images_height", "images_width", "images_code"):
            self.function(name).restype = ctypes.c_int64
        self.function("images_seed").restype = ctypes.c_uint64

    def function(self, name: str) -> Any:
        return getattr(self.functions, f"ddm_rt_{name}")

    def check(self, status: int) -> None:
        if status != OK:
            raise CError(status, self.function("last_error")().decode())

    @contextmanager
    def created(self, kind: str) -> Iterator[ctypes.c_void_p]:
        handle = ctypes.c_void_p()
        self.check(self.function(f"{kind}_create")(ctypes.byref(handle)))
        try:
            yield handle
        finally:
            self.function(f"{kind}_destroy")(handle)

    @contextmanager
    def pipeline(
        self,
        bundle: Path,
        *,
        backend: str = "auto",
        threads: int = 1,
        ledger: Path | None = None,
        onnxruntime: str | None = None,
        warnings: list[str] | None = None,
    ) -> Iterator["CPipeline"]:
        said: list[str] = [] if warnings is None else warnings
        warn = _WARN(lambda _, message: said.append(message.decode()))
        with self.created("options") as options:
            self.check(self.function("options_set_backend")(options, backend.encode()))
            self.check(self.function("options_set_threads")(options, threads))
            self.check(self.function("options_set_warn")(options, warn, None))
            if ledger is not None:
                self.check(self.function("options_set_ledger")(options, str(ledger).encode(), 0))
            if onnxruntime is not None:
                self.check(self.function("options_set_onnxruntime")(options, onnxruntime.encode()))
            handle = ctypes.c_void_p()
            self.check(self.function("pipeline_open")(str(bundle).encode(), options, ctypes.byref(handle)))
        try:
            yield CPipeline(self, handle)
        finally:
            self.function("pipeline_close")(handle)
            del warn  # it lives as long as the handle


class CPipeline:
    def __init__(self, library: CLibrary, handle: ctypes.c_void_p) -> None:
        self._library, self._handle = library, handle

    def describe(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._library.function("pipeline_describe")(self._handle))
        return found

    def generate(self, seed: int = 0, codes: Sequence[int] | None = None, **settings: Any) -> Made:
        """Arguments are those of Python's `Pipeline.generate`."""
        library = self._library
        with library.created("request") as request:
            library.check(library.function("request_set_seed")(request, ctypes.c_uint64(seed)))
            if codes is not None:
                numbers = (ctypes.c_int64 * len(codes))(*codes)
                library.check(library.function("request_set_codes")(request, numbers, ctypes.c_int64(len(codes))))
            for name, value in settings.items():
                if value is not None:
                    self._set(request, name, value)
            return self._made("generate", request)

    def replay(self, manifest: str | bytes, index: int = ALL, name: str = "manifest") -> Made:
        content = manifest.encode() if isinstance(manifest, str) else manifest
        size, number = ctypes.c_int64(len(content)), ctypes.c_int64(index)
        return self._made("replay", content, size, name.encode(), number, None)

    def _set(self, request: ctypes.c_void_p, name: str, value: Any) -> None:
        library = self._library
        if name in _LISTS:
            for text in [value] if isinstance(value, str) else value:
                library.check(library.function(f"request_{_LISTS[name]}")(request, text.encode()))
            return
        if name in _SEVERAL_NUMBERS:
            library.check(library.function(f"request_{_SEVERAL_NUMBERS[name]}")(request, *map(ctypes.c_double, value)))
            return
        tables: tuple[tuple[dict[str, str], Callable[[Any], Any]], ...] = (
            (_TEXTS, str.encode),
            (_INTEGERS, ctypes.c_int64),
            (_NUMBERS, ctypes.c_double),
            (_FLAGS, ctypes.c_int32),
        )
        function, convert = next((table[name], convert) for table, convert in tables if name in table)
        library.check(library.function(f"request_{function}")(request, convert(value)))

    def _made(self, function: str, *arguments: Any) -> Made:
        library, images = self._library, ctypes.c_void_p()
        library.check(library.function(function)(self._handle, *arguments, ctypes.byref(images)))
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
