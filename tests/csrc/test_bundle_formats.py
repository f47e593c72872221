"""The embedding library on bundles of both formats, and of later versions of them; Python says the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundle_formats import change, read, reindex, write, write_format
from c_library import CError, CLibrary
from calibration_settings import SETTINGS
from core_probe import CoreProbe, agree, place, python
from embedding_build import Built
from ledger_processes import STREAM, quota
from paper_bundle import fill

from ddm_rt.bundle import Bundle, FileEntry, bundle_id, write_bundle
from ddm_rt.errors import DdmError
from ddm_rt.files import asset
from ddm_rt.sample.balance.ledger import Ledger
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.workflows.upgrade import upgrade_bundle as upgrade

DIGITS = asset("digits")


def opened(bundle: Path) -> dict[str, Any]:
    found = Bundle.load(bundle)
    return {"bundle_id": found.bundle_id, "num_codes": found.codes.num_codes}


def check(core: CoreProbe, bundle: Path) -> Any:
    """What both sides make of a bundle."""
    there = core("bundle", path=str(bundle))
    assert agree(there, python(lambda: opened(bundle)))
    return there


@pytest.fixture(params=[1, 2], ids=["format 1", "format 2"])
def number(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def bundle(tmp_path: Path, number: int) -> Path:
    """Of either format; its graphs are no graphs."""
    return write_format(number, write_bundle(tmp_path / "written", fill, {}).path, tmp_path / "bundle")


@pytest.fixture
def second(tmp_path: Path) -> Path:
    """Of format 2."""
    return write_format(2, write_bundle(tmp_path / "written", fill, {}).path, tmp_path / "bundle")


@pytest.fixture
def digits(tmp_path: Path, number: int) -> Path:
    """That which ships, in either format."""
    return write_format(number, DIGITS, tmp_path / "digits")


def test_both_formats_open(core: CoreProbe, bundle: Path) -> None:
    assert check(core, bundle) == {"bundle_id": read(bundle / "bundle.json")["bundle_id"], "num_codes": 1}


def test_both_formats_give_the_same_images(c_library: CLibrary, digits: Path) -> None:
    python = Pipeline.load(digits, backend="onnxruntime", threads=1)
    with c_library.pipeline(DIGITS) as shipped, c_library.pipeline(digits) as pipeline:
        made, again = (each.generate(n=3, seed=5, num_steps=3, target="code:1=1") for each in (shipped, pipeline))
        assert (made.images == again.images).all()
        assert made.manifest["images"] == again.manifest["images"]
        assert again.manifest["bundle_id"] == read(digits / "bundle.json")["bundle_id"]
        said = pipeline.describe()
        assert said["former_ids"] == list(Bundle.load(digits).index.former_ids)
        here = python.generate(n=3, seed=5, num_steps=3, target="code:1=1")
        assert here.manifest["images"] == again.manifest["images"]


def test_a_training_option_invented_after_the_library_was_built(
    built: Built, c_library: CLibrary, digits: Path, number: int
) -> None:
    name = "config.json" if number == 1 else "training.json"
    tree = read(digits / name)
    tree["run"] |= {"train": {"indicator": "telepathy", "invented": {"depth": 3}}, "invented": 1}
    tree["model"] = {"invented": [None], "unet": 7}
    write(digits / name, tree)
    reindex(digits)
    assert (digits / name).stat().st_mtime > built.shared.stat().st_mtime
    with c_library.pipeline(digits) as pipeline:
        assert len(pipeline.generate(n=2, num_steps=1).codes) == 2
    Pipeline.load(digits, backend="onnxruntime", threads=1)


@pytest.mark.parametrize("content", [b"", b"no JSON", b"[]", b'{"schema_version": 2}'])
def test_training_is_never_read(core: CoreProbe, second: Path, content: bytes) -> None:
    (second / "training.json").write_bytes(content)
    assert reindex(second) == check(core, second)["bundle_id"] == python(lambda: opened(second))["bundle_id"]


def test_training_is_no_part_of_the_id(second: Path) -> None:
    before = read(second / "bundle.json")["bundle_id"]
    change(second, "training.json", "run", value={"preset": "other"})
    assert read(second / "bundle.json")["bundle_id"] == before


@pytest.mark.parametrize("name", ["run", "model"])
@pytest.mark.parametrize("value", [{}, {"train": 3}], ids=str)
def test_format_1s_training_is_any_object(core: CoreProbe, tmp_path: Path, name: str, value: Any) -> None:
    bundle = write_format(1, write_bundle(tmp_path / "written", fill, {}).path, tmp_path / "bundle")
    change(bundle, "config.json", name, value=value)
    assert "bundle_id" in check(core, bundle)


LATER = {"later": {"than": ["this"]}}


def test_unknown_fields_are_left_alone(core: CoreProbe, bundle: Path, number: int) -> None:
    tensor = {"name": "more", "shape": ["tokens", 16], **LATER}
    text = {"tokenizer": "tokenizer/x.json", "input": "ids", "max_length": 77, "pad_id": 0, **LATER}
    leaf = {"code": 0, "top_code": 0, "size": 3, "share_in_top": 1, **LATER}
    name = "config.json" if number == 1 else "runtime.json"
    tree = read(bundle / name)
    tree |= {"later": 1, "added": [tensor], "text": [text], "cond": [tensor]}
    tree["sampling"]["later"] = 1
    if number == 1:
        change(bundle, "codes.json", "leaves", value=[leaf])
        change(bundle, "codes.json", "later", value=1)
        change(bundle, "schedule.json", "later", value=1)
    else:
        tree["codes"] = [leaf]
        tree["schedule"]["later"] = 1
    write(bundle / name, tree)
    reindex(bundle)
    index = read(bundle / "bundle.json") | LATER
    index["files"][name] |= LATER
    for former in index.get("former", []):
        former |= LATER
    write(bundle / "bundle.json", index)
    assert check(core, bundle) == {"bundle_id": index["bundle_id"], "num_codes": 1}


def test_a_former_id_is_of_these_graphs_and_its_own_files(core: CoreProbe, bundle: Path) -> None:
    """Whatever those are called: they take the place of this bundle's."""
    index = read(bundle / "bundle.json")
    names = ("denoiser.onnx", "codes.json", "runtime.json", "plans/no part of the id")
    names += (
        "tokenizer/\U0001f600",
        "tokenizer/\uffff",
        "tokenizer/a.json",
    )  # the id takes them in order of characters
    hashes = {name: f"{i}" * 64 for i, name in enumerate(names)}
    graphs = {name: FileEntry(**entry) for name, entry in index["files"].items() if name.endswith(".onnx")}
    own = {name: FileEntry(sha256=sha256, bytes=0) for name, sha256 in hashes.items()}
    former = {"bundle_id": bundle_id(graphs | own), "files": hashes}
    write(bundle / "bundle.json", index | {"former": [former]})
    assert check(core, bundle)["bundle_id"] == index["bundle_id"]
    hashes["codes.json"] = "f" * 64
    write(bundle / "bundle.json", index | {"former": [former]})
    assert check(core, bundle)["error"].endswith("field former.0.bundle_id does not match the files it lists")


