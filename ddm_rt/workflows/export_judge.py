"""`ddm-rt export-judge`: a transformers folder (image classification, or CLIP with prompts) as one ONNX file, so that
evaluating needs no torch.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddm_rt.engine import user_cache
from ddm_rt.errors import DdmError
from ddm_rt.evaluate.audit.judges import Source
from ddm_rt.evaluate.judge import id2label
from ddm_rt.evaluate.preprocessing import FILE, Preprocessing, from_processor
from ddm_rt.files import read, sha256

if TYPE_CHECKING:
    from torch import nn

CONFIG, _PROCESSOR = "config.json", "processor_config.json"
_NEEDED = ("torch", "transformers", "onnx", "onnxscript")
_FORMAT = 1  # of exported judges: another one is exported again
_LICENCE = re.compile(r"^license:\s*['\"]?([\w.+-]+)", re.MULTILINE)


def parse_prompts(texts: Sequence[str]) -> dict[str, list[str]]:
    """`PROMPT`, which names its group itself, or `GROUP=PROMPT`; several of one group are averaged, as CLIP's are.

    Raises DdmError for fewer than two groups, and for nothing on either side of =.
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        group, sign, prompt = (part.strip() for part in text.partition("="))
        prompt = prompt if sign else group
        if not group or not prompt:
            raise DdmError(f'--group {text!r}: expected PROMPT or GROUP=PROMPT, as in "woman=a photo of a woman"')
        found.setdefault(group, []).append(prompt)
    if len(found) < 2:
        raise DdmError(
            'a CLIP judge needs two or more groups, as in --group "a photo of a woman" --group "a photo of a man"; '
            f"given: {', '.join(found) or 'none'}"
        )
    return found


def export_judge(folder: Path, out: Path, prompts: Sequence[str] = ()) -> float:
    """Write the ONNX file `out` of a transformers folder; CLIP where there are prompts (`parse_prompts`).

    Classes, preprocessing, licence and origin go into its metadata; CLIP's text embeddings are constants of the graph.
    Nothing is fetched, no code of the folder's runs, and weights must be safetensors. Returns the largest absolute
    difference to torch. Raises DdmError naming what is missing or unknown.
    """
    config = _json(folder / CONFIG)
    steps = _preprocessing(folder)
    if steps.output is None:
        raise DdmError(f"{folder / FILE}: images come out in different sizes; expected a crop, or height and width")
    clip = config.get("model_type") == "clip"
    if clip != bool(prompts):
        missing = "name its groups (--group)" if clip else "only a CLIP folder takes --group"
        raise DdmError(f"{folder / CONFIG}: model_type is {config.get('model_type')!r}; {missing}")
    groups = parse_prompts(prompts) if clip else {}
    classes = list(groups) if clip else id2label(config, folder / CONFIG)
    if classes is None:
        raise DdmError(f"{folder / CONFIG}: field id2label is missing; expected the names of the classes")
    from ddm_rt.export.classifier import export_classifier

    module = _clip(folder, groups) if clip else _classifier(folder)
    readme = folder / "README.md"
    licence = _LICENCE.search(readme.read_text(encoding="utf-8", errors="replace")) if readme.is_file() else None
    told: dict[str, Any] = {
        "kind": "CLIP zero-shot" if clip else "transformers image classification",
        "source": folder.resolve().name,
        "weights_sha256": sha256(folder / "model.safetensors") if (folder / "model.safetensors").is_file() else None,
        "architecture": ", ".join(config.get("architectures") or ()) or config.get("model_type"),
        "licence": None if licence is None else licence[1],
        "prompts": "; ".join(f"{group}: {' | '.join(each)}" for group, each in groups.items()) or None,
        "transformers": version("transformers"),
        "torch": version("torch"),
    }
    metadata = {
        "classes": json.dumps(classes),
        "preprocessing": steps.model_dump_json(),
        "training": json.dumps({key: value for key, value in told.items() if value is not None}),
    }
    channels = len(steps.mean or (0, 0, 0))
    return export_classifier(module, (channels, *steps.output), out, metadata)


