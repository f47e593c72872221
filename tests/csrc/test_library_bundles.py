"""Bundles and graphs that the embedding library refuses, as Python does, or for its own safety."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundle_formats import change, read, reindex, write, write_format
from c_library import CError, CLibrary
from core_probe import place

from ddm_rt.bundle import Bundle
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.files import asset
from ddm_rt.sample.pipeline import Pipeline

DIGITS = asset("digits")


@pytest.fixture
def digits_2(tmp_path: Path) -> Path:
    """The digits in a bundle of format 2 that a test may change."""
    return write_format(2, DIGITS, tmp_path / "digits")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("decoder.onnx", None),
        ("denoiser.onnx", b"truncated"),
        ("runtime.json", b"{}"),
        ("bundle.json", b"[]"),
        ("bundle.json", None),
    ],
    ids=str,
)
def test_a_damaged_bundle(c_library: CLibrary, digits_2: Path, name: str, content: bytes | None) -> None:
    if content is None:
        (digits_2 / name).unlink()
    else:
        (digits_2 / name).write_bytes(content)
    with pytest.raises(DdmError) as here:
        Pipeline.load(digits_2, backend="onnxruntime")
    with pytest.raises(CError) as there, c_library.pipeline(digits_2):
        pass
    assert place(str(there.value)) == place(str(here.value)) != ""
    assert there.value.status == ("bundle" if isinstance(here.value, BundleError) else "input")


@pytest.mark.parametrize(
    ("name", "fields", "value"),
    [("codes.json", ("leaves",), []), ("config.json", ("num_codes",), 15), (None, ("codes",), [])],
    ids=("no codes", "fewer codes", "no codes for graphs that take them"),
)
def test_a_bundle_of_parts_that_do_not_fit(
    c_library: CLibrary, digits_2: Path, name: str | None, fields: tuple[str, ...], value: Any
) -> None:
    broken = write_format(1, digits_2, digits_2.with_name("broken")) if name else digits_2
    change(broken, name or "runtime.json", *fields, value=value)
    refused_alike(c_library, broken)


def put_decoder(bundle: Path, content: bytes) -> None:
    """In the place of the bundle's own. It is made from no other bundle then: a former one has the same graphs."""
    (bundle / "decoder.onnx").write_bytes(content)
    write(bundle / "bundle.json", read(bundle / "bundle.json") | {"former": []})
    reindex(bundle)


def test_a_file_that_is_no_graph(c_library: CLibrary, digits_2: Path) -> None:
    """Each side names it; what ONNX Runtime says of it isn't asked here."""
    put_decoder(digits_2, b"no graph")
    with pytest.raises(BundleError, match=re.escape(f"{digits_2}/decoder.onnx: not a graph")):
        Pipeline.load(digits_2, backend="onnxruntime")
    with pytest.raises(CError) as there, c_library.pipeline(digits_2):
        pass
    assert str(there.value) == f"{digits_2}/decoder.onnx: not an ONNX graph"
    assert there.value.status == "bundle"


def refused_alike(c_library: CLibrary, broken: Path) -> None:
    with pytest.raises(BundleError) as here:
        Pipeline.load(broken, backend="onnxruntime")
    with pytest.raises(CError) as there, c_library.pipeline(broken):
        pass
    assert place(str(there.value)) == place(str(here.value)) != ""
    assert there.value.status == "bundle"


def test_images_of_too_many_pixels(c_library: CLibrary, digits_2: Path) -> None:
    """Of few latents: their number alone says nothing."""
    change(digits_2, "runtime.json", "image_size", value=2**32)
    change(digits_2, "runtime.json", "latent_shape", value=[16, 1, 1])
    with c_library.pipeline(digits_2) as pipeline, pytest.raises(CError) as caught:
        pipeline.generate(n=1, num_steps=1)
    assert place(str(caught.value)) == "height "


