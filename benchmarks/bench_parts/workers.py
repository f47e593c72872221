"""Configurations side by side: each in a process of its own, called in turn, round by round."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from peers import PEERS, Configuration
from subjects import Subject

from ddm_rt.errors import DdmError

_WORKER = Path(__file__).parents[1] / "worker.py"


class Timed(NamedTuple):
    """What a configuration's worker said."""

    configuration: Configuration
    samples_ms: list[float]
    first_call_ms: float
    peak_mem_mib: float
    versions: dict[str, str]
    output: NDArray[np.float32]  # of its first call


class Call(NamedTuple):
    """What is called: a denoiser step, a request for images, or a step of training."""

    kind: str  # "step", "images" or "train"
    batch: int
    side: int | None = None  # of the latents


class _Worker:
    def __init__(self, configuration: Configuration, subject: Subject, threads: int, call: Call, output: Path) -> None:
        self.configuration, self.output = configuration, output
        spec = {
            "peer": configuration.peer,
            "options": configuration.options,
            "subject": subject.model_dump(),
            "threads": threads,
            "warm_up": 1,
            "output": str(output),
            **call._asdict(),
        }
        self._log = output.with_suffix(".log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, str(_WORKER), json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.opened = self._answer()

    def go(self) -> float:
        self._say("go")
        return float(self._answer()["ms"])

    def end(self) -> dict[str, Any]:
        self._say("end")
        last = self._answer()
        self._process.wait()
        return last

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _say(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._log.seek(0)
            tail = " / ".join(self._log.read().strip().splitlines()[-4:])
            extra = PEERS[self.configuration.peer][1]
            hint = f"; it needs the extra {extra}" if extra else ""
            raise DdmError(f"{self.configuration.name}: its process ended: {tail}{hint}")
        found: dict[str, Any] = json.loads(line)
        return found


def side_by_side(
    configurations: Sequence[tuple[Configuration, Subject]], threads: int, call: Call, rounds: int
) -> list[Timed]:
    """Every configuration `rounds` times, in turn and in another order every other round.

    All are open at once: what doesn't fit into memory together belongs into sets of its own. Raises DdmError with the
    last lines of a process that ends.
    """
    workers: list[_Worker] = []
    with TemporaryDirectory() as folder:
        try:
            for number, (each, subject) in enumerate(configurations):
                workers.append(_Worker(each, subject, threads, call, Path(folder) / f"{number}.npy"))
            samples: list[list[float]] = [[] for _ in workers]
            for i in range(rounds):
                order = range(len(workers)) if i % 2 else reversed(range(len(workers)))
                for k in order:
                    samples[k].append(workers[k].go())
            return [
                Timed(
                    worker.configuration,
                    taken,
                    worker.opened["first_call_ms"],
                    worker.end()["peak_mem_mib"],
                    worker.opened["versions"],
                    np.load(worker.output),
                )
                for worker, taken in zip(workers, samples, strict=True)
            ]
        finally:
            for worker in workers:
                worker.kill()
