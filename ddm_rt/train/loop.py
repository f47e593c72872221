"""The training loop: one step is a function of (seed, step, state), so a resumed run ends in the same bits."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ddm_rt.bundle import write_atomic
from ddm_rt.config import NULL_CODE, IndicatorMode, RunConfig
from ddm_rt.errors import BundleError
from ddm_rt.model.indicator import IndicatorHead
from ddm_rt.model.unet import DDM
from ddm_rt.schedule import Schedule
from ddm_rt.train.device import CPU
from ddm_rt.train.loss import ddm_loss, dropped, training_target

KEPT_CHECKPOINTS = 2


@dataclass(frozen=True)
class TrainingSet:
    """What the loop reads: latents [N,C,H,W], the class y of each image that the head learns (codes or labels)."""

    latents: Tensor
    y: Tensor | None  # int64 [N]
    classes: int
    top_of: tuple[int, ...]  # top code of each code; empty without codes
    shares: tuple[float, ...] = ()  # of each code in its top code, for balanced minibatches; empty: by size


class Trainer:
    """Model, head, optimizer and EMA, and the step that moves them on."""

    def __init__(self, config: RunConfig, data: TrainingSet, device: torch.device = CPU) -> None:
        """`data` stays where it is and `device` gets each minibatch. Every random number is drawn on the CPU, so that
        weights at the start, order of the data, timesteps and noise are the same on every device.
        """
        self.config, self.data, self.device, self.step = config, data, device, 0
        train = config.train
        latent_shape = config.model.latent_shape(config.data)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(train.seed)
            self.model = DDM(config.model, latent_shape, data.top_of)
            self.head: IndicatorHead | None = None
            if train.indicator is not IndicatorMode.NONE and train.alpha > 0:
                self.head = IndicatorHead(latent_shape, config.model.head_hidden, data.classes)
        for module in (self.model, self.head):
            if module is not None:
                module.to(device)
        average = get_ema_multi_avg_fn(train.ema_decay)  # type: ignore[no-untyped-call]
        self.ema = AveragedModel(self.model, multi_avg_fn=average)
        parameters = [*self.model.parameters(), *(self.head.parameters() if self.head else ())]
        self.optimizer = torch.optim.AdamW(parameters, train.learning_rate, weight_decay=train.weight_decay, fused=True)
        self.parameters = parameters
        schedule = Schedule.from_config(config.schedule)
        self.alphas_cumprod = torch.from_numpy(schedule.alphas_cumprod.astype(np.float32))
        self._pools = _pools(data) if data.top_of and train.balance_minibatches else None

    def advance(self) -> float:
        """One optimizer step; returns the loss."""
        train, data = self.config.train, self.data
        generator = torch.Generator().manual_seed(step_seed(train.seed, self.step))
        index = self._draw(generator)
        x0 = data.latents[index]
        noise = torch.randn(x0.shape, generator=generator)
        t = torch.randint(len(self.alphas_cumprod), (len(index),), generator=generator)
        x_t, target = training_target(self.config.schedule.prediction_type, x0, noise, self.alphas_cumprod[t])
        y = data.y[index] if data.y is not None else None
        if data.top_of and y is not None:
            lost, _ = dropped(len(index), train.drop_both, train.drop_code, train.drop_text, generator)
            y = torch.where(lost, NULL_CODE, y)
        code = y if data.top_of and y is not None else torch.full((len(index),), NULL_CODE)
        x_t, target, t, code = (tensor.to(self.device) for tensor in (x_t, target, t, code))
        y = y.to(self.device) if y is not None else None
        context = torch.zeros(len(index), 1, self.model.context_dim, device=self.device)
        scale = torch.ones(len(index), device=self.device)
        prediction = self.model(x_t, t.float(), self.model.condition(context, code, scale))
        logits = self.head(prediction) if self.head is not None else None
        loss = ddm_loss(prediction, target, logits, y, train.alpha)
        for group in self.optimizer.param_groups:
            group["lr"] = train.learning_rate * self._rate()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, train.grad_clip)
        self.optimizer.step()
        self.ema.update_parameters(self.model)
        self.step += 1
        return loss.item()

    def _rate(self) -> float:
        """Linear warm-up, then a cosine to zero."""
        train = self.config.train
        warm = min(1.0, (self.step + 1) / max(train.warmup_steps, 1))
        return warm * 0.5 * (1 + math.cos(math.pi * self.step / train.steps))

    def _draw(self, generator: torch.Generator) -> Tensor:
        """A minibatch: uniform over images; or uniform over top codes, then over their images, or over their codes by
        `shares` and then over the code's images.
        """
        size = self.config.train.batch_size
        if self._pools is None:
            return torch.randint(len(self.data.latents), (size,), generator=generator)
        # Whole rounds over the top codes first, so that each has its share in every minibatch.
        top = torch.arange(size) % len(self._pools)
        u = torch.rand(size, generator=generator, dtype=torch.float64)
        pools = [self._pools[int(k)] for k in top]
        return torch.stack([pool.at(v) for pool, v in zip(pools, u.tolist(), strict=True)])

    def tensors(self) -> dict[str, Tensor]:
        """All state that the next step depends on, by name."""
        found = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        found |= {f"ema.{name}": value for name, value in self.ema.state_dict().items()}
        if self.head is not None:
            found |= {f"head.{name}": value for name, value in self.head.state_dict().items()}
        for i, parameter in enumerate(self.parameters):
            for name, value in self.optimizer.state.get(parameter, {}).items():
                found[f"optimizer.{i}.{name}"] = value
        return found

    def save_checkpoint(self, directory: Path, config_digest: str) -> Path:
        """Write the state atomically and drop all but the newest checkpoints."""
        path = directory / f"step_{self.step:08d}.safetensors"
        metadata = {"step": str(self.step), "config": config_digest}
        # Copies, because safetensors refuses the storage that the model and an expanded buffer may share.
        write_atomic(path, save({k: v.detach().to(CPU, copy=True) for k, v in self.tensors().items()}, metadata))
        for old in sorted(directory.glob("step_*.safetensors"))[:-KEPT_CHECKPOINTS]:
            old.unlink()
        return path

    def load_checkpoint(self, path: Path, config_digest: str) -> None:
        """Take up the state at `path`. Raises BundleError when it is damaged or of another configuration."""
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (OSError, SafetensorError) as error:
            raise BundleError(
                f"{path}: damaged checkpoint ({error}); delete it to resume from the one before"
            ) from error
        if metadata.get("config") != config_digest:
            raise BundleError(f"{path}: made with another configuration; choose another --out")
        _load(self.model, found, "model.", path)
        _load(self.ema, found, "ema.", path)
        if self.head is not None:
            _load(self.head, found, "head.", path)
        for i, parameter in enumerate(self.parameters):
            prefix = f"optimizer.{i}."
            state = {name.removeprefix(prefix): v for name, v in found.items() if name.startswith(prefix)}
            self.optimizer.state[parameter] = {name: v.to(self.device) for name, v in state.items()}
        self.step = int(metadata["step"])

    def weights(self) -> dict[str, Tensor]:
        """The EMA weights of the model on the CPU, contiguous, without the head."""
        return {k: v.detach().to(CPU, copy=True).contiguous() for k, v in self.ema.module.state_dict().items()}


def step_seed(seed: int, step: int) -> int:
    """An independent 63-bit seed for each step: what makes resuming exact without saving generators."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))


