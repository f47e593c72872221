"""The training loop: one step is a function of (seed, step, state), so a resumed run ends in the same bits."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ddm_rt.config import NULL_CODE, IndicatorMode, Precision, RunConfig
from ddm_rt.errors import BundleError
from ddm_rt.files import write_atomic
from ddm_rt.model.indicator import IndicatorHead
from ddm_rt.progress import OnFigures
from ddm_rt.schedule import Schedule
from ddm_rt.train.distributed import ALONE, CPU, HALF, Processes
from ddm_rt.train.loss import ddm_loss, dropped, training_target
from ddm_rt.train.trainee import Classes, Material

KEPT_CHECKPOINTS = 2
_NETWORKS = ("model.", "ema.", "head.", "heads.")  # what names of their tensors in a checkpoint begin with
_log = logging.getLogger(__name__)
_GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples, modulo 1, fill [0, 1) evenly


class Batch(NamedTuple):
    """What the images of a step are and get, each [B, ...]."""

    image: Tensor  # int64, its place in the set
    x_t: Tensor
    target: Tensor
    t: Tensor  # int64
    y: Tensor  # int64, their class; -1: none
    code: Tensor  # int64; -1: null
    no_text: Tensor  # bool, whether they lose their text

    @property
    def size(self) -> int:
        return len(self.image)

    def part(self, rows: slice) -> "Batch":
        return Batch(*(tensor[rows] for tensor in self))

    def split(self, size: int) -> list["Batch"]:
        return [self.part(slice(start, start + size)) for start in range(0, self.size, size)]

    def to(self, device: torch.device) -> "Batch":
        """On `device`, but for `image` and `no_text`, which `Subject.condition` takes on the CPU."""
        moved = Batch(*(tensor.to(device) for tensor in self))
        return moved._replace(image=self.image, no_text=self.no_text)


class Compiled:
    """A model's forward pass through torch.compile, or eager with one warning where torch can't compile it here."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self.compiled = model, True
        self._passed: Callable[..., Tensor] = torch.compile(model, fullgraph=True, dynamic=False)

    def __call__(self, *arguments: Any) -> Tensor:
        try:
            out: Tensor = self._passed(*arguments)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = " ".join(str(error).split("\n\n")[0].split()) or type(error).__name__
            _log.warning("training goes on without torch.compile, which can't compile the model here: %s", reason)
            self._passed, self.compiled = self._model, False
            out = self._model(*arguments)
        return out


