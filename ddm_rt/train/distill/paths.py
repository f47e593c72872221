"""A student that learns on its teacher's own paths: from where each phase begins it is drawn to where the phase ends.

The ends are not what the student's average sees, as in consistency.py, but where the guided teacher's walk has led: so
they are right from the first step on, and states are those that sampling meets, not noised images.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ddm_rt.config import RunConfig, SamplerName
from ddm_rt.progress import OnFigures
from ddm_rt.schedule import Schedule, step_table
from ddm_rt.train.disk_cache import CACHE, Portions, Rows, Tensors
from ddm_rt.train.distill.consistency import GRID, Distiller
from ddm_rt.train.distributed import ALONE, Processes
from ddm_rt.train.loop import Batch, step_seed
from ddm_rt.train.trainee import Material

_SEEDS = 2**40  # of paths: beyond those of steps


class PathDistiller(Distiller):
    """A `Distiller` whose minibatches are phases of paths, each as likely as any other."""

    def __init__(self, config: RunConfig, material: Material, processes: Processes = ALONE) -> None:
        """`config.distill.paths` must be at least 1; `get_ready` must be called before the first step."""
        super().__init__(config, material, processes)
        self.paths: dict[str, Rows] = {}
        schedule, walk, device = Schedule.from_config(config.schedule), self.walk, self.device
        # The teacher's steps: row of a step table, timestep, and whether a phase ends there. They are as it samples:
        # with the ε of the x0 before it is clipped.
        rows, jumps = (
            torch.from_numpy(step_table(schedule, SamplerName.DDIM, steps, clip=self.distill.clip).rows()).to(device)
            for steps in (GRID, self.distill.phases)
        )
        self._steps = list(zip(rows[-len(walk.t) :], walk.t.tolist(), walk.last.tolist(), strict=True))
        if self.distill.one_step_start:
            first = int(walk.starts[1]) if len(walk.starts) > 1 else len(walk.t)
            self._steps[:first] = [(jumps[0], int(walk.t[0]), True)]

    def get_ready(self, out: Path, progress: Mapping[str, OnFigures]) -> None:
        """Make the teacher's paths, or take those that are in the run's cache: a function of the configuration."""
        portions = Portions(out / CACHE, "paths", self.distill.paths)
        found = portions.made(self.walked, progress.get("paths"))
        self.paths = {name: Rows(tuple(part[name] for part in found)) for name in found[0]}

    def walked(self, paths: range) -> Tensors:
        """Whose paths they are (index, code, no_text, each [P]), and states float32 [P,phases+1,C,H,W] of them."""
        generator = torch.Generator().manual_seed(step_seed(self.config.train.seed, _SEEDS + paths.start))
        index = self.draw(generator, len(paths))
        y, code, no_text = self._classes(index, generator)
        noise = torch.randn(len(paths), *self.material.latents.shape[1:], generator=generator)
        begun = Batch(index, noise, noise, torch.full_like(index, int(self.walk.t[0])), y, code, no_text)
        states = torch.cat([self._states(part) for part in begun.split(self.config.train.batch_size)])
        return {"states": states, "index": index, "code": code, "no_text": no_text}

    def _states(self, batch: Batch) -> Tensor:
        """The walks from noise x_t [B,C,H,W] on: states [B,phases+1,C,H,W] where phases begin, and the image."""
        states = [batch.x_t]
        batch = batch.to(self.device)
        with self.autocast():
            for step, t, last in self._steps:
                batch = batch._replace(t=torch.full_like(batch.t, t))
                x, _, _ = self.teacher_step(batch, step.expand(batch.size, -1))
                batch = batch._replace(x_t=x)
                if last:
                    states.append(x.cpu())
        return torch.stack(states, 1)

    def batch(self) -> Batch:
        """As `Trainer.batch`: states that sampling jumps from. Targets are where the jumps lead."""
        train = self.config.train
        generator = torch.Generator().manual_seed(step_seed(train.seed, self.step))
        size = train.batch_size * train.accumulate
        path = torch.randint(self.distill.paths, (size,), generator=generator)
        phase = torch.randint(len(self.walk.starts), (size,), generator=generator)
        states, each = self.paths["states"].take(path), torch.arange(size)
        index, code, no_text = (self.paths[name].take(path) for name in ("index", "code", "no_text"))
        t = self.walk.t[self.walk.starts[phase]]
        # A student has no head that learns a class.
        return Batch(index, states[each, phase], states[each, phase + 1], t, code, code, no_text)

    def wanted(self, batch: Batch, row: Tensor) -> Tensor:
        """The x0 whose jump leads to the target."""
        return self.walk.x0_of_jump(batch.target, batch.x_t, row)
