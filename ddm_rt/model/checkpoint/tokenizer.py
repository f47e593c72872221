"""A checkpoint's tokenizers, by transformers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizerFast

from ddm_rt.errors import BundleError

_CLIP_LENGTH = 77


def read_tokenizer(folder: Path) -> Any:
    """Raises BundleError naming `folder` where transformers can't read it."""
    try:
        return CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(f"{folder}: not a tokenizer that transformers reads ({error})") from error


def prompt_length(tokenizer: Any, encoder: Mapping[str, Any]) -> int:
    """Tokens that every prompt is padded or cut to, for the text encoder with the arguments `encoder`."""
    return min(int(tokenizer.model_max_length), int(encoder.get("max_position_embeddings", _CLIP_LENGTH)))
