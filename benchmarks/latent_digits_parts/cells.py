"""One cell: a set and a method, through the commands that a user would type; each step is skipped where it is done."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddm_rt import data
from ddm_rt.bundle import Bundle
from ddm_rt.config import NULL_CODE, IndicatorMode
from ddm_rt.files import write_json
from ddm_rt.presets import PRESETS
from latent_digits_parts import images
from latent_digits_parts.base import SIDE, write_base

N, SEED = 1000, 0
MIN_PER_GROUP = 400  # of the distances per group, as in balance.py


@dataclass(frozen=True)
class Settings:
    """What every cell shares and balance.py hasn't; chosen on `DEVELOPMENT` pairs."""

    prediction_type: str = "sample"  # x0, as the pixel models; with epsilon a quarter of the images was no digit
    guidance_scale: float = 1.5  # joint: of text and code at once


SETTINGS = Settings()
METHODS = {"vanilla": IndicatorMode.NONE, "codes": IndicatorMode.CODES}
GUIDANCE = {"vanilla": 1.0}  # as in balance.py: plain diffusion unguided; others have `Settings.guidance_scale`
SETS = {"3v8 4:1": "digits:3,8@4:1", "0v1 4:1": "digits:0,1@4:1"}
DEVELOPMENT = {"7v8 4:1": "digits:7,8@4:1"}


class Cell:
    """Paths and steps of one cell under the folder `work`."""

    def __init__(self, name: str, method: str, work: Path, settings: Settings = SETTINGS) -> None:
        self.name, self.method, self.settings = name, method, settings
        self.source = (SETS | DEVELOPMENT)[name]
        self.groups = tuple(name.split()[0].split("v"))
        self.set_folder = work / slug(name)
        self.folder = self.set_folder / method

    def base(self, progress: Any = None) -> Path:
        others = tuple(digit for digit in data.DIGITS if digit not in self.groups)
        return write_base(self.set_folder / "base", others, self.settings.prediction_type, progress)

    def train(self) -> None:
        run = self.folder / "run"
        if (run / "weights.safetensors").is_file():
            return
        base, folder = self.base(), images.write_folder(self.source, SIDE, self.set_folder / "data")
        fields = budget() | {"train.seed": SEED, "sampling.guidance_scale": self.settings.guidance_scale}
        sets = [part for name, value in fields.items() for part in ("--set", f"{name}={json.dumps(value)}")]
        place = ("--base", str(base), "--data", str(folder), "--out", str(run))
        kind = ("--lora-rank", "0", "--indicator", METHODS[self.method].value, "--log-steps")
        with self._spending("train"):
            command("train", *place, *kind, *sets)

    def export(self) -> Bundle:
        bundle = self.folder / "bundle"
        if not bundle.is_dir():
            with self._spending("export"):
                command("export", str(self.folder / "run"), "--out", str(bundle))
        return Bundle.load(bundle)

    def sample(self, bundle: Bundle, judge: Any) -> dict[str, NDArray[Any]]:
        """`images` uint8 [M,32,32,3] and `codes` int64 [M]: N images, and more as `generate_until` has it."""
        path = self.folder / "images.npz"
        if not path.is_file():
            from ddm_rt.evaluate.run import generate_until
            from ddm_rt.sample.pipeline import Pipeline

            pipeline = Pipeline.load(bundle, backend="onnxruntime", threads=1)
            guidance = GUIDANCE.get(self.method, self.settings.guidance_scale)
            text = {"prompt": images.PROMPT, "guidance_scale": guidance}
            with self._spending("sample"):
                found = generate_until(pipeline, judge, self.groups, N, SEED, MIN_PER_GROUP, text=text)
            codes = np.full(len(found.images), NULL_CODE) if found.codes is None else found.codes
            draft = path.with_suffix(".draft.npz")
            np.savez_compressed(draft, images=found.images, codes=codes)
            draft.rename(path)
        with np.load(path) as arrays:
            return dict(arrays)

    def spent(self) -> dict[str, float]:
        """CPU seconds of each step that was done, of its interrupted attempts too."""
        path = self.folder / "spent.json"
        found: dict[str, float] = json.loads(path.read_bytes()) if path.is_file() else {}
        return found

    @contextmanager
    def _spending(self, step: str) -> Iterator[None]:
        start = cpu_seconds()
        try:
            yield
        finally:
            spent = self.spent()
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "spent.json", spent | {step: spent.get(step, 0.0) + cpu_seconds() - start})


def cpu_seconds() -> float:
    """Of this process and the commands that it has run so far."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def budget() -> dict[str, Any]:
    """Where training as balance.py does it (features, codes, optimizer) is not what `--base` does by itself."""
    ours, given = (PRESETS[name].model_dump(mode="json") for name in ("digits-bench", "checkpoint"))
    return {
        f"{section}.{field}": value
        for section in ("features", "codes", "train")
        for field, value in ours[section].items()
        if value != given[section][field]
    }


def slug(text: str) -> str:
    return text.replace(" ", "_").replace(":", "")


def command(*arguments: str) -> None:
    """`ddm-rt ARGUMENTS` in a process of its own, with one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-P", "-m", "ddm_rt.cli", *arguments], check=True, env=environment)
