"""runtime.json, and bundles of both formats: what readers ignore, refuse and keep."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_engine import fake_bundle
from format1 import write_format_1
from paper_bundle import fill

from ddm_rt.bundle import INDEX, Bundle, add_directory, bundle_id, entries, write_bundle
from ddm_rt.config import ModelConfig, Precision, RunConfig
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.files import write_atomic
from ddm_rt.runtime import RUNTIME, TRAINING, read_runtime, runtime_json

Tree = dict[str, Any]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "bundle", lambda directory: fill(directory, (0.25, 0.75)), {"preset": "test"})


def rewrite(path: Path, name: str, change: Callable[[Tree], object]) -> None:
    """Change a file of the bundle at `path`, and its index so that hashes and id are right again."""
    tree = json.loads((path / name).read_bytes())
    change(tree)
    write_atomic(path / name, json.dumps(tree))
    index = json.loads((path / INDEX).read_bytes())
    index["files"][name] = entries(path, [name])[name].model_dump()
    files = entries(path, index["files"])
    write_atomic(path / INDEX, json.dumps(index | {"bundle_id": bundle_id(files)}))


def test_what_is_written_is_read() -> None:
    bundle = fake_bundle()
    config, schedule = read_runtime(runtime_json(bundle.config, bundle.schedule), Path(RUNTIME))
    assert config == bundle.config
    assert schedule.config == bundle.schedule.config
    np.testing.assert_array_equal(schedule.alphas_cumprod, bundle.schedule.alphas_cumprod)


def test_the_levels_stand_on_one_line(bundle: Bundle) -> None:
    """So that a person can read the file."""
    lines = (bundle.path / RUNTIME).read_text().splitlines()
    assert len(lines) < 100
    [levels] = [line for line in lines if "alphas_cumprod" in line]
    assert len(json.loads(levels.split(":")[1])) == 1000


PLACES: dict[str, Callable[[Tree], Tree]] = {
    "the file": lambda tree: tree,
    "sampling": lambda tree: tree["sampling"],
    "schedule": lambda tree: tree["schedule"],
    "a code": lambda tree: tree["codes"][0],
    "a tensor": lambda tree: tree["cond"][0],
}


@pytest.mark.parametrize("place", PLACES)
def test_unknown_fields_are_ignored_at_every_level(bundle: Bundle, place: str) -> None:
    rewrite(bundle.path, RUNTIME, lambda tree: PLACES[place](tree).update(invented={"by": ["a", "newer", "version"]}))
    opened = Bundle.load(bundle.path)
    assert opened.config == bundle.config
    assert opened.bundle_id != bundle.bundle_id  # the file is part of what the id stands for


@pytest.mark.parametrize("more", [{}, {"precision": "nf4"}, {"sampling": {"sampler": "flow"}}, {"codes": None}])
def test_a_feature_that_is_required_and_unknown_is_refused(bundle: Bundle, more: Tree) -> None:
    """Before anything else is read: such a feature may bring values that this version can't read either."""
    rewrite(bundle.path, RUNTIME, lambda tree: tree.update(requires=["sampling.threshold"], **more))
    words = r"runtime\.json: field requires: the bundle needs 'sampling.threshold', which this version doesn't know"
    with pytest.raises(BundleError, match=words):
        Bundle.load(bundle.path)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda tree: tree.update(schema_version=2), "schema_version"),
        (lambda tree: tree.pop("latent_shape"), "latent_shape"),
        (lambda tree: tree["sampling"].update(sampler="plms"), r"sampling\.sampler"),
        (lambda tree: tree["schedule"].update(beta_start=2), r"schedule\.beta_start"),
        (lambda tree: tree["schedule"].update(beta_end=0.019), r"schedule\.alphas_cumprod: differs"),
        (lambda tree: tree["schedule"].pop("alphas_cumprod"), r"schedule\.alphas_cumprod: expected a list of numbers"),
        (lambda tree: tree["schedule"]["alphas_cumprod"].pop(), r"schedule\.alphas_cumprod: 999 values"),
        (lambda tree: tree["codes"].reverse(), "codes: expected codes 0 to 1 in order$"),
        (lambda tree: tree["codes"][1].update(top_code=2), "codes: top codes must be numbered from 0 without gaps"),
        (lambda tree: tree["codes"][1].update(share_in_top=1.5), r"codes\.1\.share_in_top"),
    ],
)
def test_a_wrong_field_is_named(bundle: Bundle, change: Callable[[Tree], object], field: str) -> None:
    rewrite(bundle.path, RUNTIME, change)
    with pytest.raises(DdmError, match=rf"runtime\.json: field {field}"):
        Bundle.load(bundle.path)


def test_another_format_is_refused_before_the_index_is_read(bundle: Bundle) -> None:
    write_atomic(bundle.path / INDEX, '{"schema_version": 3, "files": [], "bundle_id": {"blake3": "..."}}')
    with pytest.raises(BundleError, match="schema_version is 3; this version reads 1 and 2"):
        Bundle.load(bundle.path)


def test_settings_that_are_written_anew_keep_what_this_version_does_not_know(bundle: Bundle, tmp_path: Path) -> None:
    rewrite(bundle.path, RUNTIME, lambda tree: tree.update(invented={"alphas": 3}))
    opened = Bundle.load(bundle.path)
    (tmp_path / "half").mkdir()
    opened.write_settings(tmp_path / "half", precision=Precision.FP16)
    tree = json.loads((bundle.path / RUNTIME).read_bytes())
    assert json.loads((tmp_path / "half" / RUNTIME).read_bytes()) == tree | {"precision": "fp16"}
    assert (tmp_path / "half" / TRAINING).read_bytes() == (bundle.path / TRAINING).read_bytes()


