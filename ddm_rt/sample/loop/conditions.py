"""Text and code to rows of `cond`: each row is made once, alone, and kept while there is room."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ddm_rt.bundle import Bundle
from ddm_rt.config import NULL_CODE
from ddm_rt.engine.contract import Array, Cond, Engine
from ddm_rt.runtime import TensorSpec
from ddm_rt.sample.loop.batch_sizes import concat, take
from ddm_rt.sample.loop.guidance import Condition
from ddm_rt.sample.loop.tokenizers import Tokenizers

CONTEXT = "context"
SIZES = "time_ids"  # SDXL: height, width, crop top, crop left, height and width, in pixels

_KEPT = 2**26  # numbers: 256 MiB in float32
_LEAST_ROWS = 16
_PROBE_ROWS = 8
_PROBE_TEXTS = ("", "a photograph of a person at work", "an oil painting, in many colours", "a street at night")

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """The `most` values that were asked for last."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        if key not in self._values:
            self._values[key] = make()
            if len(self._values) > self.most:
                self._values.popitem(last=False)
        self._values.move_to_end(key)
        return self._values[key]


class Conditions:
    """Rows of `cond` for the (text, code) pairs that a request's branches need."""

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        self._config, self._engine = bundle.config, engine
        config = bundle.config
        self._tokenizers = None if config.prompt_free else Tokenizers(bundle)
        self.versions = {} if self._tokenizers is None else self._tokenizers.versions
        tokens, width = config.context_shape
        longest = max((spec.max_length for spec in config.text), default=1)
        self._context = (tokens if isinstance(tokens, int) else longest, width)
        self._rows: Recent[tuple[Condition, float, tuple[int, int] | None], Cond] = Recent(
            max(_KEPT // sum(_numbers(spec, longest) for spec in config.cond), _LEAST_ROWS)
        )
        self._texts: Recent[str | None, dict[str, NDArray[np.float32]]] = Recent(
            max(_KEPT // int(np.prod(self._context)), _LEAST_ROWS)
        )

    def gather(self, wanted: Sequence[Condition], indicator_scale: float, size: tuple[int, int]) -> Cond:
        """`cond` with one row per entry of `wanted`. `size` is the image's height and width in pixels."""
        distinct = {condition: number for number, condition in enumerate(dict.fromkeys(wanted))}
        rows = [self._row(condition, indicator_scale, size) for condition in distinct]
        index = np.array([distinct[condition] for condition in wanted], np.int64)
        return take(self._engine, concat(self._engine, rows), index)

    def probe_rows(self, indicator_scale: float, size: tuple[int, int]) -> tuple[Cond, int]:
        """Rows of unlike texts and codes for `buckets.probe`, and how many they are."""
        codes = [NULL_CODE, *range(min(self._config.num_codes, _PROBE_ROWS - 1))]
        if self._config.prompt_free:
            wanted = [Condition(None, code) for code in codes]
        else:
            wanted = [Condition(_PROBE_TEXTS[i % len(_PROBE_TEXTS)], codes[i % len(codes)]) for i in range(_PROBE_ROWS)]
        return self.gather(wanted, indicator_scale, size), len(wanted)

    def _row(self, condition: Condition, indicator_scale: float, size: tuple[int, int]) -> Cond:
        sized = any(spec.name == SIZES for spec in self._config.added)
        key = (condition, indicator_scale, size if sized else None)
        return self._rows.get(key, lambda: self._make(condition, indicator_scale, size))

    def _make(self, condition: Condition, indicator_scale: float, size: tuple[int, int]) -> dict[str, Array]:
        text = self._texts.get(condition.text, lambda: self._encode(condition.text))
        height, width = size
        given: dict[str, NDArray[Any]] = text | {SIZES: np.array([[height, width, 0, 0, height, width]], np.float32)}
        return dict(
            self._engine.conditioner(
                text[CONTEXT],
                np.array([condition.code], np.int64),
                np.array([indicator_scale], np.float32),
                {spec.name: given[spec.name].astype(spec.dtype) for spec in self._config.added},
            )
        )

    def _encode(self, text: str | None) -> dict[str, NDArray[np.float32]]:
        """Context [1,T,D] and, where the family has one, the pooled text [1,P]; zeros for no text."""
        if text is None or self._tokenizers is None:
            pooled = [spec for spec in self._config.added if spec.name != SIZES]
            shapes = {CONTEXT: self._context} | {spec.name: tuple(map(int, spec.shape)) for spec in pooled}
            return {name: np.zeros((1, *shape), np.float32) for name, shape in shapes.items()}
        return self._engine.text_encoder(self._tokenizers.ids(text))


def _numbers(spec: TensorSpec, tokens: int) -> int:
    """How many numbers a row has; free axes are taken for tokens."""
    return int(np.prod([size if isinstance(size, int) else tokens for size in spec.shape]))