@dataclass(frozen=True)
class _Pool:
    """Indices of the images of one top code, and where each one's stretch of [0, 1) ends (None: all equally long)."""

    index: Tensor
    ends: Tensor | None

    def at(self, v: float) -> Tensor:
        """The image whose stretch holds v."""
        count = len(self.index)
        if self.ends is None:
            return self.index[int(v * count)]
        return self.index[min(int(torch.searchsorted(self.ends, v, right=True)), count - 1)]


def _pools(data: TrainingSet) -> list[_Pool]:
    """The images of each top code."""
    if data.y is None:
        raise ValueError("a training set with codes needs the code of each image")
    top = torch.tensor(data.top_of)[data.y]
    pools = []
    for k in range(max(data.top_of) + 1):
        index = torch.nonzero(top == k).flatten()
        ends = None
        if data.shares:
            code = data.y[index]
            sizes = torch.bincount(code, minlength=data.classes)
            each = torch.tensor(data.shares, dtype=torch.float64)[code] / sizes[code]
            ends = torch.cumsum(each / each.sum(), 0)
        pools.append(_Pool(index, ends))
    return pools


def _load(module: torch.nn.Module, found: dict[str, Tensor], prefix: str, path: Path) -> None:
    state = {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise BundleError(f"{path}: tensors under {prefix!r} don't fit the model: {error}") from error