def test_training_is_read_when_it_is_asked_for(bundle: Bundle) -> None:
    """A bundle samples whatever its training says; a newer version's options are ignored."""
    rewrite(bundle.path, TRAINING, lambda tree: tree.update(run={"train": {"invented": 3, "seed": 5}}, invented=1))
    opened = Bundle.load(bundle.path)
    assert opened.bundle_id == bundle.bundle_id
    assert opened.training.run == RunConfig(train={"seed": 5})
    rewrite(bundle.path, TRAINING, lambda tree: tree.update(run={"train": {"steps": -1}}))
    opened = Bundle.load(bundle.path)
    with pytest.raises(DdmError, match=r"training\.json: field run\.train\.steps"):
        _ = opened.training


def test_the_model_is_read_whole(bundle: Bundle) -> None:
    """Of a network that this version doesn't know it would build another one."""
    rewrite(bundle.path, TRAINING, lambda tree: tree.update(model={"patch": 2}, run={}))
    assert Bundle.load(bundle.path).model == ModelConfig(patch=2)
    rewrite(bundle.path, TRAINING, lambda tree: tree.update(model={"patch": 2, "swiglu": True}))
    opened = Bundle.load(bundle.path)
    assert opened.training.model == {"patch": 2, "swiglu": True}
    with pytest.raises(DdmError, match=r"training\.json: model: field swiglu"):
        _ = opened.model


def test_a_bundle_without_its_training_samples(bundle: Bundle) -> None:
    """The index need not list the file."""
    index = json.loads((bundle.path / INDEX).read_bytes())
    del index["files"][TRAINING]
    write_atomic(bundle.path / INDEX, json.dumps(index))
    opened = Bundle.load(bundle.path)
    assert opened.bundle_id == bundle.bundle_id
    with pytest.raises(BundleError, match=r"bundle\.json: field files: training\.json is not listed"):
        _ = opened.training


def test_unknown_fields_of_the_index_stay_when_something_is_added(bundle: Bundle) -> None:
    index = json.loads((bundle.path / INDEX).read_bytes())
    index["signature"] = "of a newer version"
    index["files"][RUNTIME]["mode"] = "rw"
    write_atomic(bundle.path / INDEX, json.dumps(index))
    add_directory(Bundle.load(bundle.path), "reports/x", lambda directory: write_atomic(directory / "a.txt", "a"))
    after = json.loads((bundle.path / INDEX).read_bytes())
    assert after["signature"] == "of a newer version"
    assert after["files"][RUNTIME]["mode"] == "rw"
    assert "reports/x/a.txt" in after["files"]


def test_format_1_says_the_same(bundle: Bundle, tmp_path: Path) -> None:
    old = write_format_1(bundle, tmp_path / "old", run=RunConfig().model_dump(mode="json"))
    assert old.index.schema_version == 1
    assert (old.config, old.codes) == (bundle.config, bundle.codes)
    np.testing.assert_array_equal(old.schedule.alphas_cumprod, bundle.schedule.alphas_cumprod)
    assert old.runtime_path.name == "config.json"
    assert old.training.run == RunConfig()
    assert old.model == ModelConfig()
    assert old.training.discovery.leaves == ()


def test_training_of_format_1_is_opaque_too(bundle: Bundle, tmp_path: Path) -> None:
    run = RunConfig().model_dump(mode="json")
    run["train"]["invented"] = "by a newer version"
    assert write_format_1(bundle, tmp_path / "new option", run=run).training.run == RunConfig()
    broken = write_format_1(bundle, tmp_path / "broken", run={"train": 3})
    with pytest.raises(DdmError, match=r"config\.json: field run\.train"):
        _ = broken.training


def test_a_student_of_format_1_takes_no_negative_prompt(bundle: Bundle, tmp_path: Path) -> None:
    assert write_format_1(bundle, tmp_path / "plain", run={"distill": None}).config.takes_negative_prompt
    assert not write_format_1(bundle, tmp_path / "student", run={"distill": {}}).config.takes_negative_prompt


@pytest.mark.parametrize("num_codes", [3, 2**63 - 1])
def test_codes_of_format_1_that_do_not_fit_are_named(bundle: Bundle, tmp_path: Path, num_codes: int) -> None:
    words = rf"codes\.json: field leaves: expected codes 0 to {num_codes - 1} in order, as config\.json says"
    with pytest.raises(BundleError, match=words):
        write_format_1(bundle, tmp_path / "old", num_codes=num_codes)


@pytest.mark.parametrize("name", ["config.json", "schedule.json", "codes.json"])
@pytest.mark.parametrize("content", [b"{}", b"not json", b'{"unknown": NaN}'])
def test_a_malformed_file_of_format_1_is_named(bundle: Bundle, tmp_path: Path, name: str, content: bytes) -> None:
    old = write_format_1(bundle, tmp_path / "old").path
    (old / name).write_bytes(content)
    index = json.loads((old / INDEX).read_bytes())
    index["files"][name] = entries(old, [name])[name].model_dump()
    write_atomic(old / INDEX, json.dumps(index | {"bundle_id": bundle_id(entries(old, index["files"]))}))
    with pytest.raises(DdmError, match=name):
        Bundle.load(old)
