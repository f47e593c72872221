"""The torch backend: the model itself behind the contract."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from step_inputs import inputs
from tolerances import DEVICE_FP32_ABS, GUIDED_STEP_FP32_REL

from ddm_rt.bundle import Bundle
from ddm_rt.engine.composed import grey_levels
from ddm_rt.engine.torch.engine import TorchEngine
from ddm_rt.errors import DdmError
from ddm_rt.kernels.guided_step import guided_step
from ddm_rt.model.unet import DDM


@pytest.fixture(autouse=True)
def on_the_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only tests marked `gpu` use a device that is there."""
    if request.node.get_closest_marker("gpu") is None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def forward(engine: TorchEngine) -> torch.Tensor:
    rng = np.random.default_rng(0)
    code, scale = np.array([-1, 0, 3, 1]), np.array([1, 0, 1.5, 1], np.float32)
    cond = engine.conditioner(rng.standard_normal((4, 2, 16), np.float32), code, scale, {})
    x_t, t = rng.standard_normal((4, 4, 8, 8), np.float32), rng.uniform(0, 999, 4).astype(np.float32)
    return engine.denoiser(engine.array(x_t), engine.array(t), cond)


def step(engine: TorchEngine) -> tuple[torch.Tensor, torch.Tensor]:
    outputs, *rest = inputs((3, 4, 8, 8), 2)
    return engine.guided_step([engine.array(output) for output in outputs], *(engine.array(value) for value in rest))


@torch.inference_mode()
def test_is_the_model_bit_for_bit(tiny_bundle: Bundle, tiny_run: Path) -> None:
    config = tiny_bundle.config
    model = DDM(tiny_bundle.model, config.latent_shape, tiny_bundle.codes.shared_of).eval()
    model.load_state_dict(load_file(tiny_run / "weights.safetensors"))
    generator = torch.Generator().manual_seed(0)
    context = torch.randn((4, 2, 16), generator=generator)
    code, scale = torch.tensor([-1, 0, 3, 1]), torch.tensor([1.0, 0.0, 1.5, 1.0])
    x_t, t = torch.randn((4, 4, 8, 8), generator=generator), torch.rand(4, generator=generator) * 999
    want = model(x_t, t, model.condition(context, code, scale))

    engine = TorchEngine(tiny_bundle, 1)
    cond = engine.conditioner(context.numpy(), code.numpy(), scale.numpy(), {})
    got = engine.denoiser(engine.array(x_t.numpy()), engine.array(t.numpy()), cond)
    assert torch.equal(got, want)
    np.testing.assert_array_equal(engine.decoder(got), model.decode(want).numpy())


def test_each_call_uses_the_engines_own_thread_count(tiny_bundle: Bundle) -> None:
    before = torch.get_num_threads()
    try:
        one, two = TorchEngine(tiny_bundle, 1), TorchEngine(tiny_bundle, 2)
        x0 = one.array(np.zeros((1, 4, 8, 8), np.float32))
        for engine in (one, two, one):
            engine.decoder(x0)
            assert torch.get_num_threads() == engine.threads
    finally:
        torch.set_num_threads(before)


def test_arrays_are_copies(tiny_bundle: Bundle) -> None:
    host = np.zeros(3, np.float32)
    array = TorchEngine(tiny_bundle, 1).array(host)
    host[0] = 1
    assert array[0] == 0


@pytest.mark.parametrize("shape", [(3, 2, 9), (4, 5), (2, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_a_series_are_the_entries_and_each_begins_where_triton_expects_it(
    tiny_bundle: Bundle, shape: tuple[int, ...], dtype: type
) -> None:
    host = np.arange(np.prod(shape), dtype=dtype).reshape(shape)
    made = TorchEngine(tiny_bundle, 1).series(host)
    assert len(made) == len(host)
    for array, want in zip(made, host, strict=True):
        np.testing.assert_array_equal(array.numpy(), want)
        assert array.is_contiguous()
        assert (array.data_ptr() - made[0].data_ptr()) % 16 == 0


def test_images_are_what_the_decoder_gives_as_grey_levels(tiny_bundle: Bundle) -> None:
    engine = TorchEngine(tiny_bundle, 1)
    x0 = engine.array(np.random.default_rng(0).standard_normal((3, 4, 8, 8), np.float32))
    np.testing.assert_array_equal(engine.images(x0), grey_levels(engine.decoder(x0)))
    x0[1, 2, 3, 4] = torch.nan
    with pytest.raises(DdmError, match="produced non-finite values"):
        engine.images(x0)


def test_says_what_computes(tiny_bundle: Bundle) -> None:
    engine = TorchEngine(tiny_bundle, 1)
    assert (engine.backend, engine.precision, engine.threads) == ("torch", "fp32", 1)
    assert engine.versions == {"torch": torch.__version__, "diffusers": engine.versions["diffusers"]}


def test_seeds_of_64_bits_make_the_step_of_numpy(tiny_bundle: Bundle) -> None:
    outputs, *rest = inputs((3, 4, 8, 8), 2)
    assert rest[4].max() > np.uint64(2**63)
    for found, want in zip(step(TorchEngine(tiny_bundle, 1)), guided_step(outputs, *rest), strict=True):
        assert found.numpy().tobytes() == want.tobytes()


def test_everything_is_made_on_the_engines_device_for_which_torchs_meta_device_stands_in(tiny_bundle: Bundle) -> None:
    """Tensors of two devices can't meet; a meta tensor has a place and a shape, and no numbers."""
    engine = TorchEngine(tiny_bundle, 1)
    engine.device = torch.device("meta")
    engine._networks.parts["denoiser"].module.to(engine.device)  # type: ignore[attr-defined]
    made = [forward(engine), *step(engine)]
    made.append(engine.concat([engine.take(made[0], np.array([0, 1, 1]))]))
    assert {tensor.device.type for tensor in made} == {"meta"}


@pytest.mark.gpu
def test_a_cuda_device_gives_the_cpus_numbers(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TorchEngine(tiny_bundle, 1)
    assert engine.device.type == "cuda"
    assert engine.versions["device"] == torch.cuda.get_device_name()
    found, again, stepped = forward(engine), forward(engine), step(engine)
    assert torch.equal(found, again)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        host = TorchEngine(tiny_bundle, 1)
    torch.testing.assert_close(found.cpu(), forward(host), rtol=0, atol=DEVICE_FP32_ABS)
    for one, other in zip(stepped, step(host), strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=0, atol=GUIDED_STEP_FP32_REL * 20)  # terms of up to 20
    assert np.isfinite(engine.decoder(found)).all()
