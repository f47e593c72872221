"""Weight files: which are taken, and that reading one neither runs what is in it nor half succeeds."""

import contextlib
import json
import pickle
import struct
from pathlib import Path

import adapters
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from ddm_rt.errors import BundleError
from ddm_rt.model.checkpoint import stored

STEMS = ("model", "pytorch_model")


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).touch()


@pytest.mark.parametrize(
    ("present", "variant", "taken"),
    [
        (("model.safetensors", "model.bin"), None, ("model.safetensors",)),
        (("model.bin", "pytorch_model.safetensors"), None, ("model.bin",)),
        (("pytorch_model.bin",), None, ("pytorch_model.bin",)),
        (("model.safetensors", "model.fp16.safetensors"), "fp16", ("model.fp16.safetensors",)),
        (("model.safetensors", "model.fp16.safetensors"), None, ("model.safetensors",)),
        (("model.safetensors", "pytorch_model.fp16.bin"), "fp16", ("pytorch_model.fp16.bin",)),
        (("model.safetensors",), "fp16", ("model.safetensors",)),
    ],
)
def test_which_file_is_taken(
    tmp_path: Path, present: tuple[str, ...], variant: str | None, taken: tuple[str, ...]
) -> None:
    touch(tmp_path, *present)
    assert stored.find(tmp_path, STEMS, variant) == tuple(tmp_path / name for name in taken)


@pytest.mark.parametrize("tag", ["", ".fp16"])
def test_shards_come_in_order_behind_their_index(tmp_path: Path, tag: str) -> None:
    shards = [f"model{tag}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    touch(tmp_path, *shards)
    index = tmp_path / f"model.safetensors.index{tag}.json"
    index.write_text(json.dumps({"weight_map": {"b": shards[1], "a": shards[0], "c": shards[1]}}))
    found = stored.find(tmp_path, STEMS, tag.removeprefix(".") or None)
    assert found == (index, *(tmp_path / name for name in shards))


def test_no_weights_names_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no weights; expected model\.safetensors or \.bin, whole or in shards$"):
        stored.find(tmp_path, STEMS, None)
    touch(tmp_path, "model.fp16.safetensors")
    with pytest.raises(BundleError, match=r"found model\.fp16\.safetensors: give its --variant"):
        stored.find(tmp_path, STEMS, None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "field weight_map"),
        ("[]", "field weight_map"),
        ("{}", "field weight_map"),
        ('{"weight_map": ["a"]}', "field weight_map"),
        ('{"weight_map": {"a": 1}}', "shard 1 is missing"),
        ('{"weight_map": {"a": "model-1.safetensors", "b": 1}}', "field weight_map"),
        ('{"weight_map": {"a": "model-1.safetensors"}}', "shard model-1.safetensors is missing"),
        ('{"weight_map": {"a": "../model.safetensors"}}', "shard ../model.safetensors is missing"),
        ('{"weight_map": {}}', "field weight_map"),
    ],
)
def test_a_malformed_index_of_shards(tmp_path: Path, content: str, said: str) -> None:
    folder = tmp_path / "unet"
    folder.mkdir()
    touch(tmp_path, "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(BundleError) as error:
        stored.find(folder, STEMS, None)
    assert str(folder / "model.safetensors.index.json") in str(error.value)
    assert said in str(error.value)


TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(1, dtype=torch.int64)}


def same(path: Path) -> None:
    found = dict(stored.read(path))
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def test_every_format_gives_the_same_tensors(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "new.safetensors")
    torch.save(TENSORS, tmp_path / "archive.bin")
    torch.save(TENSORS, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": TENSORS, "epoch": 3}, tmp_path / "trainer.bin")
    for name in ("new.safetensors", "archive.bin", "old.bin", "trainer.bin"):
        same(tmp_path / name)


def test_what_a_file_holds_is_never_run(tmp_path: Path) -> None:
    trap = adapters.write_pickle(tmp_path / "trap.bin", tmp_path / "ran")
    with pytest.raises(BundleError, match=r"trap\.bin: not readable as weights alone"):
        dict(stored.read(trap))
    (tmp_path / "plain.bin").write_bytes(pickle.dumps({"a": Path("x")}))
    with pytest.raises(BundleError, match=r"plain\.bin: not readable as weights alone"):
        dict(stored.read(tmp_path / "plain.bin"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("tree", [[torch.zeros(1)], {"a": 1}, {"state_dict": 3}, {1: torch.zeros(1)}])
def test_a_bin_file_of_something_else(tmp_path: Path, tree: object) -> None:
    torch.save(tree, tmp_path / "x.bin")
    with pytest.raises(BundleError, match=r"x\.bin: expected a dictionary of tensors"):
        dict(stored.read(tmp_path / "x.bin"))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_truncated_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"model.{kind}"
    (save_file if kind == "safetensors" else torch.save)(TENSORS, path)
    whole = path.read_bytes()
    for kept in (0, 4, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(BundleError, match=rf"model\.{kind}: not (a )?readable"):
            dict(stored.read(path))


@given(content=st.binary(max_size=60), header=st.booleans(), kind=st.sampled_from(["safetensors", "bin"]))
def test_any_bytes_are_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, header: bool, kind: str
) -> None:
    path = tmp_path_factory.mktemp("bytes") / f"x.{kind}"
    path.write_bytes((struct.pack("<Q", len(content)) if header else b"") + content)
    with contextlib.suppress(BundleError):
        assert not dict(stored.read(path)), "an empty header is a file without tensors"
