"""What a bundle says about prompts: tokenizers, their configuration, and what a model is told beside the text."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ddm_rt.config import Family, RunConfig
from ddm_rt.errors import BundleError
from ddm_rt.model.checkpoint.folder import read_checkpoint
from ddm_rt.model.checkpoint.tokenizer import prompt_length, read_tokenizer
from ddm_rt.model.unet import POOLED, SIZES
from ddm_rt.runtime import TensorSpec, TextSpec


@dataclass(frozen=True)
class Text:
    """What a bundle says about prompts: nothing, for models that take none."""

    specs: tuple[TextSpec, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)  # path in the bundle -> content
    added: tuple[TensorSpec, ...] = ()  # what the conditioner takes besides text and code
    empty_negative_is_zero: bool = False


def read_text(run: Path, config: RunConfig) -> Text:
    """What the base checkpoint of `run` says about its prompts; nothing for a model of pixels, which takes none.

    Raises BundleError naming the folder of a tokenizer that can't be read or has words that its encoder lacks.
    """
    if config.model.family is Family.PIXEL:
        return Text()
    assert config.base is not None
    checkpoint = read_checkpoint(run / config.base.path, config.base.variant)
    specs: list[TextSpec] = []
    files: dict[str, str] = {}
    encoders = config.model.text_encoders
    for number, (folder, encoder) in enumerate(zip(checkpoint.tokenizers, encoders, strict=True)):
        tokenizer = read_tokenizer(folder)
        # Padding and truncation are the sampler's.
        backend = tokenizer.backend_tokenizer
        backend.no_padding()
        backend.no_truncation()
        words, known = backend.get_vocab_size(), int(encoder["vocab_size"])
        if words > known:
            raise BundleError(f"{folder}: has {words} words; its text encoder's vocab_size is {known}")
        name = f"tokenizer/{folder.name}.json"
        files[name] = backend.to_str(pretty=False)
        specs.append(
            TextSpec(
                tokenizer=name,
                input="input_ids" if number == 0 else f"input_ids_{number + 1}",
                max_length=prompt_length(tokenizer, encoder),
                pad_id=int(tokenizer.pad_token_id),
            )
        )
    added: tuple[TensorSpec, ...] = ()
    if config.model.family is Family.SDXL:
        pooled = TensorSpec(name=POOLED, shape=(int(encoders[-1]["projection_dim"]),))
        added = (pooled, TensorSpec(name=SIZES, shape=(6,)))
    return Text(tuple(specs), files, added, checkpoint.empty_negative_is_zero)
