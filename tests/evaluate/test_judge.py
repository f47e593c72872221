"""A judge from any ONNX file: what it reads, how it fits images to the graph, and what it refuses."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tolerances import STATISTIC_ABS

from ddm_rt.errors import DdmError
from ddm_rt.evaluate.judge import Judge


def grey(*levels, size=8):
    return np.stack([np.full((size, size, 3), level, np.uint8) for level in levels])


def test_reads_metadata(write_judge):
    judge = Judge.load(write_judge(name="bright.onnx"))
    assert (judge.name, judge.classes, judge.feature_space) == ("bright", ("dark", "light"), "features")
    assert judge.confusion is not None
    assert judge.confusion.tolist() == [[9, 1], [0, 10]]
    assert judge.accuracy == pytest.approx(19 / 20, abs=STATISTIC_ABS)
    assert (judge.channels, judge.size) == (1, (8, 8))
    assert len(judge.sha256) == 64


def test_predict(write_judge):
    judge = Judge.load(write_judge())
    labels, probabilities, features = judge.predict(grey(0, 255, 60, 200, 40))
    assert labels.tolist() == ["dark", "light", "dark", "light", "dark"]
    assert probabilities.shape == (5, 2)
    assert np.allclose(probabilities.sum(axis=1), 1)
    assert np.allclose(features[:2], [[-1], [1]])


def test_batches_change_nothing(write_judge):
    judge = Judge.load(write_judge())
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)
    whole, parts = judge.predict(images), judge.predict(images, batch_size=2)
    assert all(np.array_equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_float_and_uint8_agree(write_judge):
    judge = Judge.load(write_judge())
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    floats = images.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(127.5) - 1
    assert np.array_equal(judge.predict(images).features, judge.predict(floats).features)


@pytest.mark.parametrize(("channels", "given"), [(3, 1), (1, 3), (3, 3)])
def test_channels(write_judge, channels, given):
    judge = Judge.load(write_judge(shape=("B", channels, 8, 8)))
    features = judge.predict(grey(255, 0)[..., :given]).features
    assert np.allclose(features, np.array([[1] * channels, [-1] * channels]))


@pytest.mark.parametrize("size", [5, 8, 20])
def test_resizes_to_fixed_size(write_judge, size):
    judge = Judge.load(write_judge())
    images = grey(0, 255, size=size)
    images[0, : size // 5] = 255  # mostly dark still
    assert judge.predict(images).labels.tolist() == ["dark", "light"]


def test_free_size_is_kept(write_judge):
    judge = Judge.load(write_judge(shape=("B", 1, "H", "W")))
    images = np.full((1, 3, 5, 3), 255, np.uint8)
    assert judge.size == (None, None)
    assert np.allclose(judge.predict(images).features, 1)


def test_logits_stand_in_for_features_by_name(write_judge):
    judge = Judge.load(write_judge(outputs=("scores",)))
    assert judge.feature_space == "logits"
    assert judge.predict(grey(0)).features.shape == (1, 2)


def outside(path, location):
    """The judge at `path` gets its weight from `location`; the file that belongs there."""
    model = onnx.load(path)
    (tensor,) = (each for each in model.graph.initializer if each.name == "weight")
    path.with_name("moved").write_bytes(numpy_helper.to_array(tensor).tobytes())
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    path.write_bytes(model.SerializeToString())
    return path.with_name("moved")


@pytest.mark.parametrize("location", ["j.onnx_data", "weights.bin", "deeper/" + 130 * "x"])
def test_weights_beside_a_graph_are_part_of_its_digest(write_judge, location):
    path = write_judge()
    weights = path.parent / location
    weights.parent.mkdir(exist_ok=True)
    outside(path, location).rename(weights)
    before = Judge.load(path)
    assert before.predict(grey(255)).labels.tolist() == ["light"]
    weights.write_bytes(weights.read_bytes() + b"more")
    assert Judge.load(path).sha256 != before.sha256
    weights.unlink()
    with pytest.raises(DdmError, match="not an ONNX graph that can be run"):
        Judge.load(path)


@pytest.mark.parametrize("location", ["../moved", "{folder}/moved"])
def test_weights_of_another_folder(write_judge, tmp_path, location):
    (tmp_path / "inner").mkdir()
    path = write_judge(name="inner/j.onnx")
    outside(path, location.format(folder=tmp_path)).rename(tmp_path / "moved")
    with pytest.raises(DdmError, match=r"j\.onnx: its weights lie in .*; expected a file in the folder of the graph"):
        Judge.load(path)


def test_classes_given(write_judge):
    path = write_judge(metadata={})
    assert Judge.load(path, classes=["a", "b"]).classes == ("a", "b")
    assert Judge.load(path, classes=["a", "b"]).accuracy is None
    with pytest.raises(DdmError, match="name the classes"):
        Judge.load(path)
    with pytest.raises(DdmError, match="2 logits but 3 classes"):
        Judge.load(path, classes=["a", "b", "c"])


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"classes": "[dark"}, "not JSON"),
        ({"classes": '"dark"'}, "list of strings"),
        ({"classes": "[1, 2]"}, "list of strings"),
        ({"classes": '["a", "a"]'}, "different names"),
        ({"classes": '["a", "b"]', "confusion": "[[1, 2]]"}, "not a table of counts"),
        ({"classes": '["a", "b"]', "confusion": "[[1, 2], [3]]"}, "another shape"),
        ({"classes": '["a", "b"]', "confusion": "[[1, -2], [3, 4]]"}, "not a table of counts"),
        ({"classes": '["a", "b"]', "confusion": "[[0.5, 0.5], [0, 1]]"}, "not a table of counts"),
        ({"classes": '["a", "b"]', "confusion": f"[[{10**20}, 0], [0, 1]]"}, "not a table of counts"),
        ({"classes": '["a", ""]'}, "'' is no name"),
        ({"classes": '["a", "\\ud800"]'}, "is no name"),
        ({"classes": '["a", "b"]', "training": '["people"]'}, "'training' is no object"),
        ({"classes": 200_000 * "["}, "not JSON"),
        ({"classes": '["a", "b"]', "preprocessing": '{"resample": "antialias"}'}, "field resample"),
        ({"classes": '["a", "b"]', "preprocessing": '{"mean": [0, 0], "std": [1, 1]}'}, "3 numbers"),
        ({"classes": '["a", "b"]', "preprocessing": '{"mean": [0.5], "std": [0]}'}, "without zeros"),
        ({"classes": '["a", "b"]', "preprocessing": '{"mean": [0.5]}'}, "mean and std"),
        ({"classes": '["a", "b"]', "preprocessing": '{"size": [0, 8]}'}, "field size.0"),
        ({"classes": '["a", "b"]', "preprocessing": '{"mean": [0, 0, 0], "std": [1, 1, 1]}'}, "3 colours"),
    ],
)
def test_bad_metadata_names_the_file(write_judge, metadata, message):
    with pytest.raises(DdmError, match=rf"j\.onnx.*{message}"):
        Judge.load(write_judge(metadata=metadata))


def test_classes_that_contradict_the_file(write_judge):
    with pytest.raises(DdmError, match="were given"):
        Judge.load(write_judge(), classes=["light", "dark"])


@pytest.mark.parametrize("shape", [("B", 64), (2, 1, 8, 8), ("B", 2, 8, 8)])
def test_wrong_input(tmp_path, shape):
    path = tmp_path / "j.onnx"
    node = helper.make_node("Flatten", ["image"], ["logits"])
    graph = helper.make_graph(
        [node],
        "judge",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    with pytest.raises(DdmError, match=r"j\.onnx: input"):
        Judge.load(path, classes=["a", "b"])


def test_missing_and_foreign_files(tmp_path, write_judge):
    with pytest.raises(DdmError, match=r"no such file; shipped judges: digits"):
        Judge.load(tmp_path / "none.onnx")
    for content in (b"", b"not an ONNX graph", write_judge().read_bytes()[:80]):
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(DdmError, match=r"bad\.onnx: not an ONNX graph"):
            Judge.load(tmp_path / "bad.onnx")


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((0, 8, 8, 3), np.uint8),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((2, 3, 8, 8), np.uint8),
        np.zeros((2, 8, 8, 3), np.int64),
        np.zeros((2, 8, 8, 3), np.float32),
        np.full((2, 3, 8, 8), 2.0),
        np.full((2, 3, 8, 8), np.nan),
    ],
)
def test_bad_images(write_judge, images):
    with pytest.raises(DdmError, match="images"):
        Judge.load(write_judge()).predict(images)


def test_an_image_is_fitted_to_a_size_that_is_no_square(write_judge):
    judge = Judge.load(write_judge(shape=("B", 1, 4, 8)))
    brighter = np.broadcast_to(np.linspace(-1, 1, 16, dtype=np.float32), (2, 1, 12, 16))  # to the right
    fitted = judge._fit(brighter)
    assert fitted.shape == (2, 1, 4, 8)
    assert (np.diff(fitted, axis=3) > 0).all()
    assert np.ptp(fitted, axis=2).max() == 0
