"""What is made once for a run and kept until it is finished: in portions, each on disk as soon as it is done."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ddm_rt.errors import BundleError
from ddm_rt.files import write_atomic
from ddm_rt.progress import OnFigures

CACHE = "cache"  # folder in the run, until it is finished
PORTION = 64  # rows in a file

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Portions:
    """Files `folder`/`kind`_XXXXXXXX.safetensors that hold `count` rows together."""

    folder: Path
    kind: str
    count: int

    @property
    def files(self) -> dict[Path, range]:
        """Each portion's file and rows."""
        portions = (range(start, min(start + PORTION, self.count)) for start in range(0, self.count, PORTION))
        return {self.folder / f"{self.kind}_{rows.start:08d}.safetensors": rows for rows in portions}

    @property
    def complete(self) -> bool:
        return all(path.is_file() for path in self.files)

    @torch.no_grad()
    def made(self, make: Callable[[range], Tensors], progress: OnFigures | None = None) -> list[Tensors]:
        """The portions that are there, and those that aren't once `make` has made them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files = self.files
        missing = [path for path in files if not path.is_file()]
        for done, path in enumerate(missing, start=1):
            write_atomic(path, save({name: t.contiguous() for name, t in make(files[path]).items()}))
            if progress is not None:
                progress(min((len(files) - len(missing) + done) * PORTION, self.count), self.count, {})
        return [_read(path, len(rows)) for path, rows in files.items()]


@dataclass(frozen=True)
class Rows:
    """A tensor [P, ...] in portions that are mapped from files."""

    portions: tuple[Tensor, ...]

    def take(self, index: Tensor) -> Tensor:
        """Rows int64 [B] -> [B, ...]."""
        return torch.stack([self.portions[row // PORTION][row % PORTION] for row in index.tolist()])


def _read(path: Path, rows: int) -> Tensors:
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path}: damaged ({error}); delete it and what it holds is made again") from error
    if odd := [name for name, tensor in found.items() if len(tensor) != rows]:
        raise BundleError(f"{path}: tensor {odd[0]} has {len(found[odd[0]])} rows; expected {rows}")
    return found
