"""The models of the bench: those of `balance.py`, `latent_digits.py` and `faces.py`, trained there, opened in torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import balance
import numpy as np
import torch
from latent_digits_parts.images import PROMPT, PROMPTS
from numpy.typing import NDArray
from store import of_evaluation
from torch import Tensor

from ddm_rt import data
from ddm_rt.config import DataConfig, FeatureConfig, RunConfig
from ddm_rt.evaluate.evaluation import LabelledImages, evaluate
from ddm_rt.evaluate.judge import Judge
from ddm_rt.evaluate.run import labelled, three_channels
from ddm_rt.model.assemble import assemble, read_file
from ddm_rt.runtime import Codes
from ddm_rt.schedule import Schedule, step_table
from rivals.sampling import Denoiser, Model

DIGITS = ("digits 3v8 4:1", "digits 3v8 1:4")
LATENT, NAMED = "latent 3v8 4:1", "latent 3v8 4:1, half of prompts name the digit"
FACES = ("faces gender 4:1", "faces gender 1:4")
PROMPTED = (LATENT, NAMED)  # whose models take prompts
SETS = (*DIGITS, LATENT, NAMED, *FACES)
CHOICE = "digits 7v8 4:1"  # strengths are chosen here, for all sets
WORDS = {"3": "three", "8": "eight"}
_BY_NAME = ("a handwritten {}", "a photo of a handwritten {}", "one {}, white on black", "handwriting: a single {}")


@dataclass(frozen=True)
class Places:
    """Where the other benchmarks keep their runs, and the file of faces."""

    balance: Path
    latent: Path
    faces: Path
    faces_file: Path | None


@dataclass(frozen=True)
class Words:
    """What a model with prompts takes: the neutral prompt and the empty one, and those that name each group."""

    neutral: tuple[str, ...] = PROMPTS[::2]  # as `name_half` leaves them
    named: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by group; empty: training named none
    scale: float = 1.5  # guidance on the text


@dataclass(frozen=True)
class Subject:
    """A trained vanilla model with its data, and how its images are measured."""

    name: str
    model: Model
    context: Tensor  # [1, T, D], of plain sampling
    groups: tuple[str, str]
    latents: Tensor  # [N, C, H, W], of the training images
    pixels: NDArray[np.float32]  # [N, c, S, S] in [-1, 1]
    labels: NDArray[np.int64]  # [N], index into groups; a rival sees as many as it says
    features: FeatureConfig  # of contrastive features
    judge: Any
    reference: LabelledImages
    train: NDArray[np.uint8]
    min_per_group: int
    words: Words | None = None
    end: Callable[[str], int] = len  # of a prompt: the number of its end's token

    def measure(self, images: NDArray[np.uint8], n: int) -> dict[str, Any]:
        """As the benchmark that trained the model measures its own rows."""
        figures = evaluate(
            images,
            None,
            self.judge,
            self.groups,
            self.reference,
            self.train,
            min_per_group=self.min_per_group,
            n=n,
        )
        return of_evaluation(figures.model_dump(mode="json"))

    @property
    def minority(self) -> int:
        return int(np.bincount(self.labels).argmin())


def load(name: str, places: Places) -> Subject:
    """The subject of a set; its model is trained first where it isn't there."""
    kind, rest = name.split(" ", 1)
    if kind == "digits":
        return _digits(name, rest, places.balance)
    if kind == "latent":
        return _latent(name, places.latent, named=name == NAMED)
    if places.faces_file is None:
        raise SystemExit(f"{name}: needs --faces FILE.npz, the file that benchmarks/faces.py takes")
    return _faces(name, rest, places)


def _opened(run: Path) -> tuple[Any, RunConfig]:
    config, codes = read_file(RunConfig, run / "config.json"), read_file(Codes, run / "codes.json")
    return assemble(run, config, codes), config


def _model(module: Any, config: RunConfig, texts: Callable[[str], Tensor] | None = None) -> Model:
    schedule, sampling = Schedule.from_config(config.schedule), config.sampling

    def decode(x0: Tensor) -> NDArray[np.uint8]:
        levels = (module.decode(x0).clamp(-1, 1) + 1) * 127.5
        pixels: NDArray[np.uint8] = levels.round().byte().permute(0, 2, 3, 1).contiguous().numpy()
        return three_channels(pixels)

    return Model(
        Denoiser(module.unet),
        schedule,
        step_table(schedule, sampling.sampler, sampling.num_steps, eta=sampling.eta, clip=sampling.clip),
        config.model.latent_shape(config.data),
        decode,
        texts,
    )


def _digits(name: str, cell: str, work: Path) -> Subject:
    balance.train_cell(cell, "vanilla", work)
    module, config = _opened(work / balance.slug(cell, "vanilla") / "run")
    return _of_digits(name, module, config, config.data, _model(module, config), module.encode)


