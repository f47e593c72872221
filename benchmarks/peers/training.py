"""One optimizer step of LoRA on a checkpoint: diffusers' own script, and ours.

Both train the same layers at the same rank from the same weights, draw what they draw anew at each step, and give the
loss. Images, latents and prompts are random numbers: a step's time doesn't depend on them.
"""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from subjects import CODES, Subject
from torch.nn import functional as F

from ddm_rt.errors import DdmError
from peers import Call

RANK = 4
TARGETS = ("to_k", "to_q", "to_v", "to_out.0")  # of the script
IMAGES, PROMPTS, TOKENS = 64, 8, 77  # that the steps draw from
SEED = 0


class ScriptLora:
    """The loop's body of diffusers' examples/text_to_image/train_text_to_image_lora.py at commit 58eb52c, made again
    with the script's defaults and `--train_batch_size`, `--resolution` as asked for, without mixed precision.

    Left out is what it does around the step: reading, cropping and tokenizing images, the progress bar, checkpoints.
    As there, `lora_layers` is a filter that the optimizer has used up, so that nothing is clipped.
    """

    def __init__(self, subject: Subject, threads: int, cached: bool = False) -> None:
        """`cached` takes the VAE and the text encoder out of the step, which the script has within."""
        from accelerate import Accelerator
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
        from diffusers.optimization import get_scheduler
        from peft import LoraConfig
        from transformers import CLIPTextModel

        torch.set_num_threads(threads)
        torch.manual_seed(SEED)
        self.versions = {name: version(name) for name in ("torch", "diffusers", "peft", "accelerate")}
        folder = _checkpoint(subject)
        accelerator = self._accelerator = Accelerator(gradient_accumulation_steps=1, cpu=True)
        self._noise = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").requires_grad_(False)
        self._vae = self._text_encoder = None
        if not cached:
            self._vae = AutoencoderKL.from_pretrained(folder, subfolder="vae").requires_grad_(False)
            self._text_encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder").requires_grad_(False)
        config = LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=list(TARGETS))
        unet.add_adapter(config)
        self._layers = filter(lambda p: p.requires_grad, unet.parameters())
        optimizer = torch.optim.AdamW(self._layers, lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
        rate = get_scheduler("constant", optimizer=optimizer, num_warmup_steps=500, num_training_steps=10_000)
        self._unet, self._optimizer, self._rate = accelerator.prepare(unet, optimizer, rate)
        self._unet.train()

    def train(self, batch: int, side: int) -> Call:
        draw = self._ready(batch, side)
        unet, noise_scheduler, accelerator = self._unet, self._noise, self._accelerator

        def run() -> NDArray[np.float32]:
            with accelerator.accumulate(unet):
                latents, encoder_hidden_states = draw()
                noise = torch.randn_like(latents)
                timesteps = torch.randint(0, noise_scheduler.config.num_train_timesteps, (batch,)).long()
                noisy_latents = noise_scheduler.add_noise(latents, noise, timesteps)
                predicted = unet(noisy_latents, timesteps, encoder_hidden_states, return_dict=False)[0]
                loss = F.mse_loss(predicted.float(), noise.float(), reduction="mean")
                accelerator.gather(loss.repeat(batch)).mean().item()
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(self._layers, 1.0)
                self._optimizer.step()
                self._rate.step()
                self._optimizer.zero_grad()
            return np.array([loss.detach().item()], np.float32)

        return run

    def _ready(self, batch: int, side: int) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
        """Gives the latents and the text of a step: by the networks, as the script does, or those that lie ready."""
        vae, text_encoder = self._vae, self._text_encoder
        if vae is None or text_encoder is None:
            width = self._unet.config.cross_attention_dim
            latents, contexts = torch.randn(IMAGES, 4, side, side), torch.randn(PROMPTS, TOKENS, width)

            def cached() -> tuple[torch.Tensor, torch.Tensor]:
                index = torch.randint(IMAGES, (batch,))
                return latents[index], contexts[index % PROMPTS]

            return cached
        pixels = torch.rand(IMAGES, 3, 8 * side, 8 * side) * 2 - 1
        ids = torch.randint(text_encoder.config.vocab_size, (PROMPTS, TOKENS))

        def encoded() -> tuple[torch.Tensor, torch.Tensor]:
            index = torch.randint(IMAGES, (batch,))
            latents = vae.encode(pixels[index]).latent_dist.sample() * vae.config.scaling_factor
            return latents, text_encoder(ids[index % PROMPTS], return_dict=False)[0]

        return encoded


class OursLora:
    """`Trainer.advance`: latents and texts were encoded before the first step; an average of the weights is kept."""

    def __init__(self, subject: Subject, threads: int, indicator: bool = False) -> None:
        """`indicator` trains codes: attention to a code, its head and balanced minibatches."""
        torch.set_num_threads(threads)
        self.versions = {name: version(name) for name in ("torch", "diffusers", "peft")}
        self._folder, self._indicator, self._threads = _checkpoint(subject), indicator, threads

    def train(self, batch: int, side: int) -> Call:
        from ddm_rt.model.checkpoint.folder import load_base, read_checkpoint
        from ddm_rt.model.latent import LatentDDM
        from ddm_rt.presets import resolve
        from ddm_rt.train.checkpoint.model import Captions, LatentSubject
        from ddm_rt.train.checkpoint.prepare import fields
        from ddm_rt.train.loop import Trainer
        from ddm_rt.train.trainee import Classes, Material

        set_: dict[str, Any] = {
            "data.source": "none",
            "data.image_size": 8 * side,
            "data.min_side": 1,
            "train.indicator": "codes" if self._indicator else "none",
            "train.batch_size": batch,
            "train.accumulate": 1,
            "train.threads": self._threads,
            "lora.rank": RANK,
            "lora.alpha": RANK,
            "lora.targets": TARGETS,
        }
        config = resolve("checkpoint", fields(self._folder) | set_)
        with torch.device("meta"):
            model = LatentDDM(config.model)
        load_base(model, read_checkpoint(self._folder))
        rng = torch.Generator().manual_seed(SEED)
        latents = torch.randn(IMAGES, *config.model.latent_shape(config.data), generator=rng)
        contexts = torch.randn(PROMPTS, TOKENS, model.context_dim, generator=rng)
        captions = Captions(
            ("",) * PROMPTS,
            torch.arange(IMAGES) % PROMPTS,
            lambda rows: {"context": contexts[rows]},
            torch.zeros(IMAGES, 6, dtype=torch.int64),
        )
        top_of = tuple(2 * code // CODES for code in range(CODES)) if self._indicator else ()
        classes = Classes(torch.arange(IMAGES) % CODES, CODES, top_of) if self._indicator else Classes()
        subject = LatentSubject(config, model, captions, classes.shared_of)
        trainer = Trainer(config, Material(latents, classes, lambda: subject))
        return lambda: np.array([trainer.advance()], np.float32)


def _checkpoint(subject: Subject) -> Path:
    if subject.checkpoint is None:
        raise DdmError(f"subject {subject.name}: it is no checkpoint, and LoRA needs one")
    return Path(subject.checkpoint)
