"""Text and code to rows of `cond`: each row is made once, alone, and kept while there is room."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddm_rt.bundle import Bundle
from ddm_rt.config import NULL_CODE
from ddm_rt.engine.contract import Cond, Engine
from ddm_rt.runtime import RuntimeConfig, Size, TensorSpec
from ddm_rt.sample.loop.annealing import NoiseAt, noised
from ddm_rt.sample.loop.batch_sizes import concat, take
from ddm_rt.sample.loop.guidance import Condition
from ddm_rt.sample.loop.tokenizers import Tokenizers

CONTEXT = "context"
SIZES = "time_ids"  # SDXL: height, width, crop top, crop left, height and width, in pixels

_KEPT = 2**26  # numbers: 256 MiB in float32
_LEAST_ROWS = 48  # as many as three branches of 16 images have, or each step would make its own again
_NOISY = 64  # prompts' tokens with noise: as many as images of a batch
_PROBE_ROWS = 8
_PROBE_TEXTS = ("", "a photograph of a person at work", "an oil painting, in many colours", "a street at night")

Texts = dict[str, NDArray[np.float32]]


class Conditions:
    """Rows of `cond` for the (text, code) pairs that a request's branches need."""

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        self._config, self._engine = bundle.config, engine
        config = bundle.config
        tokenizers = None if config.prompt_free else Tokenizers(bundle)
        self.versions = {} if tokenizers is None else tokenizers.versions
        tokens, width = config.context_shape
        longest = max((spec.max_length for spec in config.text), default=1)
        context = (tokens if isinstance(tokens, int) else longest, width)
        # Without `self` in them, so that the engine's memory is free as soon as nobody holds it.
        keep_texts = lru_cache(max(_KEPT // int(np.prod(context)), _LEAST_ROWS))
        numbers = sum(_numbers(spec, longest) for spec in engine.cond or config.cond)
        keep_rows = lru_cache(max(_KEPT // numbers, _LEAST_ROWS))
        encode = keep_texts(partial(_encode, config, engine, tokenizers, context))
        # Text and code are two branches where they have scales of their own, and both ask for the same noisy tokens.
        noisy = lru_cache(_NOISY)(lambda text, noise: noised(encode(text)[CONTEXT], noise))
        self._noised_row = partial(_row, config, engine, encode, noisy)  # no other image will ask for it
        self._row = keep_rows(self._noised_row)

    def gather(self, wanted: Sequence[Condition], indicator_scale: float, size: tuple[int, int]) -> Cond:
        """`cond` with one row per entry of `wanted`. `size` is the image's height and width in pixels."""
        distinct = {condition: number for number, condition in enumerate(dict.fromkeys(wanted))}
        sized = any(spec.name == SIZES for spec in self._config.added)
        rows = [
            (self._row if condition.noise is None else self._noised_row)(
                condition, indicator_scale, size if sized else None
            )
            for condition in distinct
        ]
        index = np.array([distinct[condition] for condition in wanted], np.int64)
        return take(self._engine, concat(self._engine, rows), index)

    def probe_rows(self, indicator_scale: float, size: tuple[int, int]) -> tuple[Cond, int]:
        """Rows of unlike texts and codes for `batch_sizes.probe`, and how many they are."""
        codes = [NULL_CODE, *range(min(self._config.num_codes, _PROBE_ROWS - 1))]
        if self._config.prompt_free:
            wanted = [Condition(None, code) for code in codes]
        else:
            wanted = [Condition(_PROBE_TEXTS[i % len(_PROBE_TEXTS)], codes[i % len(codes)]) for i in range(_PROBE_ROWS)]
        return self.gather(wanted, indicator_scale, size), len(wanted)


def _row(
    config: RuntimeConfig,
    engine: Engine,
    encode: Callable[[str | None], Texts],
    noisy: Callable[[str | None, NoiseAt], NDArray[np.float32]],
    condition: Condition,
    indicator_scale: float,
    size: Size | None,  # where the family takes it
) -> Cond:
    text = encode(condition.text)
    if condition.noise is not None:
        text = text | {CONTEXT: noisy(condition.text, condition.noise)}
    given: dict[str, NDArray[Any]] = text
    if size is not None:
        given = text | {SIZES: np.array([[*size, 0, 0, *size]], np.float32)}
    return engine.conditioner(
        text[CONTEXT],
        np.array([condition.code], np.int64),
        np.array([indicator_scale], np.float32),
        {spec.name: given[spec.name].astype(spec.dtype) for spec in config.added},
    )


def _encode(
    config: RuntimeConfig, engine: Engine, tokenizers: Tokenizers | None, context: tuple[int, int], text: str | None
) -> Texts:
    """Context [1,T,D] and, where the family has one, the pooled text [1,P]; zeros for no text."""
    if text is None or tokenizers is None:
        pooled = [spec for spec in config.added if spec.name != SIZES]
        shapes = {CONTEXT: context} | {spec.name: tuple(map(int, spec.shape)) for spec in pooled}
        return {name: np.zeros((1, *shape), np.float32) for name, shape in shapes.items()}
    return engine.text_encoder(tokenizers.ids(text))


def _numbers(spec: TensorSpec, tokens: int) -> int:
    """How many numbers a row has; free axes are taken for tokens."""
    return int(np.prod([size if isinstance(size, int) else tokens for size in spec.shape]))