class Trainer:
    """A subject, the indicator head, optimizer and EMA, and the step that moves them on."""

    TOGETHER: ClassVar[int] = 1  # images of a step that no two processes share out among them

    def __init__(self, config: RunConfig, material: Material, processes: Processes = ALONE) -> None:
        """The latents stay where they are and the process's device gets each minibatch. Every random number is drawn on
        the CPU, so that weights at the start, order of the data, timesteps and noise are the same on every device.
        """
        self.config, self.material, self.processes, self.step = config, material, processes, 0
        self.device = device = processes.device
        train, classes = config.train, material.classes
        latent_shape = config.model.latent_shape(config.data)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(train.seed)
            self.subject = material.make_subject()
            self.head: IndicatorHead | None = None
            if train.indicator is not IndicatorMode.NONE and train.alpha > 0:
                self.head = IndicatorHead(latent_shape, config.model.head_hidden, classes.number)
        self.model = self.subject.model
        self.subject.place(device)
        # Of the pass that gradients are taken through, whose shapes stay. Others, with shapes of their own, are eager.
        self.passed: Callable[..., Tensor] = self.model
        if train.compile:
            self.passed = Compiled(self.model)
        if self.head is not None:
            self.head.to(device)
        average = get_ema_multi_avg_fn(train.ema_decay)  # type: ignore[no-untyped-call]
        # Of what is trained alone: a copy of a base checkpoint would stay equal to it.
        self.trained = nn.ParameterList(self.subject.trained.values())
        self.ema = AveragedModel(self.trained, multi_avg_fn=average)
        self.parameters = [*self.trained, *(self.head.parameters() if self.head else ())]
        self.optimizer = torch.optim.AdamW(
            self.parameters, train.learning_rate, weight_decay=train.weight_decay, fused=True
        )
        # Gradients of small losses vanish in fp16, so they are scaled; in the other precisions the scale is 1.
        self.scaler = torch.amp.GradScaler(device.type, enabled=train.precision is Precision.FP16)
        schedule = Schedule.from_config(config.schedule)
        self.alphas_cumprod = torch.from_numpy(schedule.alphas_cumprod.astype(np.float32))
        self._pools = _pools(classes) if classes.top_of and train.balance_minibatches else None
        self._ends = _capped(self._pools, train.max_repeats) if self._pools and train.max_repeats else None
        self._part = processes.part(train.batch_size * train.accumulate, self.TOGETHER)

    def get_ready(self, out: Path, progress: Mapping[str, OnFigures]) -> None:
        """Make what the first step needs besides, or take it from the run directory `out`: here nothing."""

    def advance(self) -> float:
        """One optimizer step; returns the loss."""
        train = self.config.train
        batch = self.batch()
        own = batch.part(self._part)
        for group in self.optimizer.param_groups:
            group["lr"] = train.learning_rate * self._rate()
        self.optimizer.zero_grad()
        loss = torch.zeros((), device=self.device)
        # Of the whole step, so that it doesn't matter how the step is shared out.
        known = int((batch.y >= 0).sum())
        for part in own.split(train.batch_size):
            part_loss = self._loss(part, known * part.size / batch.size) * (part.size / own.size)
            self.scaler.scale(part_loss).backward()  # type: ignore[no-untyped-call]
            loss = loss + part_loss.detach()
        self._share_gradients(self.parameters)
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.parameters, train.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.ema.update_parameters(self.trained)
        self.step += 1
        self.processes.average([loss])
        return loss.item()

    def autocast(self) -> AbstractContextManager[object]:
        """A context in which the model computes in the run's precision."""
        half = HALF.get(self.config.train.precision)
        return nullcontext() if half is None else torch.autocast(self.device.type, half)

    def batch(self) -> Batch:
        """The images of this step, on the CPU: a function of seed and step."""
        generator = torch.Generator().manual_seed(step_seed(self.config.train.seed, self.step))
        index = self.draw(generator)
        x0 = self.material.latents[index]
        if self.config.train.shift:
            x0 = shifted(x0, self.config.train.shift, self.config.model.patch, generator)
        noised = self._noised(x0, torch.randn(x0.shape, generator=generator), generator)
        return Batch(index, *noised, *self._classes(index, generator))

    def _classes(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """y, code and no_text of the images `index`."""
        train, classes = self.config.train, self.material.classes
        no_code, no_text = torch.zeros(2, len(index), dtype=torch.bool)
        if classes.top_of or self.subject.takes_text:
            no_code, no_text = dropped(len(index), train.drop_both, train.drop_code, train.drop_text, generator)
        null = torch.full((len(index),), NULL_CODE)
        y = classes.y[index] if classes.y is not None else null
        if classes.top_of:
            y = torch.where(no_code, NULL_CODE, y)
        return y, y if classes.top_of else null, no_text

    def _noised(self, x0: Tensor, noise: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """x_t, target and t of clean latents x0 [B,C,H,W]."""
        t = torch.randint(len(self.alphas_cumprod), (len(x0),), generator=generator)
        return *training_target(self.config.schedule.prediction_type, x0, noise, self.alphas_cumprod[t]), t

    def _loss(self, batch: Batch, known: float) -> Tensor:
        """The loss of `batch`, a part of a step; `known` is its share of the step's images that have a class."""
        batch = batch.to(self.device)
        with self.autocast():
            prediction = self.passed(batch.x_t, batch.t.float(), self.condition(batch))
        prediction = prediction.float()
        logits = self.head(prediction) if self.head is not None else None
        return ddm_loss(prediction, batch.target, logits, batch.y, self.config.train.alpha, known)

    def condition(self, batch: Batch) -> dict[str, Tensor]:
        """`Subject.condition` of the images of `batch`."""
        return self.subject.condition(batch.image, batch.code, batch.no_text)

    def _share_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Over the processes. What had no part in any loss of this one has a gradient of zero."""
        if self.processes.count > 1:
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            self.processes.average([parameter.grad for parameter in parameters if parameter.grad is not None])

    def optimizers(self) -> dict[str, tuple[Optimizer, Sequence[Tensor]]]:
        """All that have a state, by their name in a checkpoint, and what they move."""
        return {"optimizer": (self.optimizer, self.parameters)}

    def _rate(self) -> float:
        """Linear warm-up, then a cosine to zero."""
        train = self.config.train
        warm = min(1.0, (self.step + 1) / max(train.warmup_steps, 1))
        return warm * 0.5 * (1 + math.cos(math.pi * self.step / train.steps))

    def draw(self, generator: torch.Generator, size: int | None = None) -> Tensor:
        """The images of a step, or `size` of them: uniform over images; or uniform over top codes (or nearly, by
        `max_repeats`), then over their images, or over their codes by `shares` and then over the code's images.
        """
        size = size or self.config.train.batch_size * self.config.train.accumulate
        if self._pools is None:
            return torch.randint(len(self.material.latents), (size,), generator=generator)
        # Whole rounds over the top codes first, so that each has its share in every minibatch.
        top = torch.arange(size) % len(self._pools)
        if self._ends is not None:  # unequal shares, evenly spread over the minibatch
            start = torch.rand((), generator=generator, dtype=torch.float64)
            at = (start + _GOLDEN * torch.arange(size)) % 1
            top = torch.searchsorted(self._ends, at, right=True).clamp(max=len(self._pools) - 1)
        u = torch.rand(size, generator=generator, dtype=torch.float64)
        pools = [self._pools[int(k)] for k in top]
        return torch.stack([pool.at(v) for pool, v in zip(pools, u.tolist(), strict=True)])

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The model with the EMA weights, in eval mode; afterwards it is as before."""
        kept = [parameter.detach().clone() for parameter in self.trained]
        average = cast(nn.ParameterList, self.ema.module)
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                for parameter, value in zip(self.trained, average, strict=True):
                    parameter.copy_(value)
                yield self.model
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.trained, kept, strict=True):
                    parameter.copy_(value)
            self.model.train(training)

    def tensors(self) -> dict[str, Tensor]:
        """All state that the next step depends on, by name; of a base checkpoint only what is trained."""
        found = self._weights()
        for optimizer, (moving, parameters) in self.optimizers().items():
            for i, parameter in enumerate(parameters):
                for name, value in moving.state.get(parameter, {}).items():
                    found[f"{optimizer}.{i}.{name}"] = value
        for name, number in self.scaler.state_dict().items():
            found[f"scaler.{name}"] = torch.tensor(number, dtype=torch.float64)
        return found

    def _weights(self) -> dict[str, Tensor]:
        """The tensors that are trained and their average, themselves and not copies, by their names in a checkpoint."""
        found: dict[str, Tensor] = {f"model.{name}": value for name, value in self.subject.trained.items()}
        found |= {f"ema.{name}": value for name, value in self._average().items()}
        found["ema.n_averaged"] = self.ema.n_averaged
        if self.head is not None:
            found |= {f"head.{name}": value for name, value in self.head.state_dict().items()}
        return found

    def _average(self) -> dict[str, Tensor]:
        """The EMA weights by the names of `Subject.trained`."""
        return dict(zip(self.subject.trained, cast(nn.ParameterList, self.ema.module), strict=True))

    def save_checkpoint(self, directory: Path, config_digest: str) -> Path:
        """Write the state atomically and drop all but the newest checkpoints."""
        path = directory / f"step_{self.step:08d}.safetensors"
        metadata = {"step": str(self.step), "config": config_digest}
        # Copies, because safetensors refuses the storage that the model and an expanded buffer may share; contiguous,
        # whatever layout convolutions want here.
        tensors = {name: value.detach().to(CPU, copy=True).contiguous() for name, value in self.tensors().items()}
        write_atomic(path, save(tensors, metadata))
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
        weights = self._weights()
        if odd := weights.keys() ^ {name for name in found if name.startswith(_NETWORKS)}:
            part, _, name = min(odd).partition(".")
            raise BundleError(f"{path}: tensors under '{part}.' don't fit the model: {name} is in one of them only")
        with torch.no_grad():
            for name, tensor in weights.items():
                if tensor.shape != found[name].shape:
                    raise BundleError(
                        f"{path}: tensor {name} is {list(found[name].shape)}; expected {list(tensor.shape)}"
                    )
                tensor.copy_(found[name])
        for optimizer, (moving, parameters) in self.optimizers().items():
            for i, parameter in enumerate(parameters):
                prefix = f"{optimizer}.{i}."
                state = {name.removeprefix(prefix): v for name, v in found.items() if name.startswith(prefix)}
                if state:
                    moving.state[parameter] = {name: laid_out(v, parameter) for name, v in state.items()}
        if self.scaler.is_enabled():
            kinds = {name: type(number) for name, number in self.scaler.state_dict().items()}
            self.scaler.load_state_dict({name: kind(found[f"scaler.{name}"]) for name, kind in kinds.items()})
        self.step = int(metadata["step"])

    def weights(self) -> dict[str, Tensor]:
        """What weights.safetensors holds, on the CPU and contiguous: the EMA of what is trained, without the head."""
        found = self._average() | dict(self.subject.fixed)
        return {name: value.detach().to(CPU, copy=True).contiguous() for name, value in found.items()}


def laid_out(value: Tensor, parameter: Tensor) -> Tensor:
    """A value of the optimizer for `parameter`, on its device, and where it has its shape in its layout, as a fused
    optimizer wants them.
    """
    value = value.to(parameter.device)
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value) if value.shape == parameter.shape else value


