"""Latents of the images and embeddings of their prompts: made once, in portions on disk."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ddm_rt.config import RunConfig
from ddm_rt.data import Listing, to_model
from ddm_rt.errors import DdmError
from ddm_rt.model.latent import LatentDDM
from ddm_rt.progress import OnFigures
from ddm_rt.train.checkpoint.model import NULL_TEXT, Texts
from ddm_rt.train.disk_cache import Portions, Rows, Tensors

_AT_ONCE = 4  # images in one call of the VAE


class Encoded:
    """A folder for what is encoded from one set of images by one checkpoint."""

    def __init__(self, place: Path, config: RunConfig, contents: str) -> None:
        """The folder lies in `place`; `contents` are those of the images (`Listing.contents`)."""
        assert config.base is not None
        what = [config.base.sha256, config.data.image_size, contents]
        self.folder = place / hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]

    def has_images(self, count: int) -> bool:
        """Whether all `count` of them are there."""
        return Portions(self.folder, "images", count).complete

    def images(
        self, model: LatentDDM, listing: Listing, device: torch.device, progress: OnFigures | None = None
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

        found = self._portions(Portions(self.folder, "images", len(listing)), encode, [model.vae], device, progress)
        return torch.cat([part["latents"] for part in found]), torch.cat([part["frames"] for part in found])

    def texts(self, model: LatentDDM, ids: Sequence[Tensor], null_is_zero: bool, device: torch.device) -> Texts:
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

        portions = Portions(self.folder, "texts", len(ids[0]))
        found = self._portions(portions, encode, list(model.text_encoders), device, None)
        rows = {name: Rows(tuple(part[name] for part in found)) for name in found[0]}
        return lambda index: {name: part.take(index) for name, part in rows.items()}

    def _portions(
        self,
        portions: Portions,
        encode: Callable[[range], Tensors],
        modules: list[nn.Module],
        device: torch.device,
        progress: OnFigures | None,
    ) -> list[Tensors]:
        """The portions, with `modules` on `device` while there are some to `encode`."""
        missing = not portions.complete
        for module in modules if missing else ():
            module.eval().to(device)
        found = portions.made(encode, progress)
        for module in modules if missing else ():
            module.to("cpu")
        return found