def of_torch(source: Source, prompts: Sequence[str] = ()) -> Source:
    """A judge whose file is ONNX. A transformers folder is exported into the user's cache first, once.

    Raises DdmError where that needs packages that aren't there, and names the command that exports.
    """
    folder = Path(source.path)
    if source.kind == "file" and not folder.is_dir():
        return source
    if source.kind == "file" and (ready := _ready(folder)) is not None:
        return replace(
            source, path=str(ready), made_from=f"{folder.resolve().name}/{ready.relative_to(folder).as_posix()}"
        )
    if not (folder / CONFIG).is_file():
        raise DdmError(f"judge {source.path!r}: no {CONFIG} there; expected a folder of transformers, or an ONNX file")
    if source.kind == "clip":
        parse_prompts(prompts)
    given = prompts if source.kind == "clip" else ()
    cached = user_cache.root() / "judges" / f"{_key(folder, given)}.onnx"
    if not cached.is_file():
        if missing := [name for name in _NEEDED if find_spec(name) is None]:
            more = "".join(f" --group {json.dumps(text)}" for text in given)
            raise DdmError(
                f"judge {source.path!r}: it takes {', '.join(missing)} to read it (pip install 'ddm-rt[train]'). "
                f"Or run `ddm-rt export-judge {source.path}{more} --out judge.onnx` where they are, and name that file"
            )
        export_judge(folder, cached, given)
    return replace(source, path=str(cached), made_from=folder.resolve().name)


def _ready(folder: Path) -> Path | None:
    """The ONNX file that a folder holds already, as many on the Hub do."""
    found = (folder / "model.onnx", folder / "onnx" / "model.onnx")
    return next((path for path in found if path.is_file()), None)


def _key(folder: Path, prompts: Sequence[str]) -> str:
    """Of all that an export depends on."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".txt", ".safetensors", ".md"))
    parts = [_FORMAT, list(prompts), [(path.name, sha256(path)) for path in files if path.is_file()]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(read(path, "expected a file of transformers"))
    except ValueError as error:
        raise DdmError(f"{path}: not JSON ({error})") from error
    if not isinstance(tree, dict):
        raise DdmError(f"{path}: expected an object")
    return tree


def _preprocessing(folder: Path) -> Preprocessing:
    """Of preprocessor_config.json, or of processor_config.json, as newer versions write it for CLIP."""
    if not (folder / FILE).is_file() and (folder / _PROCESSOR).is_file():
        tree = _json(folder / _PROCESSOR)
        return from_processor(tree.get("image_processor", tree), folder / _PROCESSOR)
    return from_processor(_json(folder / FILE), folder / FILE)


def _loaded(kind: Any, folder: Path, **more: Any) -> Any:
    from ddm_rt.quiet import quiet

    options = {"local_files_only": True, "trust_remote_code": False} | more
    try:
        with quiet("transformers"):
            return kind.from_pretrained(folder, **options)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise DdmError(f"{folder}: transformers can't open it ({' '.join(str(error).split())[:300]})") from error


def _classifier(folder: Path) -> "nn.Module":
    """pixel values [B,C,H,W] -> logits [B,K], and the pooled last hidden state [B,D] as features."""
    from torch import Tensor, nn
    from transformers import AutoModelForImageClassification

    model = _loaded(AutoModelForImageClassification, folder, use_safetensors=True, dtype="float32")

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
            found = self.model(pixel_values=image, output_hidden_states=True, return_dict=True)
            hidden = found.hidden_states[-1]  # [B, T, D] of a transformer, [B, D, H, W] of a convolutional one
            return found.logits, hidden.mean(dim=1) if hidden.ndim == 3 else hidden.mean(dim=(2, 3))

    return Classifier().eval().requires_grad_(False)


def _clip(folder: Path, groups: dict[str, list[str]]) -> "nn.Module":
    """pixel values [B,3,H,W] -> logits exp(logit_scale)·cos [B,K], and the image's unit vector [B,D] as features."""
    import torch
    from torch import Tensor, nn
    from transformers import AutoTokenizer, CLIPModel

    model = _loaded(CLIPModel, folder, use_safetensors=True, dtype="float32").eval().requires_grad_(False)
    tokenizer = _loaded(AutoTokenizer, folder)

    def unit(x: Tensor) -> Tensor:
        return torch.nn.functional.normalize(x, dim=-1)

    rows = []
    with torch.inference_mode():
        for texts in groups.values():
            tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
            hidden = model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
            rows.append(unit(unit(model.text_projection(hidden.pooler_output)).mean(dim=0)))

    class Clip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision, self.projection = model.vision_model, model.visual_projection
            self.texts = nn.Buffer((torch.stack(rows) * model.logit_scale.exp()).clone())  # [K, D]

        def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
            features = unit(self.projection(self.vision(pixel_values=image).pooler_output))
            return features @ self.texts.T, features

    return Clip().eval().requires_grad_(False)