def another_byte(bundle: Path) -> None:
    content = (bundle / "runtime.json").read_bytes()
    (bundle / "runtime.json").write_bytes(content.replace(b"16", b"17", 1))


def without_runtime(bundle: Path) -> None:
    (bundle / "runtime.json").unlink()


def with_runtime_unlisted(bundle: Path) -> None:
    without_runtime(bundle)
    reindex(bundle)


def runtime(*fields: str | int, value: Any) -> Callable[[Path], None]:
    return lambda bundle: change(bundle, "runtime.json", *fields, value=value)


def runtime_is(tree: Any) -> Callable[[Path], None]:
    def written(bundle: Path) -> None:
        write(bundle / "runtime.json", tree)
        reindex(bundle)

    return written


def index_is(tree: Any) -> Callable[[Path], None]:
    return lambda bundle: write(bundle / "bundle.json", tree)


def with_a_former_of_other_graphs(bundle: Path) -> None:
    (former,) = read(bundle / "bundle.json")["former"]
    index("former", [former, former | {"bundle_id": "0" * 64}])(bundle)


def index(field: str, value: Any) -> Callable[[Path], None]:
    return lambda bundle: change(bundle, "bundle.json", field, value=value)


RUNTIME = "runtime.json: field "
# What is done to a bundle of format 2, and what Python says then after the bundle's own path.
REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a later feature": (
        runtime("requires", value=["masks", "maps"]),
        f"{RUNTIME}requires: the bundle needs 'masks', which this version doesn't know; a newer ddm_rt reads it",
    ),
    "a later runtime": (runtime("schema_version", value=2), f"{RUNTIME}schema_version: Input should be 1"),
    "a later index": (
        index("schema_version", 3),
        "bundle.json: schema_version is 3; this version reads 1 and 2",
    ),
    "a later index unlike this": (
        index_is({"files": [], "bundle_id": 7, "schema_version": 3}),
        "bundle.json: schema_version is 3; this version reads 1 and 2",
    ),
    "an index without a format": (
        index_is({"files": []}),
        "bundle.json: field schema_version: Field required",
    ),
    "no index": (index_is([]), "bundle.json: field (whole file): Input should be an object"),
    "a later runtime unlike this": (
        runtime_is({"name": 1, "requires": 7, "schema_version": 2}),
        f"{RUNTIME}schema_version: Input should be 1",
    ),
    "a later feature that changes the rest": (
        runtime_is({"requires": ["maps"], "latent_shape": "as the map"}),
        f"{RUNTIME}requires: the bundle needs 'maps', which this version doesn't know; a newer ddm_rt reads it",
    ),
    "no list of features": (
        runtime_is({"requires": "maps"}),
        f"{RUNTIME}requires: Input should be a valid array",
    ),
    "nothing but a head": (runtime_is({}), f"{RUNTIME}name: Field required"),
    "no format": (index("schema_version", 0), "bundle.json: schema_version is 0; this version reads 1 and 2"),
    "format 1": (
        index("schema_version", 1),
        "bundle.json: field files: config.json is not listed; a bundle must have it",
    ),
    "no runtime": (without_runtime, "runtime.json: missing; bundle.json lists it with SIZE bytes"),
    "runtime not listed": (
        with_runtime_unlisted,
        "bundle.json: field files: runtime.json is not listed; a bundle must have it",
    ),
    "another byte": (another_byte, "runtime.json: altered: its sha256 differs from the one in bundle.json"),
    "a former id that is none": (
        index("former", [{"bundle_id": "ab", "files": {}}]),
        "bundle.json: field former.0.bundle_id: String should match pattern '^[0-9a-f]{64}$'",
    ),
    "a former file's hash that is none": (
        index("former", [{"bundle_id": "0" * 64, "files": {"config.json": "ab"}}]),
        "bundle.json: field former.0.files.config.json: String should match pattern '^[0-9a-f]{64}$'",
    ),
    "a former id without files": (
        index("former", [{"bundle_id": "0" * 64}]),
        "bundle.json: field former.0.files: Field required",
    ),
    "a former id of other graphs": (
        with_a_former_of_other_graphs,
        "bundle.json: field former.1.bundle_id does not match the files it lists",
    ),
    "no levels": (
        runtime("schedule", "alphas_cumprod", value=[]),
        f"{RUNTIME}schedule.alphas_cumprod: expected a list of numbers",
    ),
    "two levels": (
        runtime("schedule", "alphas_cumprod", value=[0.9, 0.8]),
        f"{RUNTIME}schedule.alphas_cumprod: 2 values; num_train_timesteps is 1000",
    ),
    "levels that rise": (
        runtime("schedule", "alphas_cumprod", 0, value=0.5),
        f"{RUNTIME}schedule.alphas_cumprod: alphas_cumprod must decrease strictly within (0, 1)",
    ),
    "a code": (
        runtime("codes", 0, "share_in_top", value=2),
        f"{RUNTIME}codes.0.share_in_top: Input should be less than or equal to 1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_rightly_is_refused(core: CoreProbe, second: Path, case: str) -> None:
    damage, said = REFUSED[case]
    damage(second)
    assert place(check(core, second)["error"]) == place(f"{second}/{said}")


@pytest.mark.parametrize(
    ("change_", "said"),
    [
        ((0, "code", 1), "expected codes 0 to 15 in order"),
        ((3, "top_code", 7), "top codes must be numbered from 0 without gaps"),
    ],
)
def test_codes_that_make_no_tree(c_library: CLibrary, tmp_path: Path, change_: tuple[int, str, int], said: str) -> None:
    digits = write_format(2, DIGITS, tmp_path / "digits")
    change(digits, "runtime.json", "codes", *change_[:2], value=change_[2])
    with pytest.raises(DdmError) as here:
        Pipeline.load(digits, backend="onnxruntime", threads=1)
    with pytest.raises(CError) as there, c_library.pipeline(digits):
        pass
    assert str(here.value) == f"{digits}/runtime.json: field codes: {said}"
    assert place(str(there.value)) == place(str(here.value))


def test_a_manifest_of_a_former_id_replays(c_library: CLibrary, tmp_path: Path) -> None:
    old = write_format(1, DIGITS, tmp_path / "old")
    with c_library.pipeline(old) as pipeline:
        made = pipeline.generate(n=3, seed=2, num_steps=2)
    digits = upgrade(Bundle.load(old), tmp_path / "digits").path
    with c_library.pipeline(digits) as pipeline:
        again = pipeline.replay(made.text)
    here = Pipeline.load(digits, backend="onnxruntime", threads=1).replay(made.manifest)
    assert (again.images == made.images).all()
    assert again.manifest == made.manifest | {"bundle_id": read(digits / "bundle.json")["bundle_id"]}
    assert here.manifest["bundle_id"] == again.manifest["bundle_id"]


def test_a_calibration_of_a_former_id_holds(core: CoreProbe, c_library: CLibrary, tmp_path: Path) -> None:
    """And one of an id that is neither is stale, as before."""
    digits = write_format(2, DIGITS, tmp_path / "digits")
    record = {
        "schema_version": 1,
        "bundle_id": read(digits / "bundle.json")["former"][0]["bundle_id"],
        "attributes": [{"name": "digit", "groups": ["three", "eight"]}],
        "counts": [[9, 1], [1, 9]] * 8,
        "unsure": [0] * 16,
    }
    with c_library.pipeline(digits) as pipeline:
        manifest = pipeline.generate(n=1, num_steps=4).manifest
    request = manifest["request"]
    shared = {name: request[name] for name, _ in SETTINGS if name in request}
    record["settings"] = shared | {name: manifest[name] for name in ("sampler", "num_steps", "precision")}
    (digits / "calibrations" / "default").mkdir(parents=True)
    write(digits / "calibrations" / "default" / "calibration.json", record)
    reindex(digits)
    with c_library.pipeline(digits) as pipeline:
        made = pipeline.generate(n=4, num_steps=4, target="three=.5,eight=.5")
        assert pipeline.generate(n=4, num_steps=4, target="three=.5,eight=.5").manifest == made.manifest  # kept
        stored = digits / "calibrations" / "default" / "calibration.json"
        whole = stored.read_bytes()
        stored.write_bytes(whole.replace(b"9", b"8"))
        with pytest.raises(CError, match=r"calibration.json: altered"):
            pipeline.generate(n=4, num_steps=4, target="three=.5,eight=.5")
        stored.write_bytes(whole)
    here = Pipeline.load(digits, backend="onnxruntime", threads=1)
    assert here.generate(n=4, num_steps=4, target="three=.5,eight=.5").codes == made.codes
    entry = read(digits / "bundle.json")["files"]["calibrations/default/calibration.json"]
    assert made.manifest["calibration_id"] == entry["sha256"]
    write(digits / "bundle.json", read(digits / "bundle.json") | {"former": []})
    found = core("weights", path=str(digits), manifest=json.dumps(manifest), targets=["three=.5,eight=.5"])
    assert f"it is of another bundle, {record['bundle_id'][:12]}" in found[0]["error"]


def test_a_ledger_of_a_former_id_must_be_moved(core: CoreProbe, c_library: CLibrary, tmp_path: Path) -> None:
    digits, path = write_format(2, DIGITS, tmp_path / "digits"), tmp_path / "counts.ledger"
    (former,) = Bundle.load(digits).index.former_ids
    with Ledger(path) as ledger:
        ledger.lease(STREAM._replace(bundle_id=former), quota, 3).commit()
    with pytest.raises(DdmError) as here:
        Pipeline.load(digits, backend="onnxruntime", threads=1, ledger=path)
    with pytest.raises(CError) as there, c_library.pipeline(digits, ledger=path):
        pass
    assert str(there.value) == str(here.value)
    assert str(there.value) == (
        f"ledger {path}: belongs to bundle {former[:12]}…, from which this one was made; "
        f"move it with `ddm-rt upgrade {digits} --ledger {path}`"
    )
    assert there.value.status == "ledger"
    with Ledger(path) as ledger:
        ledger.move_to(Bundle.load(digits))
    with c_library.pipeline(digits, ledger=path) as pipeline:
        assert pipeline.generate(n=1, num_steps=1, scope="new").codes
    other = write_format(1, DIGITS, tmp_path / "other")
    with pytest.raises(CError, match="; this one is "), c_library.pipeline(other, ledger=path):
        pass
