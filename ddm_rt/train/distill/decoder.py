"""A small decoder for a run's latents: diffusers' AutoencoderTiny, drawn to the images that the VAE makes of the same
latents.

Where a model needs few steps, the VAE takes much of an image's time. The layout is that of TAESD (Ollin Boer Bohan,
github.com/madebyollin/taesd): residual blocks of 3x3 convolutions without norms, and nearest-neighbour upsampling.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from ddm_rt import data
from ddm_rt.config import Family, Frozen, RunConfig
from ddm_rt.data import Listing
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.files import write_atomic, write_json
from ddm_rt.model.assemble import read_file
from ddm_rt.model.checkpoint.folder import load_base, read_checkpoint
from ddm_rt.model.latent import LatentDDM
from ddm_rt.progress import OnFigures
from ddm_rt.train.distributed import chosen_device
from ddm_rt.train.loop import laid_out, step_seed
from ddm_rt.train.run import Interrupted, stop_requests

WEIGHTS, CHECKPOINT = "diffusion_pytorch_model.safetensors", "checkpoint.safetensors"
_CLAIM = "distillation.sha256"  # says what `out` is for
_HELD_OUT = 20  # one image of so many is never trained on
_MOST_HELD_OUT = 64
_EVERY = 100  # steps between checkpoints
_SCALES = (1, 2, 4)  # at which images are compared, in pixels a side
_README = """\
A small decoder (diffusers' AutoencoderTiny) for the latents of one Stable Diffusion checkpoint, made by
`ddm-rt distill-decoder`. Only the decoder is trained: the encoder has random weights and must not be used.
distilled.json says from what it was made, and how far its images are from the VAE's.
"""


class DecoderConfig(Frozen):
    """How a small decoder is distilled."""

    steps: Annotated[int, Field(ge=1)] = 2000
    batch_size: Annotated[int, Field(ge=1)] = 4
    crop: Annotated[int, Field(ge=8)] = 128  # pixels a side that a step sees of an image
    width: Annotated[int, Field(ge=8)] = 64  # channels
    blocks: Annotated[int, Field(ge=1)] = 3  # of each resolution but the last, which has one
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    seed: int = 0
    threads: Annotated[int, Field(ge=1)] = 1


class Distilled(Frozen):
    """distilled.json: from what a decoder was made, and how far it is from the VAE on images that it never saw."""

    settings: DecoderConfig
    base: str  # sha256 of the checkpoint whose VAE it stands for
    images: int
    held_out: int  # images among them that it was measured on
    mean_abs_grey_levels: float  # of 255, between its images and the VAE's
    psnr_db: float


def distill_decoder(
    run: Path, out: Path, config: DecoderConfig, source: str | None = None, progress: OnFigures | None = None
) -> Distilled:
    """Write the folder `out`, which `ddm-rt export --decoder` takes, or go on with what an interrupted call left there.

    The images are the run's own training images, or those of `source` (as `--data`). Their latents are the VAE's.

    Raises DdmError for a run of pixels, for images that can't be read and for an `out` that holds something else;
    BundleError for a checkpoint that is damaged or has changed; Interrupted as `train.run.train`.
    """
    of_run = read_file(RunConfig, run / "config.json")
    if of_run.model.family is Family.PIXEL or of_run.base is None:
        raise DdmError(f"{run} was trained on pixels, without a VAE; expected a run on a Stable Diffusion checkpoint")
    asked = of_run.data if source is None else of_run.data.model_copy(update={"source": source})
    listing = data.find(asked)
    seen_as = asked.model_dump(mode="json", exclude={"source"})
    key = [config.model_dump(mode="json"), of_run.base.sha256, listing.contents(), seen_as]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    _check_claim(out, digest)
    report = out / "distilled.json"
    if report.is_file():
        (out / CHECKPOINT).unlink(missing_ok=True)
        return read_file(Distilled, report)
    torch.set_num_threads(config.threads)
    distillation = _Distillation(_vae(run, of_run), listing, config)
    for i in range(len(listing)):  # so that bad ones are found before anything is written
        listing.read(i)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / _CLAIM, f"{digest}\n")
    distillation.fit(out, digest, progress)
    error = distillation.error()
    found = Distilled(
        settings=config,
        base=of_run.base.sha256,
        images=len(listing),
        held_out=len(distillation.held_out),
        mean_abs_grey_levels=round(127.5 * error["mean_abs"], 3),
        psnr_db=round(10 * math.log10(4 / max(error["mean_square"], 1e-12)), 2),
    )
    distillation.write(out)
    write_json(report, found.model_dump(mode="json"))
    (out / CHECKPOINT).unlink(missing_ok=True)
    return found


def _check_claim(out: Path, digest: str) -> None:
    """Raises DdmError where `out` holds something else than this distillation, begun or finished."""
    claim = out / _CLAIM
    if claim.is_file():
        if claim.read_text().strip() != digest:
            raise DdmError(f"{out}: was begun with other settings, images or another checkpoint; choose another --out")
    elif out.exists() and (not out.is_dir() or any(not file.name.startswith(f".{_CLAIM}.") for file in out.iterdir())):
        # A draft of the claim is what a command leaves that was killed in its first moment.
        raise DdmError(f"{out} exists and is not a decoder of this command; choose another --out")


def _vae(run: Path, config: RunConfig) -> LatentDDM:
    """The run's model, of which the VAE alone has weights."""
    assert config.base is not None
    checkpoint = read_checkpoint(run / config.base.path, config.base.variant)
    if checkpoint.base.sha256 != config.base.sha256:
        raise BundleError(f"{checkpoint.path}: has changed since {run / 'config.json'} was written")
    with torch.device("meta"):
        model = LatentDDM(checkpoint.model)
    load_base(model, checkpoint, only=("vae",))
    model.vae.eval().requires_grad_(False)
    return model


class _Distillation:
    """A decoder in training, the VAE that it learns from, and their images."""

    def __init__(self, teacher: LatentDDM, listing: Listing, config: DecoderConfig) -> None:
        self.device = chosen_device()
        self.teacher, self.listing, self.config, self.step = teacher, listing, config, 0
        teacher.vae.to(self.device)
        every = max(_HELD_OUT, -(-len(listing) // _MOST_HELD_OUT))
        self.held_out = range(0, len(listing), every)
        self.trained_on = [i for i in range(len(listing)) if i % every]
        stages = int(math.log2(teacher.patch)) + 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.tiny = AutoencoderTiny(
                latent_channels=int(teacher.unet.config.in_channels),
                encoder_block_out_channels=(8,) * stages,
                num_encoder_blocks=(1,) * stages,
                decoder_block_out_channels=(config.width,) * stages,
                num_decoder_blocks=(*(config.blocks,) * (stages - 1), 1),
                scaling_factor=1.0,  # it takes latents as the UNet gives them
            )
        self.decoder = self.tiny.decoder.to(self.device)
        self.parameters = dict(self.decoder.named_parameters())
        self.optimizer = torch.optim.Adam(self.parameters.values(), config.learning_rate)

    def fit(self, out: Path, digest: str, progress: OnFigures | None) -> None:
        """To the last step, from the checkpoint in `out` where there is one."""
        self._resume(out / CHECKPOINT, digest)
        with stop_requests() as stop:
            while self.step < self.config.steps:
                loss = self.advance()
                stopping, last = bool(stop), self.step == self.config.steps
                if stopping or last or self.step % _EVERY == 0:
                    if not math.isfinite(loss):
                        raise DdmError(f"the loss is {loss} at step {self.step}; lower learning_rate")
                    write_atomic(out / CHECKPOINT, save(self._state(), {"step": str(self.step), "of": digest}))
                if progress is not None:
                    progress(self.step, self.config.steps, {"loss": loss})
                if stopping and not last:
                    raise Interrupted(out, self.step)

    def advance(self) -> float:
        """One optimizer step; returns the loss. Which crops it sees is a function of seed and step."""
        generator = torch.Generator().manual_seed(step_seed(self.config.seed, self.step))
        drawn = torch.randint(len(self.trained_on), (self.config.batch_size,), generator=generator)
        latents, wanted = self._seen([self.trained_on[i] for i in drawn.tolist()], generator)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * 0.5 * (1 + math.cos(math.pi * self.step / self.config.steps))
        found = self.decoder(latents)
        loss = sum((_smaller(found, scale) - _smaller(wanted, scale)).abs().mean() for scale in _SCALES)
        assert isinstance(loss, Tensor)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self.optimizer.step()
        self.step += 1
        return loss.item()

    @torch.no_grad()
    def error(self) -> dict[str, float]:
        """Mean absolute and mean square difference from the VAE's images, in [-1,1], of the middles of images that
        weren't trained on.
        """
        absolute, square = [], []
        for image in self.held_out:
            latents, wanted = self._seen([image], None)
            difference = self.decoder(latents).clamp(-1, 1) - wanted.clamp(-1, 1)
            absolute.append(difference.abs().mean().item())
            square.append(difference.square().mean().item())
        return {"mean_abs": float(np.mean(absolute)), "mean_square": float(np.mean(square))}

    def write(self, out: Path) -> None:
        """As diffusers stores an AutoencoderTiny."""
        write_atomic(out / "README.md", _README)
        config = {key: value for key, value in self.tiny.config.items() if not key.startswith("_")}
        write_json(out / "config.json", {"_class_name": "AutoencoderTiny", **config})
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.tiny.state_dict().items()}
        write_atomic(out / WEIGHTS, save(tensors, {"format": "pt"}))

    @torch.no_grad()
    def _seen(self, images: list[int], generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Latents [B,C,h,w] of crops of these images, and the VAE's images [B,3,H,W] of them: crops anywhere, or
        without a generator in the middle.
        """
        patch, crops = self.teacher.patch, []
        for image in images:
            pixels = data.to_model(self.listing.read(image).pixels[None])[0]
            if len(pixels) == 1:
                pixels = pixels.repeat(3, axis=0)
            side = min(self.config.crop, *pixels.shape[1:]) // patch * patch
            room = [edge - side for edge in pixels.shape[1:]]
            if generator is None:
                top, left = (edge // 2 for edge in room)
            else:
                top, left = (int(torch.randint(edge + 1, (), generator=generator)) for edge in room)
            crops.append(pixels[:, top : top + side, left : left + side])
        latents = self.teacher.encode(torch.from_numpy(np.stack(crops)).to(self.device))
        return latents, self.teacher.decode(latents)

    def _state(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {f"decoder.{name}": value for name, value in self.parameters.items()}
        for name, parameter in self.parameters.items():
            moments: Mapping[str, Any] = self.optimizer.state[parameter]
            found |= {f"optimizer.{name}.{key}": value for key, value in moments.items()}
        return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in found.items()}

    def _resume(self, path: Path, digest: str) -> None:
        if not path.is_file():
            return
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (OSError, SafetensorError) as error:
            raise BundleError(f"{path}: damaged checkpoint ({error}); delete it to begin again") from error
        if metadata.get("of") != digest:
            raise BundleError(f"{path}: made with other settings; choose another --out")
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(found[f"decoder.{name}"])
                prefix = f"optimizer.{name}."
                state = {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
                self.optimizer.state[parameter] = {  # the count of steps stays on the CPU
                    key: value if key == "step" else laid_out(value, parameter) for key, value in state.items()
                }
        self.step = int(metadata["step"])


def _smaller(images: Tensor, scale: int) -> Tensor:
    return images if scale == 1 else F.avg_pool2d(images, scale)
