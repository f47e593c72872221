"""A fake engine over numpy with a toy denoiser, and a bundle to go with it that has no files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ddm_rt.bundle import Bundle, Index
from ddm_rt.config import PredictionType, SamplingConfig, ScheduleConfig
from ddm_rt.engine.host import HostArrays
from ddm_rt.runtime import Factor, Leaf, RuntimeConfig, TensorSpec
from ddm_rt.schedule import Schedule

Array = NDArray[Any]

LATENT_SHAPE = (4, 4, 4)  # patches of 2 x 2 grey pixels: images of 8 x 8
Quirk = Literal["none", "batch size", "position", "last position", "neighbours", "size 1"]


class FakeEngine(HostArrays):
    """Deterministic, elementwise arithmetic; `quirk` is what else its denoiser's result depends on."""

    backend, precision, threads, max_batch, max_pixels = "fake", "fp32", 1, None, None

    def __init__(self, quirk: Quirk = "none") -> None:
        self.quirk = quirk
        self.versions = {"numpy": np.__version__}
        self.conditioned: list[int] = []  # the code of each conditioner call
        self.denoised: list[int] = []  # the size of each denoiser call
        self.encoded: list[bytes] = []  # the token ids of each text encoder call

    def text_encoder(self, input_ids: Mapping[str, Array]) -> dict[str, Array]:
        """Context [1, T, 5], and pooled text [1, 2] where there are two encoders; another text gives other numbers."""
        for ids in input_ids.values():
            assert ids.shape[0] == 1
            assert ids.dtype == np.int64
        self.encoded.append(b"".join(ids.tobytes() for ids in input_ids.values()))
        ids = sum(input_ids.values())
        context = np.sin(ids[..., None] * np.arange(1, 6) + np.arange(ids.shape[1])[:, None]).astype(np.float32)
        pooled = {"text_embeds": context[:, 1:3].sum(2)} if len(input_ids) > 1 else {}
        return {"context": context, **pooled}

    def conditioner(
        self, context: Array, code: Array, indicator_scale: Array, added: Mapping[str, Array]
    ) -> dict[str, Array]:
        assert len(context) == len(code) == len(indicator_scale) == 1
        self.conditioned.append(int(code[0]))
        # Nothing where there is no text.
        text = 0.1 * np.sin(context.sum((1, 2))) + sum(0.1 * np.sin(value.sum(1)) for value in added.values())
        return {"token": np.stack([0.3 * np.sin(code + 2.0) + text, indicator_scale], 1).astype(np.float32)}

    def denoiser(self, x_t: Array, t: Array, cond: Mapping[str, Array]) -> Array:
        batch = len(x_t)
        assert x_t.dtype == t.dtype == cond["token"].dtype == np.float32
        assert len(t) == len(cond["token"]) == batch
        self.denoised.append(batch)
        token = cond["token"].reshape(batch, 2, 1, 1)
        out = np.float32(0.5) * x_t + token[:, :1] * token[:, 1:] + t.reshape(-1, 1, 1, 1) / np.float32(4000)
        disturbance = np.float32(2.0**-6)  # two grey levels
        if self.quirk == "batch size":
            out = out + disturbance * np.float32(batch / 16)
        elif self.quirk == "position":
            out = out + disturbance * np.arange(batch, dtype=np.float32).reshape(-1, 1, 1, 1)
        elif self.quirk == "last position" and batch > 1:
            out = out.copy()
            out[-1] += disturbance
        elif self.quirk == "neighbours":
            out = out + disturbance * x_t.mean()
        elif self.quirk == "size 1" and batch == 1:
            out = out + disturbance
        return out

    def decoder(self, x0: Array) -> NDArray[np.float32]:
        batch, _, height, width = x0.shape
        pixels = x0.reshape(batch, 1, 2, 2, height, width).transpose(0, 1, 4, 2, 5, 3)
        return np.ascontiguousarray(pixels.reshape(batch, 1, 2 * height, 2 * width))


def fake_bundle(num_codes: int = 4, num_top_codes: int = 2, prompt_free: bool = True, **sampling: Any) -> Bundle:
    """Codes 0, 1, ... in turn over the top codes, equal shares."""
    per_top = num_codes // num_top_codes
    leaves = tuple(
        Leaf(code=k, top_code=k % num_top_codes, size=10, share_in_top=1 / per_top) for k in range(num_codes)
    )
    return _bundle(leaves, (), prompt_free, sampling)


def factor_bundle(*, missing: bool = False, prompt_free: bool = True, **sampling: Any) -> Bundle:
    """Two factors, gender (2 values) and hair (3), whose cells are the codes; `missing`: but for female and grey, so
    that the other cells are raked. The cells of the second top code come in turned order.
    """
    cells = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (1, 0))
    shares: tuple[float, ...] = (1 / 3,) * 6
    if missing:
        cells, shares = ((0, 0), (0, 1), (1, 1), (1, 2), (1, 0)), (0.5, 0.5, 1 / 6, 2 / 3, 1 / 6)
    leaves = tuple(
        Leaf(code=k, top_code=cell[0], size=10, share_in_top=share)
        for k, (cell, share) in enumerate(zip(cells, shares, strict=True))
    )
    factors = tuple(
        Factor(name=name, values=values, value_of=tuple(cell[i] for cell in cells))
        for i, (name, values) in enumerate((("gender", ("female", "male")), ("hair", ("dark", "fair", "grey"))))
    )
    return _bundle(leaves, factors, prompt_free, sampling)


def _bundle(
    leaves: tuple[Leaf, ...], factors: tuple[Factor, ...], prompt_free: bool, sampling: dict[str, Any]
) -> Bundle:
    config = RuntimeConfig(
        name="fake",
        latent_shape=LATENT_SHAPE,
        image_size=8,
        channels=1,
        size_multiple=4,
        context_shape=(3, 5),
        prompt_free=prompt_free,
        cond=(TensorSpec(name="token", shape=(2,)),),
        sampling=SamplingConfig(**({"num_steps": 4} | sampling)),
        codes=leaves,
        factors=factors,
    )
    return Bundle(
        path=Path("fake-bundle"),
        index=Index(schema_version=2, bundle_id="ab" * 32, files={}, provenance={}),
        config=config,
        schedule=Schedule.from_config(ScheduleConfig(prediction_type=PredictionType.SAMPLE)),
    )
