"""A student that learns on its teacher's own paths: from where each phase begins it is drawn to where the phase ends.

The ends are not what the student's average sees, as in consistency.py, but where the guided teacher's walk has led: so
they are right from the first step on, and states are those that sampling meets, not noised images.
"""

from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from ddm_rt.config import RunConfig, SamplerName
from ddm_rt.progress import OnFigures
from ddm_rt.schedule import Schedule, step_table
from ddm_rt.train.device import CPU, HALF
from ddm_rt.train.disk_cache import Portions, Rows, Tensors
from ddm_rt.train.distill.consistency import GRID, Distiller
from ddm_rt.train.distill.student import Student
from ddm_rt.train.distributed import ALONE, Processes
from ddm_rt.train.loop import TrainingSet, step_seed

_SEEDS = 2**40  # of paths: beyond those of steps


class PathDistiller(Distiller):
    """A `Distiller` whose minibatches are phases of paths, each as likely as any other."""

    def __init__(
        self,
        config: RunConfig,
        data: TrainingSet,
        subject: Student,
        device: torch.device = CPU,
        processes: Processes = ALONE,
    ) -> None:
        """`config.distill.paths` must be at least 1; `walk` must be called before the first step."""
        super().__init__(config, data, subject, device, processes)
        self._paths: dict[str, Rows] = {}
        # As the teacher samples: with the ε of the x0 before it is clipped.
        table = step_table(Schedule.from_config(config.schedule), SamplerName.DDIM, GRID, clip=self.distill.clip)
        self._step = torch.from_numpy(table.rows()[-len(self._t) :]).to(device)
        lasts = torch.nonzero(self._last.cpu()).flatten()
        self._starts = torch.cat([lasts.new_zeros(1), lasts[:-1] + 1])  # the first row of each phase
        # The teacher's steps: row of the table, timestep, and whether the phase ends there.
        self._walks = list(zip(range(len(self._t)), self._t.tolist(), self._last.tolist(), strict=True))
        if self.distill.one_step_start:
            schedule, phases = Schedule.from_config(config.schedule), self.distill.phases
            start = step_table(schedule, SamplerName.DDIM, phases, clip=self.distill.clip).rows()[:1]
            self._walks[: int(lasts[0]) + 1] = [(len(self._step), int(self._t[0]), True)]
            self._step = torch.cat([self._step, torch.from_numpy(start).to(device)])

    def walk(self, folder: Path, progress: OnFigures | None = None) -> None:
        """Make the teacher's paths, or take those that are in `folder`: a function of the configuration."""
        found = Portions(folder, "paths", self.distill.paths).made(self._walk, progress)
        self._paths = {name: Rows(tuple(part[name] for part in found)) for name in found[0]}

    def _walk(self, paths: range) -> Tensors:
        """Whose paths they are (index, code, no_text, each [P]), and states float32 [P,phases+1,C,H,W] of them."""
        generator = torch.Generator().manual_seed(step_seed(self.config.train.seed, _SEEDS + paths.start))
        index = self._draw(generator, len(paths))
        _, code, no_text = self._classes(index, generator)
        noise = torch.randn(len(paths), *self.data.latents.shape[1:], generator=generator)
        size = self.config.train.batch_size
        parts = zip(*(torch.split(tensor, size) for tensor in (index, noise, code, no_text)), strict=True)
        states = torch.cat([self._states(*part) for part in parts])
        return {"states": states, "index": index, "code": code, "no_text": no_text}

    def _states(self, index: Tensor, noise: Tensor, code: Tensor, no_text: Tensor) -> Tensor:
        """The walk from `noise` [B,C,H,W] on: states [B,phases+1,C,H,W] where phases begin, and the image."""
        x, code = noise.to(self.device), code.to(self.device)
        states = [noise]
        half = HALF.get(self.config.train.precision)
        with torch.autocast(self.device.type, half) if half is not None else nullcontext():
            for k, t, last in self._walks:
                row, at = (torch.full((len(x),), value, device=self.device) for value in (k, t))
                (x, _), _ = self._walked(index, x, row, at, code, no_text)
                if last:
                    states.append(x.cpu())
        return torch.stack(states, 1)

    def _batch(self) -> tuple[Tensor, ...]:
        """As `Trainer._batch`: states that sampling jumps from. Targets are where the jumps lead."""
        train = self.config.train
        generator = torch.Generator().manual_seed(step_seed(train.seed, self.step))
        size = train.batch_size * train.accumulate
        path = torch.randint(self.distill.paths, (size,), generator=generator)
        phase = torch.randint(len(self._starts), (size,), generator=generator)
        states, each = self._paths["states"].take(path), torch.arange(size)
        x_t, target = states[each, phase], states[each, phase + 1]
        index, code, no_text = (self._paths[name].take(path) for name in ("index", "code", "no_text"))
        t = self._t[self._starts[phase]]
        return index, x_t, target, t, code, code, no_text  # a student has no head that learns a class

    def _wanted(
        self, target: Tensor, index: Tensor, x_t: Tensor, row: Tensor, t: Tensor, code: Tensor, no_text: Tensor
    ) -> Tensor:
        return self._x0(target, x_t, row)
