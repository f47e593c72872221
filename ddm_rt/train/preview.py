"""Sheets of samples while a run trains: what its averaged weights make of a few prompts and codes, side by side."""

import io
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ddm_rt.config import NULL_CODE
from ddm_rt.files import write_atomic
from ddm_rt.kernels.guided_step import guided_step
from ddm_rt.schedule import default_table
from ddm_rt.train.distributed import CPU
from ddm_rt.train.loop import Trainer

MOST_PROMPTS, MOST_CODES = 4, 7
_GAP, _LINE, _FONT = 4, 20, 13  # pixels


def write_sheet(trainer: Trainer, folder: Path) -> Path:
    """Write `folder`/step_XXXXXXXX.png: a row for each prompt, a column for each code, the null code first.

    All start from the same noise, and are sampled as a bundle of this run would be by default, with joint guidance.
    """
    prompts = list(range(len(trainer.subject.prompts)))[1 : MOST_PROMPTS + 1] or [0]
    codes = [NULL_CODE, *_codes(trainer)]
    with trainer.averaged():
        rows = [_sample(trainer, prompt, codes) for prompt in prompts]
    titles = ["no code", *(f"code {code}" for code in codes[1:])]
    sheet = _sheet(rows, [trainer.subject.prompts[prompt] for prompt in prompts], titles)
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    folder.mkdir(exist_ok=True)
    path = folder / f"step_{trainer.step:08d}.png"
    write_atomic(path, buffer.getvalue())
    return path


def _codes(trainer: Trainer) -> list[int]:
    """The code with the most images of each top code."""
    classes = trainer.material.classes
    if not classes.top_of or classes.y is None:
        return []
    sizes = torch.bincount(classes.y, minlength=classes.number).tolist()
    tops = range(max(classes.top_of) + 1)
    largest = [max((c for c, k in enumerate(classes.top_of) if k == top), key=lambda c: sizes[c]) for top in tops]
    return largest[:MOST_CODES]


@torch.no_grad()
def _sample(trainer: Trainer, prompt: int, codes: list[int]) -> Tensor:
    """uint8 [B, H, W, C], one image of the prompt for each of `codes`."""
    config, subject, device = trainer.config, trainer.subject, trainer.device
    settings = config.sampling
    table = default_table(config.schedule, settings)
    scale = settings.scales[0 if subject.takes_text else 1]
    count = len(codes)
    wanted = torch.tensor([NULL_CODE] * count + codes, device=device)
    x = torch.randn(1, *trainer.material.latents.shape[1:], generator=torch.Generator().manual_seed(config.train.seed))
    x = (table.init_scale * x).repeat(count, 1, 1, 1).to(device)
    x0 = x
    rows = torch.from_numpy(table.rows()).to(device)
    scales = torch.full((count, 1), 1.0 if scale is None else scale, device=device)
    seeds = torch.full((count,), config.train.seed, device=device)
    with trainer.autocast():
        cond = subject.condition_on(torch.tensor([0] * count + [prompt] * count), wanted)
        for i, t in enumerate(table.timesteps.tolist()):
            out = trainer.model(x.repeat(2, 1, 1, 1), torch.full((2 * count,), t, device=device), cond).float()
            counters = torch.full((count,), i, device=device)
            noise = (seeds, counters) if table.f[i] else (None, None)
            x, x0 = guided_step(list(out.split(count)), scales, rows[i : i + 1].repeat(count, 1), x, x0, *noise)
    levels = (subject.decode(x).float().clamp(-1, 1) + 1) * 127.5
    return levels.round().byte().permute(0, 2, 3, 1).to(CPU)


def _sheet(rows: list[Tensor], prompts: list[str], titles: list[str]) -> Image.Image:
    _, height, width, channels = rows[0].shape
    size = (_GAP + len(titles) * (width + _GAP), _LINE + len(rows) * (_LINE + height + _GAP))
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT)
    for column, title in enumerate(titles):
        draw.text((_GAP + column * (width + _GAP), 2), title, "black", font)
    for row, (images, prompt) in enumerate(zip(rows, prompts, strict=True)):
        top = _LINE + row * (_LINE + height + _GAP)
        draw.text((_GAP, top + 2), " ".join(prompt.split()), "black", font)
        for column, image in enumerate(images.expand(-1, -1, -1, 3) if channels == 1 else images):
            sheet.paste(Image.fromarray(image.numpy()), (_GAP + column * (width + _GAP), top + _LINE))
    return sheet
