"""Latents of the images and embeddings of their prompts: made once, in portions, each on disk as soon as it is done."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ddm_rt.bundle import write_atomic
from ddm_rt.config import RunConfig
from ddm_rt.data import Listing, to_model
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.model.latent import LatentDDM
from ddm_rt.train.features import Progress
from ddm_rt.train.text import NULL_TEXT

PORTION = 64  # images or texts in a file
_AT_ONCE = 4  # images in one call of the VAE

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Encoded:
    """A folder for what is encoded from one set of images by one checkpoint."""

    folder: Path

    @classmethod
    def at(cls, place: Path, config: RunConfig, contents: str) -> "Encoded":
        """The folder in `place` for images of these `contents` (`Listing.contents`)."""
        assert config.base is not None
        what = [config.base.sha256, config.data.image_size, contents]
        return cls(place / hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16])

    def has_images(self, count: int) -> bool:
        """Whether all `count` of them are there."""
        return all(path.is_file() for path in self._files("images", count))

    def images(
        self, model: LatentDDM, listing: Listing, device: torch.device, progress: Progress | None = None
    ) -> tuple[Tensor, Tensor]:
        """(latents float32 [N,C,H,W], frames int64 [N,6]) of the images, in memory."""

        def encode(rows: range) -> Tensors:
            pictures = [listing.read(i) for i in rows]
            parts = [pictures[i : i + _AT_ONCE] for i in range(0, len(pictures), _AT_ONCE)]
            pixels = (to_model(np.stack([picture.pixels for picture in part])) for part in parts)
            latents = torch.cat([model.encode(torch.from_numpy(images).to(device)).cpu() for images in pixels])
            if not torch.isfinite(latents).all():
                raise DdmError(f"the VAE's latents of {listing.names[rows[0]]} and what follows are not finite")
            return {"latents": latents, "frames": torch.tensor([picture.frame for picture in pictures])}

        found = self._portions("images", len(listing), encode, [model.vae], device, progress)
        return torch.cat([part["latents"] for part in found]), torch.cat([part["frames"] for part in found])

    def texts(
        self, model: LatentDDM, ids: Sequence[Tensor], null_is_zero: bool, device: torch.device
    ) -> dict[str, "Rows"]:
        """What `LatentDDM.encode_text` gives for token ids [P,T], row by row, left on disk.

        With `null_is_zero` the row of the null text is zeros.
        """

        def encode(rows: range) -> Tensors:
            part = [tensor[rows.start : rows.stop].to(device) for tensor in ids]
            found = {name: tensor.cpu() for name, tensor in model.encode_text(*part).items()}
            if null_is_zero and rows.start == NULL_TEXT:
                for tensor in found.values():
                    tensor[NULL_TEXT] = 0
            return found

        found = self._portions("texts", len(ids[0]), encode, list(model.text_encoders), device, None)
        return {name: Rows(tuple(part[name] for part in found)) for name in found[0]}

    @torch.no_grad()
    def _portions(
        self,
        kind: str,
        count: int,
        encode: Callable[[range], Tensors],
        modules: list[nn.Module],
        device: torch.device,
        progress: Progress | None,
    ) -> list[Tensors]:
        """The portions that are there, and those that aren't once `encode` has made them with `modules` on `device`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files = self._files(kind, count)
        missing = [path for path in files if not path.is_file()]
        if missing:
            for module in modules:
                module.eval().to(device)
            for done, path in enumerate(missing, start=1):
                write_atomic(path, save({name: t.contiguous() for name, t in encode(files[path]).items()}))
                if progress is not None:
                    progress(min((len(files) - len(missing) + done) * PORTION, count), count, {})
            for module in modules:
                module.to("cpu")
        return [_read(path, len(rows)) for path, rows in files.items()]

    def _files(self, kind: str, count: int) -> dict[Path, range]:
        """Each portion's file and rows."""
        portions = (range(start, min(start + PORTION, count)) for start in range(0, count, PORTION))
        return {self.folder / f"{kind}_{rows.start:08d}.safetensors": rows for rows in portions}


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
        raise BundleError(f"{path}: damaged ({error}); delete it to encode its images again") from error
    if odd := [name for name, tensor in found.items() if len(tensor) != rows]:
        raise BundleError(f"{path}: tensor {odd[0]} has {len(found[odd[0]])} rows; expected {rows}")
    return found