def step_seed(seed: int, step: int) -> int:
    """An independent 63-bit seed for each step: what makes resuming exact without saving generators."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))


@dataclass(frozen=True)
class Pool:
    """Indices of the images of one top code, and where each one's stretch of [0, 1) ends (None: all equally long)."""

    index: Tensor
    ends: Tensor | None

    def at(self, v: float) -> Tensor:
        """The image whose stretch holds v."""
        count = len(self.index)
        if self.ends is None:
            return self.index[int(v * count)]
        return self.index[min(int(torch.searchsorted(self.ends, v, right=True)), count - 1)]


def _pools(classes: Classes) -> list[Pool]:
    """The images of each top code."""
    if classes.y is None:
        raise ValueError("a training set with codes needs the code of each image")
    top = torch.tensor(classes.top_of)[classes.y]
    pools = []
    for k in range(max(classes.top_of) + 1):
        index = torch.nonzero(top == k).flatten()
        ends = None
        if classes.shares:
            code = classes.y[index]
            sizes = torch.bincount(code, minlength=classes.number)
            each = torch.tensor(classes.shares, dtype=torch.float64)[code] / sizes[code]
            ends = torch.cumsum(each / each.sum(), 0)
        pools.append(Pool(index, ends))
    return pools


def _capped(pools: list[Pool], most: float) -> Tensor | None:
    """Where the top codes' stretches of [0, 1) end, as even as may be with no image drawn over `most` times as often as
    when all are drawn alike; None where equal shares do that.
    """
    sizes = np.array([len(pool.index) for pool in pools], np.float64)
    caps = most * sizes / sizes.sum()
    if caps.min() >= 1 / len(pools):
        return None
    shares, open_ = np.zeros(len(pools)), np.ones(len(pools), bool)
    while True:  # what the capped ones leave goes to the others, evenly
        shares[open_] = (1 - shares[~open_].sum()) / open_.sum()
        over = open_ & (shares > caps)
        if not over.any():
            return torch.from_numpy(np.cumsum(shares))
        shares[over], open_[over] = caps[over], False


def shifted(x0: Tensor, most: int, patch: int, generator: torch.Generator) -> Tensor:
    """Folded images [B,C,H,W], each moved by up to `most` pixels down and across; what comes in repeats the edge."""
    images = F.pixel_shuffle(x0, patch)
    height, width = images.shape[-2:]
    padded = F.pad(images, (most,) * 4, mode="replicate")
    down, across = torch.randint(2 * most + 1, (2, len(x0)), generator=generator).tolist()
    moved = [padded[i, :, y : y + height, x : x + width] for i, (y, x) in enumerate(zip(down, across, strict=True))]
    return F.pixel_unshuffle(torch.stack(moved), patch)