def decoder(node: onnx.NodeProto, **constants: list[int]) -> bytes:
    """A graph of one node, from x0 to image."""
    of_any_size = (onnx.TensorProto.FLOAT, [None] * 4)
    graph = onnx.helper.make_graph(
        [node],
        "decoder",
        [onnx.helper.make_tensor_value_info("x0", *of_any_size)],
        [onnx.helper.make_tensor_value_info("image", *of_any_size)],
        [onnx.numpy_helper.from_array(np.array(value), name) for name, value in constants.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            decoder(onnx.helper.make_node("Gather", ["x0", "first"], ["image"], axis=0), first=[0]),
            "/decoder.onnx: gives [1, 16, 8, 8] for a batch of 2; expected a row for each",
        ),
        (
            decoder(onnx.helper.make_node("RandomNormalLike", ["x0"], ["image"])),
            ": gives other values each time for the same input; its graphs must not draw random numbers",
        ),
        (
            decoder(onnx.helper.make_node("Identity", ["x0"], ["image"])),
            "/decoder.onnx: gives another shape than that of images",
        ),
    ],
    ids=("one row", "random", "latents"),
)
def test_a_decoder_that_gives_no_images(c_library: CLibrary, digits_2: Path, content: bytes, said: str) -> None:
    put_decoder(digits_2, content)
    with c_library.pipeline(digits_2) as pipeline, pytest.raises(CError) as caught:
        pipeline.generate(n=2, num_steps=1)
    assert str(caught.value) == f"{digits_2}{said}"
    assert caught.value.status == "bundle"


def reading(place: str) -> bytes:
    """A decoder with a tensor that lies in another file; there are functions, attributes and branches before it."""
    weights = onnx.helper.make_tensor(
        "weights", onnx.TensorProto.FLOAT, [1], np.ones(1, np.float32).tobytes(), raw=True
    )
    model = onnx.load_model_from_string(decoder(onnx.helper.make_node("Mul", ["x0", "weights"], ["image"])))
    model.graph.initializer.append(weights)
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], place)
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("place", ["weights.bin", "../weights.bin", "calibrations/weights.bin", "/etc/hostname"])
def test_a_graph_reads_no_file_that_is_not_hashed(c_library: CLibrary, digits_2: Path, place: str) -> None:
    put_decoder(digits_2, reading(place))
    path = digits_2 / place
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(np.ones(1, np.float32).tobytes())
    with pytest.raises(CError) as caught, c_library.pipeline(digits_2):
        pass
    assert str(caught.value) == f"{digits_2}/decoder.onnx: reads {place!r}, which bundle.json doesn't list"
    assert caught.value.status == "bundle"


def test_a_graph_reads_a_file_that_is_hashed(c_library: CLibrary, digits_2: Path) -> None:
    (digits_2 / "decoder.onnx.data").write_bytes(np.ones(1, np.float32).tobytes())
    put_decoder(digits_2, reading("./decoder.onnx.data"))
    with c_library.pipeline(digits_2):
        pass


@pytest.mark.parametrize(
    ("fields", "value"),
    [(("text", 0, "max_length"), 2**40), (("context_shape",), [2**20, 2**20])],
    ids=("max_length", "context"),
)
def test_sizes_are_not_taken_on_trust(
    c_library: CLibrary, latent_bundles: Mapping[str, Bundle], tmp_path: Path, fields: tuple[Any, ...], value: Any
) -> None:
    bundle = write_format(2, latent_bundles["sd15"].path, tmp_path / "sd")
    change(bundle, "runtime.json", *fields, value=value)
    with pytest.raises(CError) as caught, c_library.pipeline(bundle):
        pass
    assert str(caught.value).startswith(f"{bundle}/runtime.json: field {fields[0]}")
    assert caught.value.field.startswith(fields[0])
    assert caught.value.status in ("bundle", "input")


def test_a_text_encoder_that_was_written_anew_is_refused(
    c_library: CLibrary, latent_bundles: Mapping[str, Bundle], tmp_path: Path
) -> None:
    """It is opened when the first prompt comes, so after its hash was checked."""
    bundle = write_format(2, latent_bundles["sd15"].path, tmp_path / "sd")
    with c_library.pipeline(bundle) as pipeline:
        graph = bundle / "text_encoder.onnx"
        content = graph.read_bytes()
        graph.unlink()
        graph.write_bytes(content)
        with pytest.raises(CError, match=r"text_encoder\.onnx: was written") as caught:
            pipeline.generate(prompt="a nurse", num_steps=1)
    assert (caught.value.status, caught.value.field) == ("bundle", str(graph))
