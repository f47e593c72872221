"""What TensorRT-RTX compiled for a plan on this GPU, kept for the next process.

A plan for TensorRT-RTX holds no machine code for the GPU: kernels are compiled when shapes are first used, for minutes
where a model is large. The file lies in the user's cache. Whatever is wrong with it is a warning: without it, kernels
are compiled again.
"""

import logging
import re
from pathlib import Path
from typing import Any

from ddm_rt.engine import user_cache
from ddm_rt.errors import DdmError
from ddm_rt.files import write_atomic

_log = logging.getLogger(__name__)


class RuntimeCache:
    """One TensorRT-RTX runtime cache, shared by all engines of a plan. TensorRT has none: then nothing happens here.

    It must outlive the contexts that are made with it, and not the engines.
    """

    def __init__(self, plan: str, gpu: str, driver: str) -> None:
        """`plan` is of the serialized engines, `driver` the CUDA version that the driver has."""
        self._name = f"{plan}-{re.sub('[^a-z0-9]+', '-', gpu.lower()).strip('-')}-cuda-{driver}.cache"
        self._cache: Any = None
        self._kept = b""  # what the file holds

    def share(self, config: Any) -> None:
        """Contexts that are made with the runtime `config` find kernels in the cache, and put theirs there. The
        device's context must be current.
        """
        if not hasattr(config, "create_runtime_cache"):
            return
        if self._cache is None and (made := config.create_runtime_cache()) is not None:
            self._cache = made
            self._read()
        if self._cache is None or not config.set_runtime_cache(self._cache):
            _log.warning("TensorRT-RTX took no runtime cache: kernels are compiled at every start")

    def keep(self) -> None:
        """Write the file, where the cache holds something new."""
        made = None if self._cache is None else self._cache.serialize()
        content = b"" if made is None else bytes(made)
        if content == self._kept:
            return
        try:
            write_atomic(self._path, user_cache.sign(content) + b"\n" + content)
        except (DdmError, OSError) as error:
            _log.warning("kernels that TensorRT-RTX compiled are not kept for the next start: %s", error)
        self._kept = content

    def close(self) -> None:
        """Forget the cache, once nothing uses it any more."""
        self._cache = None

    @property
    def _path(self) -> Path:
        return user_cache.root() / "tensorrt-rtx" / self._name

    def _read(self) -> None:
        try:
            signature, _, content = self._path.read_bytes().partition(b"\n")
            if not user_cache.signed_here(content, signature):
                reason = "it is broken, or was not made here"
            elif not self._cache.deserialize(content):
                reason = "TensorRT-RTX refuses it: it is of another version, GPU or driver"
            else:
                self._kept = content
                return
        except FileNotFoundError:
            return
        except (DdmError, OSError) as error:
            reason = str(error)
        _log.warning("%s is not used, and kernels are compiled again: %s", self._name, reason)
