"""Prompts of the training images as token ids, by the checkpoint's own tokenizers."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from ddm_rt.data import Listing
from ddm_rt.errors import DdmError
from ddm_rt.model.checkpoint.folder import Checkpoint, prompt_length, read_tokenizer

NULL_TEXT = 0  # the row of the null text, before those of the prompts

_log = logging.getLogger(__name__)


def prompts(listing: Listing, source: str) -> tuple[str, ...]:
    """The prompt of each image. Raises DdmError where some have none, saying how many and which is the first."""
    if listing.prompts is None:
        raise DdmError(f"data {source}: its images have no prompts; give --prompt, or metadata.csv a column prompt")
    missing = [name for name, prompt in zip(listing.names, listing.prompts, strict=True) if not prompt.strip()]
    if missing:
        raise DdmError(
            f"data {source}: {len(missing)} of {len(listing)} images have no prompt, the first is {missing[0]!r}; "
            "metadata.csv must give each its own, or --prompt one for those without"
        )
    return listing.prompts


def distinct(of_images: Sequence[str]) -> tuple[tuple[str, ...], Tensor]:
    """The texts, the null text "" first, and the row int64 [N] of each image's prompt among them."""
    rows = {text: row for row, text in enumerate(("", *dict.fromkeys(of_images)))}
    return tuple(rows), torch.tensor([rows[prompt] for prompt in of_images])


def token_ids(checkpoint: Checkpoint, texts: Sequence[str]) -> tuple[Tensor, ...]:
    """int64 [P,T] for each text encoder. A text that is longer than an encoder reads is cut, and a warning says so.

    Raises BundleError naming a tokenizer's folder that can't be read.
    """
    found = []
    for folder, encoder in zip(checkpoint.tokenizers, checkpoint.model.text_encoders, strict=True):
        tokenizer = read_tokenizer(folder)
        most = prompt_length(tokenizer, encoder)
        lengths = [len(ids) for ids in tokenizer(list(texts), verbose=False).input_ids]
        if long := [text for text, length in zip(texts, lengths, strict=True) if length > most]:
            _log.warning("prompts that are longer than %d tokens and cut there: %d, first %r", most, len(long), long[0])
        made = tokenizer(list(texts), padding="max_length", truncation=True, max_length=most, return_tensors="pt")
        found.append(made.input_ids)
    return tuple(found)
