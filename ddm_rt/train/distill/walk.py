"""The walk of a teacher over a grid of timesteps, and the phases of it that a student jumps over."""

import numpy as np
import torch
from torch import Tensor

from ddm_rt.config import DistillConfig, RunConfig, SamplerName
from ddm_rt.schedule import Schedule, jumps, step_table

GRID = 40  # steps of the teacher's walk


class Walk:
    """Tables with a row for each step of the teacher: where it leads, and where the student jumps to from its start."""

    def __init__(self, config: RunConfig, distill: DistillConfig, device: torch.device) -> None:
        schedule = Schedule.from_config(config.schedule)
        # Timesteps of the walk and, among them, those that the student jumps from; -1 is the clean end.
        walk, starts = (step_table(schedule, SamplerName.DDIM, steps).t for steps in (GRID, distill.phases))
        walk = walk[walk <= starts[0]]
        following, landings = np.append(walk[1:], -1), np.append(starts, -1)
        ends = np.array([landings[landings < t][0] for t in walk])
        last = following == ends
        self.t = torch.from_numpy(walk).long()  # [R], on the CPU
        self.starts = torch.from_numpy(np.flatnonzero(np.append(True, last[:-1])))  # the first row of each phase
        self.last = torch.from_numpy(last).to(device)  # [R], of the phase
        self.clean = torch.from_numpy(ends == -1).to(device)  # [R], whether the phase's end is the image
        self.row_of = torch.zeros(int(walk[0]) + 1, dtype=torch.int64)  # of a timestep
        self.row_of[self.t] = torch.arange(len(walk))
        self.step, self.jump = (  # [R, 7], rows of a step table
            torch.from_numpy(jumps(schedule, walk, to, distill.clip)).to(device) for to in (following, ends)
        )

    def x0_of_jump(self, x: Tensor, x_t: Tensor, row: Tensor) -> Tensor:
        """The x0 with which the jump from x_t [B,C,H,W] leads to x."""
        keep, add = (self.jump[row, k].view(-1, 1, 1, 1) for k in (2, 3))
        return (x - keep * x_t) / add
