"""A bundle with prompts for the fake engine: a tokenizer whose tokens are bytes, and SDXL's conditions if asked for."""

import dataclasses
from pathlib import Path
from typing import Any

from fake_engine import fake_bundle
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from ddm_rt.bundle import Bundle
from ddm_rt.config import SamplingConfig
from ddm_rt.runtime import TensorSpec, TextSpec

MAX_LENGTH = 40  # tokens with begin and end: 38 letters
POOLED = 2


def write_tokenizer(path: Path) -> Path:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*letters, "<begin>", "<end>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.add_special_tokens(["<begin>", "<end>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        "<begin> $A <end>", special_tokens=[(token, vocabulary[token]) for token in ("<begin>", "<end>")]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tokenizer.to_str())
    return path


def text_bundle(folder: Path, *, sized: bool = False, num_codes: int = 4, **sampling: Any) -> Bundle:
    """A bundle at `folder` that takes prompts, with joint guidance of 2 by default.

    `sized`: two encoders, pooled text and sizes are conditions, and no negative prompt means zeros, as with SDXL.
    """
    plain = fake_bundle(num_codes=num_codes)
    write_tokenizer(folder / "tokenizer" / "tokenizer.json")
    names = ("input_ids", "input_ids_2") if sized else ("input_ids",)
    specs = tuple(
        TextSpec(tokenizer="tokenizer/tokenizer.json", input=name, max_length=MAX_LENGTH, pad_id=number)
        for number, name in enumerate(names)
    )
    added = (TensorSpec(name="text_embeds", shape=(POOLED,)), TensorSpec(name="time_ids", shape=(6,)))
    changes = {
        "prompt_free": False,
        "context_shape": ("tokens", 5),
        "text": specs,
        "added": added if sized else (),
        "empty_negative_is_zero": sized,
        "sampling": SamplingConfig(
            **{"num_steps": 4, "guidance_scale": 2.0, "indicator_guidance_scale": None, "clip": None} | sampling
        ),
    }
    return dataclasses.replace(plain, path=folder, config=plain.config.model_copy(update=changes))