def _of_digits(
    name: str,
    module: Any,
    config: RunConfig,
    source: Any,
    model: Model,
    encode: Callable[[Tensor], Tensor],
    **more: Any,
) -> Subject:
    images = data.load(source)
    groups = tuple(sorted(set(images.labels or ())))
    pixels = images.latent_input()
    with torch.no_grad():
        latents = torch.cat([encode(part) for part in torch.from_numpy(pixels).split(100)])
    more.setdefault("context", torch.zeros(1, 1, module.context_dim))
    return Subject(
        name=name,
        model=model,
        groups=(groups[0], groups[1]),
        latents=latents,
        pixels=pixels,
        labels=np.array([groups.index(label) for label in images.labels or ()]),
        features=config.features,
        judge=Judge.load("digits"),
        reference=labelled(f"digits:{','.join(groups)}", "reference", source),
        train=three_channels(images.images),
        min_per_group=balance.MIN_PER_GROUP,
        **more,
    )


def _latent(name: str, work: Path, *, named: bool) -> Subject:
    from latent_digits_parts.cells import Cell
    from latent_digits_parts.measuring import DIGITS as THREE_CHANNELS
    from transformers import CLIPTokenizer

    cell = Cell("3v8 4:1", "vanilla", work / "named" if named else work)
    if named:
        name_half(cell)
    cell.train()
    module, config = _opened(cell.folder / "run")
    tokenizer = CLIPTokenizer.from_pretrained(cell.base() / "tokenizer")

    def ids(text: str) -> Tensor:
        found = tokenizer([text], padding="max_length", truncation=True, return_tensors="pt")
        return torch.as_tensor(found.input_ids)

    @torch.no_grad()
    def texts(text: str) -> Tensor:
        found: Tensor = module.encode_text(ids(text))["context"]
        return found

    spoken = {group: tuple(one.format(WORDS[group]) for one in _BY_NAME) for group in cell.groups}
    return _of_digits(
        name,
        module,
        config,
        THREE_CHANNELS.model_copy(update={"source": cell.source}),
        _model(module, config, texts),
        module.encode,
        context=texts(PROMPT),
        words=Words(named=spoken if named else {}, scale=cell.settings.guidance_scale),
        end=lambda text: int((ids(text)[0] == tokenizer.eos_token_id).nonzero()[0]),
    )


def name_half(cell: Any) -> None:
    """The set's folder with every other image's prompt naming its digit; base and images are the unnamed set's."""
    import csv
    import shutil

    from latent_digits_parts.cells import Cell
    from latent_digits_parts.images import write_folder

    folder = cell.set_folder / "data"
    if folder.is_dir():
        return
    plain = Cell(cell.name, cell.method, cell.set_folder.parents[1])
    shutil.copytree(plain.base(), cell.set_folder / "base", dirs_exist_ok=True)
    write_folder(cell.source, 32, folder)
    path = folder / "metadata.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    labels = data.load(DataConfig(source=cell.source)).labels or ()
    for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
        if i % 2:
            row["prompt"] = _BY_NAME[i // 2 % len(_BY_NAME)].format(WORDS[label])
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["file_name", "prompt"])
        writer.writeheader()
        writer.writerows(rows)


def _faces(name: str, what: str, places: Places) -> Subject:
    from faces_parts import judging, sets
    from faces_parts.cells import MIN_PER_GROUP, Cell
    from faces_parts.code_files import FEATURES
    from faces_parts.methods import methods

    assert places.faces_file is not None
    faces = sets.read(places.faces_file)
    reference = sets.split(faces, "reference")
    judge = judging.make(sets.split(faces, "judge"), reference, places.faces / "judge.onnx")
    cell = Cell(faces, what, methods()["vanilla"], places.faces)
    cell.fit()
    module, config = _opened(cell.run / "run")
    groups = sets.ATTRIBUTES["gender"]
    pixels = data.to_model(cell.train.images)
    with torch.no_grad():
        latents = module.encode(torch.from_numpy(pixels))
    return Subject(
        name=name,
        model=_model(module, config),
        context=torch.zeros(1, 1, module.context_dim),
        groups=(groups[0], groups[1]),
        latents=latents,
        pixels=pixels,
        labels=cell.train.labels("gender"),
        features=FEATURES["plain"],
        judge=judging.AttributeJudge(judge, "gender"),
        reference=LabelledImages(reference.images, [groups[k] for k in reference.labels("gender")]),
        train=cell.train.images,
        min_per_group=MIN_PER_GROUP["gender"],
    )


def contexts(subject: Subject, prompts: Sequence[str]) -> list[Tensor]:
    """Conditions [1,T,D] of prompts."""
    assert subject.model.texts is not None
    return [subject.model.texts(text) for text in prompts]
