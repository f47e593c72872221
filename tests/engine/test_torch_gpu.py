"""What the torch engine does on a GPU, as far as it shows without one: half precision, layouts, copies, CUDA graphs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tolerances import HALF_REL
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ddm_rt.bundle import Bundle
from ddm_rt.config import Precision
from ddm_rt.engine.devices import Device
from ddm_rt.engine.torch import weights
from ddm_rt.engine.torch.eager import Eager, signature
from ddm_rt.engine.torch.engine import TorchEngine
from ddm_rt.engine.torch.graphs import Graphs
from ddm_rt.errors import DdmError
from ddm_rt.half import STATISTICS, TRIGONOMETRY
from ddm_rt.kernels.guided_step import reference
from ddm_rt.kernels.philox import normal_elementwise
from ddm_rt.sample.loop.slots import Slots
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.sample.request import Request

CPU = Device("cpu")
# torch's ops that keep statistics in float32 within, whatever they are given.
WITHIN = {"native_group_norm", "native_batch_norm", "native_layer_norm"}


class Watch(TorchDispatchMode):
    """Calls `seen` with the name, the arguments and the result of every op."""

    def __init__(self, seen: Callable[[str, Sequence[Any], Mapping[str, Any], Any], None]) -> None:
        super().__init__()
        self._seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._seen(func.overloadpacket.__name__, args, kwargs or {}, result)
        return result


def latents(pipeline: Pipeline, n: int, **request: Any) -> NDArray[np.float32]:
    """What the sampling loop ends with."""
    slots = pipeline.slots(pipeline.bundle.config.latent_shape)
    join(slots, pipeline, n, **request)
    found: dict[int, NDArray[np.float32]] = {}
    while len(slots):
        numbers, samples = slots.tick()
        found |= dict(zip(numbers, [] if samples is None else np.asarray(samples), strict=True))
    return np.stack([found[number] for number in sorted(found)])


def join(slots: Slots, pipeline: Pipeline, n: int = 1, **request: Any) -> range:
    with pipeline.prepare(Request(n=n, **request)) as prepared:
        wanted = range(n)
        return slots.admit(
            prepared.table,
            pipeline.first_states(prepared, wanted),
            prepared.jobs,
        )


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16])
def test_half_precision_is_near_float32(tiny_bundle: Bundle, precision: Precision) -> None:
    engines = [TorchEngine(tiny_bundle, 1, CPU, each) for each in (Precision.FP32, precision)]
    rng = np.random.default_rng(0)
    x_t, t = rng.standard_normal((4, 4, 8, 8), np.float32), np.array([0, 20, 500, 999], np.float32)
    context, code, scale = rng.standard_normal((4, 2, 16), np.float32), np.array([-1, 0, 3, 1]), np.ones(4, np.float32)
    want, got = (
        engine.denoiser(engine.array(x_t), engine.array(t), engine.conditioner(context, code, scale, {})).numpy()
        for engine in engines
    )
    assert engines[1].precision == precision
    assert np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)) <= HALF_REL
    assert not np.array_equal(got, want)


@pytest.mark.parametrize("family", ["tiny", "sd15", "sdxl"])
def test_what_the_table_names_is_computed_in_float32(
    family: str, tiny_bundle: Bundle, latent_bundles: Mapping[str, Bundle]
) -> None:
    bundle = tiny_bundle if family == "tiny" else latent_bundles[family]
    pipeline = Pipeline(bundle, TorchEngine(bundle, 1, CPU, Precision.BF16))
    prompt = {} if bundle.config.prompt_free else {"prompt": "ab cd"}
    named = set(TRIGONOMETRY.values()) | set(STATISTICS.values())
    seen: dict[str, set[torch.dtype]] = {}

    def see(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        if name in named - WITHIN:
            seen.setdefault(name, set()).update(x.dtype for x in args if isinstance(x, Tensor))

    with Watch(see):
        latents(pipeline, 1, num_steps=1, **prompt)
    assert {"sin", "cos"} <= seen.keys()
    assert {name: dtypes for name, dtypes in seen.items() if dtypes & {torch.bfloat16, torch.float16}} == {}


@pytest.mark.parametrize("family", ["tiny", "sd15"])
def test_every_convolution_gets_channels_last(
    family: str, tiny_bundle: Bundle, latent_bundles: Mapping[str, Bundle]
) -> None:
    bundle = tiny_bundle if family == "tiny" else latent_bundles[family]
    engine = TorchEngine(bundle, 1, CPU, Precision.BF16)
    layouts: dict[str, bool] = {}

    def hook(name: str) -> Callable[..., None]:
        def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            layouts[name] = args[0].is_contiguous(memory_format=torch.channels_last)

        return look

    for part in engine._networks.parts.values():  # type: ignore[attr-defined]
        for name, module in part.module.named_modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_pre_hook(hook(name))
    prompt = {} if bundle.config.prompt_free else {"prompt": "ab cd"}
    Pipeline(bundle, engine).generate(n=2, num_steps=1, **prompt)
    assert len(layouts) > 10
    assert [name for name, last in layouts.items() if not last] == []


def test_the_fused_op_runs_in_every_layer_that_has_the_indicator(latent_bundles: Mapping[str, Bundle]) -> None:
    bundle = latent_bundles["sd15"]
    engine = TorchEngine(bundle, 1, CPU, Precision.BF16)
    model = engine._networks.parts["denoiser"].module  # type: ignore[attr-defined]
    layers = [name for name, _ in model.named_modules() if name.endswith("attn2")]
    calls: list[set[torch.dtype]] = []

    def see(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        if name == "indicator_attention":
            calls.append({x.dtype for x in args[:5]})

    pipeline = Pipeline(bundle, engine)
    _ = pipeline.buckets
    with Watch(see):
        latents(pipeline, 1, prompt="ab cd", num_steps=1)
    assert len(layers) > 1
    assert calls == [{torch.bfloat16}] * len(layers)


def test_nothing_comes_over_between_the_first_step_and_the_last_for_which_torchs_meta_device_stands_in(
    tiny_bundle: Bundle,
) -> None:
    """A meta tensor has no numbers: whoever asked for one would fail. A copy from the host would be seen."""
    engine = TorchEngine(tiny_bundle, 1, CPU, Precision.BF16)
    engine.device = torch.device("meta")
    for part in engine._networks.parts.values():  # type: ignore[attr-defined]
        part.module.to(engine.device)
    pipeline = Pipeline(tiny_bundle, engine)
    pipeline._sizes.groups[tiny_bundle.config.latent_shape] = ((1, 2, 4, 8),)
    slots = pipeline.slots(tiny_bundle.config.latent_shape)
    join(slots, pipeline, 3, num_steps=6)
    join(slots, pipeline, 1, num_steps=6, sampler="ddpm")
    slots.tick()
    copies: list[str] = []

    def see(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        sides = {x.device.type for x in (*args, result) if isinstance(x, Tensor)}
        if name == "_local_scalar_dense" or len(sides) > 1:
            copies.append(name)

    with Watch(see):
        for _ in range(4):
            slots.tick()
        assert copies == []
        slots.tick()
    assert len(slots) == 0


class Moved(Exception):
    """A captured graph was replayed with a tensor at another address."""


class FakeGraph:
    """Does again what it did, and looks where the tensors lie that it didn't make itself."""

    def __init__(self, run: Callable[[], tuple[Tensor, ...]]) -> None:
        self._run = run
        self.outputs, self._addresses = self._watched()

    def replay(self) -> None:
        again, addresses = self._watched()
        if addresses != self._addresses:
            raise Moved
        for output, new in zip(self.outputs, again, strict=True):
            output.copy_(new)

    def _watched(self) -> tuple[tuple[Tensor, ...], list[int]]:
        made: set[int] = set()
        kept: list[Any] = []  # so that no address comes twice
        addresses: list[int] = []

        def see(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
            given = torch.utils._pytree.tree_leaves((args, kwargs))
            addresses.extend(
                x.data_ptr() for x in given if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in made
            )
            results = [x for x in torch.utils._pytree.tree_leaves(result) if isinstance(x, Tensor)]
            own = {x.untyped_storage().data_ptr() for x in given if isinstance(x, Tensor)}
            made.update({x.untyped_storage().data_ptr() for x in results} - own)
            kept.append(results)

        with Watch(see):
            outputs = self._run()
        return outputs, addresses


def capture(run: Callable[[], tuple[Tensor, ...]]) -> tuple[FakeGraph, tuple[Tensor, ...]]:
    graph = FakeGraph(run)
    return graph, graph.outputs


def test_200_random_joins_and_leaves_with_a_fake_cuda_graph_that_fails_when_an_address_moves(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The noise as it is made on a device: numpy's own is no op that could be captured.
    monkeypatch.setattr(reference, "normal_like", normal_elementwise)
    plain = Pipeline(tiny_bundle, TorchEngine(tiny_bundle, 1, CPU))
    engine = TorchEngine(tiny_bundle, 1, CPU)
    engine._graphs = Graphs(capture)
    pipeline = Pipeline(tiny_bundle, engine)
    rng = np.random.default_rng(0)
    kinds = [
        {"num_steps": 2},
        {"num_steps": 3, "indicator_guidance_scale": 1.0},
        {"num_steps": 2, "sampler": "ddpm"},
        {"num_steps": 4, "sampler": "euler", "indicator_guidance_scale": 0.0},
        {"num_steps": 4, "guidance_interval": (0.25, 0.75)},
        {"num_steps": 3, "apg": (2.0, 0.5)},
    ]
    shape = tiny_bundle.config.latent_shape
    slots = pipeline.slots(shape)
    waiting = [(int(rng.integers(len(kinds))), int(rng.integers(5))) for _ in range(200)]
    wanted = {key: latents(plain, 1, seed=key[1], **kinds[key[0]])[0] for key in set(waiting)}
    names: dict[int, tuple[int, int]] = {}
    finished = dropped = 0
    while waiting or len(slots):
        for _ in range(min(int(rng.integers(4)), len(waiting))):
            kind, seed = waiting.pop()
            names[join(slots, pipeline, 1, seed=seed, **kinds[kind])[0]] = (kind, seed)
        if len(slots) > 1 and rng.random() < 0.2:
            slots.drop({slots.numbers[0]})
            dropped += 1
        numbers, samples = slots.tick()
        for number, sample in zip(numbers, () if samples is None else np.asarray(samples), strict=True):
            assert sample.tobytes() == wanted[names[number]].tobytes()
            finished += 1
    assert finished + dropped == 200
    assert dropped > 10


def test_what_is_replayed_is_the_callers(tiny_bundle: Bundle) -> None:
    """The next replay writes over a graph's own outputs."""
    graphs = Graphs(capture)

    def double(own: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return (2 * own["x"],)

    first = graphs("double", double, {"x": torch.ones(2, 3)}, {"x": 4}, 2)[0]
    second = graphs("double", double, {"x": torch.zeros(3, 3)}, {"x": 4}, 3)[0]
    assert torch.equal(first, torch.full((2, 3), 2.0))
    assert torch.equal(second, torch.zeros(3, 3))


def test_too_little_memory_is_one_error_that_says_what_fits(tiny_bundle: Bundle) -> None:
    engine = TorchEngine(tiny_bundle, 1, CPU)
    networks = engine._networks

    class Small:
        """A mocked GPU whose memory holds two rows."""

        signatures = networks.signatures

        def __call__(self, name: str, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            if name == "denoiser" and len(inputs[0]) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return networks(name, inputs)

    engine._networks = Small()  # type: ignore[assignment]
    said = (
        r"cpu has too little memory for a denoiser call of 4 rows, \[4, 4, 8, 8\]; 2 fit; smaller images or `--mode lat"
    )
    with pytest.raises(DdmError, match=said):
        Pipeline(tiny_bundle, engine).generate(n=1)


@pytest.mark.slow(reason="traces four models")
@pytest.mark.parametrize("family", ["digits", "sd15", "sd21", "sdxl"])
def test_a_denoiser_is_one_graph_without_a_break(family: str, request: pytest.FixtureRequest) -> None:
    if family == "digits":
        bundle = Bundle.load("digits")
    else:
        bundle = request.getfixturevalue("exported_bundles")[family]
    part = Eager.load(bundle, Precision.BF16, torch.device("cpu")).parts["denoiser"]
    taken = signature("denoiser", part).taken
    given = [
        taken(name, torch.zeros(value.shape, dtype=value.dtype))
        for name, value in weights.example(part, bundle.config, 2).items()
    ]
    with torch.no_grad():
        found = torch._dynamo.explain(part.module)(*given)
    assert (found.graph_count, found.graph_break_count, found.break_reasons) == (1, 0, [])
