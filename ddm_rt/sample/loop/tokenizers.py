"""Prompts to token ids, by the tokenizers that lie in the bundle: what transformers' CLIPTokenizer makes of them with
`padding="max_length", truncation=True`.
"""

import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddm_rt.bundle import Bundle
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.runtime import TextSpec

_QUOTED = 200  # characters of what a warning quotes
_log = logging.getLogger(__name__)


class Tokenizers:
    """One tokenizer per text encoder of a bundle.

    A prompt that is longer than its encoder reads (77 tokens with begin and end, for CLIP) is cut there. A warning says
    how many tokens were lost, and quotes them.
    """

    def __init__(self, bundle: Bundle) -> None:
        """Raises BundleError for a file that is no tokenizer, and for a padding token that it hasn't got."""
        self._specs = bundle.config.text
        self._tokenizers = [_open(bundle.path / spec.tokenizer, spec) for spec in self._specs]
        self.versions = {"tokenizers": version("tokenizers")}

    def ids(self, text: str) -> dict[str, NDArray[np.int64]]:
        """Token ids int64 [1, max_length] by the names of the text encoder's inputs.

        Raises DdmError for text that isn't Unicode.
        """
        check_text("prompt", text)
        encoded = [tokenizer.encode(text) for tokenizer in self._tokenizers]
        losses = zip(self._specs, encoded, strict=True)
        for warning in dict.fromkeys(_loss(text, spec, encoding) for spec, encoding in losses if encoding.overflowing):
            _log.warning("%s", warning)
        return {
            spec.input: np.array([encoding.ids], np.int64) for spec, encoding in zip(self._specs, encoded, strict=True)
        }


def check_text(field: str, text: str) -> None:
    """Raises DdmError naming `field` for anything but a string of Unicode characters."""
    try:
        if isinstance(text, str):
            text.encode()
            return
    except UnicodeEncodeError as error:
        raise DdmError(f"{field} is {text!r}; expected Unicode text ({error.reason})") from error
    raise DdmError(f"{field} is {text!r}; expected text")


def _open(path: Path, spec: TextSpec) -> Any:
    from tokenizers import Tokenizer  # here, because bundles without prompts do without

    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); a bundle with prompts must have it") from error
    except Exception as error:  # the library raises nothing more exact
        raise BundleError(f"{path}: not a tokenizer ({error})") from error
    pad = tokenizer.id_to_token(spec.pad_id)
    if pad is None:
        raise BundleError(f"{path}: has no token of the id {spec.pad_id} (field text.pad_id)")
    tokenizer.enable_truncation(spec.max_length)
    tokenizer.enable_padding(length=spec.max_length, pad_id=spec.pad_id, pad_token=pad)
    return tokenizer


def _loss(text: str, spec: TextSpec, encoding: Any) -> str:
    """What was cut off: the tokens after the limit, and the text after the last character of a token that was kept."""
    lost = sum(special == 0 for part in encoding.overflowing for special in part.special_tokens_mask)
    words = text[max(end for _, end in encoding.offsets) :].strip()
    quoted = repr(words if len(words) <= _QUOTED else f"{words[:_QUOTED]}…")
    return (
        f"prompt too long: left out {lost} token{'s' * (lost != 1)} beyond the {spec.max_length} that the text encoder "
        f"reads (begin and end count): {quoted}"
    )
