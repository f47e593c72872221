"""Plans: which one fits, and what differs where none does. The engines here are made-up bytes; nothing is built."""

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddm_rt.bundle import Bundle, add_directory
from ddm_rt.config import Precision
from ddm_rt.engine.tensorrt import flavours, plans
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.files import sha256, write_json

RTX = flavours.TABLE["tensorrt-rtx"]
ONE = plans.Range(min=1, opt=1, max=1)
OPTIONS = plans.Options(
    batch=(ONE,), decoder_batch=(ONE,), height=ONE, width=ONE, tokens=ONE, precision=Precision.FP32, plain=False
)
NAME = "tensorrt-rtx-sm_89"


def parts_of(bundle: Bundle, **changes: str) -> plans.Parts:
    fields = {"flavour": "tensorrt-rtx", "version": "1.7", "gpu": plans.NO_GPU, "architecture": "sm_89"} | changes
    return plans.Parts(bundle_id=bundle.bundle_id, graphs=plans.graph_files(bundle, RTX), options=OPTIONS, **fields)


def add_plan(bundle: Bundle, names: tuple[str, ...] = (), **changes: str) -> Bundle:
    """The bundle with a plan of made-up engines: those of its graphs, or of `names`."""
    parts = parts_of(bundle, **changes)

    def fill(folder: Path) -> None:
        engines = {}
        for name in names or bundle.graphs:
            file = folder / f"{name}.plan"
            file.write_bytes(name.encode())
            profile = {"x": ((1, 4), (1, 4), (1, 4))}
            digest = sha256(file)
            engines[name] = plans.EngineFile(file=file.name, sha256=digest, bytes=len(name), profiles=(profile,))
        key = plans.Key(key=plans.digest(parts), parts=parts, engines=engines, kernels="none in a test")
        write_json(folder / plans.KEY, key.model_dump(mode="json"))

    directory = plans.directory_name(parts.flavour, parts.architecture, parts.gpu)
    return add_directory(bundle, f"plans/{directory}", fill)


@pytest.fixture
def bundle(tiny_bundle: Bundle, tmp_path: Path) -> Bundle:
    """A copy of the tiny bundle with a plan for sm_89."""
    return add_plan(Bundle.load(shutil.copytree(tiny_bundle.path, tmp_path / "bundle")))


def find(bundle: Bundle, version: str = "1.7", architecture: str = "sm_89", gpu: str = "RTX 4090") -> plans.Plan:
    return plans.find(bundle, RTX, version, architecture, gpu)


def test_the_plan_that_fits_is_found(bundle: Bundle, tiny_bundle: Bundle) -> None:
    plan = find(bundle)
    assert (plan.name, plan.key.parts.options.batch[0].max, plan.key.kernels) == (NAME, 1, "none in a test")
    assert plan.engine("denoiser").read_bytes() == b"denoiser"
    assert plan.key.engines["decoder"].profiles == ({"x": ((1, 4), (1, 4), (1, 4))},)
    assert bundle.bundle_id == tiny_bundle.bundle_id
    assert plans.review(bundle, NAME, None) == [
        "it was built by version 1.7; " + flavours.version(RTX) + " is installed"
    ]


def test_without_one_the_command_is_told(tiny_bundle: Bundle) -> None:
    with pytest.raises(DdmError, match=r"no plan of tensorrt-rtx for sm_89; `ddm-rt build .* --sm 89` makes one"):
        find(tiny_bundle)


@pytest.mark.parametrize(
    ("asked", "difference"),
    [
        ({"version": "1.8"}, r"it was built by version 1\.7; 1\.8 is installed"),
        ({"architecture": "sm_86"}, "it is for sm_89; this GPU is sm_86"),
    ],
)
def test_a_foreign_plan_is_refused_by_name(bundle: Bundle, asked: dict[str, str], difference: str) -> None:
    with pytest.raises(DdmError, match=f"plan {NAME} is refused: {difference}"):
        find(bundle, **asked)


def test_a_plan_measured_on_another_gpu_is_refused_by_name(tiny_bundle: Bundle, tmp_path: Path) -> None:
    bundle = Bundle.load(shutil.copytree(tiny_bundle.path, tmp_path / "bundle"))
    bundle = add_plan(bundle, gpu="NVIDIA L4")
    assert plans.names(bundle) == ("tensorrt-rtx-sm_89-nvidia-l4",)
    assert find(bundle, gpu="NVIDIA L4").name == "tensorrt-rtx-sm_89-nvidia-l4"
    with pytest.raises(DdmError, match="sm_89-nvidia-l4 is refused: it was built on NVIDIA L4; this GPU is RTX 4090"):
        find(bundle)


def test_a_stale_plan_is_refused_by_name(bundle: Bundle) -> None:
    entry = bundle.index.files["denoiser.onnx"].model_copy(update={"sha256": "0" * 64})
    index = bundle.index.model_copy(update={"files": bundle.index.files | {"denoiser.onnx": entry}})
    changed = Bundle(bundle.path, index, bundle.config, bundle.schedule)
    with pytest.raises(
        DdmError, match=rf"plan {NAME} is refused: .* graphs that have changed \(denoiser.onnx differ\)"
    ):
        find(changed)
    (reason,) = plans.review(changed, NAME, ("sm_89", "RTX 4090"))[-1:]
    assert "denoiser.onnx differ" in reason


def test_a_plan_of_another_bundle_is_refused_by_name(bundle: Bundle, plain_bundle: Bundle, tmp_path: Path) -> None:
    other = Bundle.load(shutil.copytree(plain_bundle.path, tmp_path / "other"))
    other = add_directory(
        other, f"plans/{NAME}", lambda folder: shutil.copytree(find(bundle).path, folder, dirs_exist_ok=True)
    )
    with pytest.raises(DdmError, match=rf"plan {NAME} is refused: it was built from other graphs \(conditioner.onnx, "):
        find(other)


@pytest.mark.parametrize("file", ["denoiser.plan", "key.json"])
def test_an_altered_plan_is_refused_and_the_bundle_still_opens(bundle: Bundle, file: str) -> None:
    path = bundle.path / "plans" / NAME / file
    content = path.read_bytes()
    path.write_bytes(content.replace(b"1.7", b"1.6") if file == plans.KEY else content[::-1])
    with pytest.raises(
        DdmError, match=f"plan {NAME} is refused: .*{file}: (altered|field key is not that of its parts)"
    ):
        find(Bundle.load(bundle.path))
    path.unlink()
    with pytest.raises(DdmError, match=f"plan {NAME} is refused: .*{file}: (missing|cannot be read)"):
        find(Bundle.load(bundle.path))


def test_a_broken_plan_hides_no_other(bundle: Bundle) -> None:
    both = add_plan(bundle, gpu="RTX 4090")
    (both.path / "plans" / NAME / "key.json").write_text("{")
    assert find(both).name == f"{NAME}-rtx-4090"


def test_a_plan_that_the_index_does_not_list_is_no_plan(bundle: Bundle, tiny_bundle: Bundle) -> None:
    unlisted = Bundle(bundle.path, tiny_bundle.index, bundle.config, bundle.schedule)
    assert plans.names(unlisted) == ()


def test_the_plugin_variant_is_needed_for_half_precision(tiny_bundle: Bundle) -> None:
    half = tiny_bundle.config.model_copy(update={"precision": Precision.FP16})
    bundle = Bundle(tiny_bundle.path, tiny_bundle.index, half, tiny_bundle.schedule)
    words = r"denoiser\.plugin\.onnx is missing; tensorrt needs it: `ddm-rt export --plugin` .* `ddm-rt build --plain`"
    with pytest.raises(BundleError, match=words):
        plans.graph_files(bundle, flavours.TABLE["tensorrt"])
    assert "denoiser.onnx" in plans.graph_files(bundle, flavours.TABLE["tensorrt"], plain=True)


def test_a_plain_plan_is_compared_with_the_graph_of_plain_operators(tiny_bundle: Bundle, tmp_path: Path) -> None:
    bundle = Bundle.load(shutil.copytree(tiny_bundle.path, tmp_path / "bundle"))
    half = bundle.config.model_copy(update={"precision": Precision.FP16})
    bundle = Bundle(bundle.path, bundle.index, half, bundle.schedule)  # has no plugin's graph
    tensorrt = flavours.TABLE["tensorrt"]
    parts = plans.Parts(
        **parts_of(bundle).model_dump()
        | {"flavour": "tensorrt", "options": OPTIONS.model_copy(update={"plain": True}).model_dump()}
    )
    key = plans.Key(key=plans.digest(parts), parts=parts, engines={}, kernels=None)
    assert plans.differences(bundle, key, tensorrt) == []
    other = parts.model_copy(update={"options": OPTIONS})
    assert plans.digest(other) != key.key
    with pytest.raises(BundleError, match=r"denoiser\.plugin\.onnx is missing"):
        plans.differences(bundle, key.model_copy(update={"parts": other}), tensorrt)


def test_a_plan_is_hashed_once_until_it_is_touched(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    monkeypatch.setattr("ddm_rt.bundle.sha256", lambda path: hashed.append(path.name) or sha256(path))
    for _ in range(3):
        find(bundle)
    plan = bundle.path / "plans" / NAME
    assert sorted(hashed) == sorted(path.name for path in plan.iterdir())
    content = (plan / "denoiser.plan").read_bytes()
    (plan / "denoiser.plan").write_bytes(content)  # touched, and the same
    find(bundle)
    assert hashed.count("denoiser.plan") == 2
    (plan / "denoiser.plan").write_bytes(content[::-1])
    for _ in range(2):
        with pytest.raises(DdmError, match=r"denoiser\.plan: altered"):
            find(bundle)


def test_a_plan_of_the_former_schema_is_refused_by_name(bundle: Bundle) -> None:
    key = bundle.path / "plans" / NAME / "key.json"
    key.write_text(key.read_text().replace('"schema_version": 2', '"schema_version": 1'))
    with pytest.raises(DdmError, match=rf"plan {NAME} is refused: .*key\.json: of another version of ddm_rt"):
        find(bundle)


def test_a_bundle_with_prompts_needs_a_plan_with_its_text_encoder(
    latent_bundles: Mapping[str, Bundle], tmp_path: Path
) -> None:
    bundle = Bundle.load(shutil.copytree(latent_bundles["sd15"].path, tmp_path / "bundle"))
    whole = add_plan(bundle)
    assert "text_encoder.onnx" in find(whole).key.parts.graphs
    assert find(whole).engine("text_encoder").read_bytes() == b"text_encoder"
    with pytest.raises(DdmError, match=f"plan {NAME} is refused: .*field engines: text_encoder is not listed"):
        find(add_plan(bundle, plans.ENGINES))


def test_every_part_is_in_the_key(tiny_bundle: Bundle) -> None:
    first = parts_of(tiny_bundle)
    two = ONE.model_copy(update={"max": 2})
    changes = {
        "bundle_id": "1" * 64,
        "graphs": first.graphs | {"decoder.onnx": "1" * 64},
        "options": OPTIONS.model_copy(update={"batch": (two,)}),
        "flavour": "tensorrt",
        "version": "2",
        "gpu": "other",
        "architecture": "sm_86",
    }
    assert changes.keys() == plans.Parts.model_fields.keys()
    keys = {plans.digest(first.model_copy(update={name: value})) for name, value in changes.items()}
    assert len(keys | {plans.digest(first)}) == len(changes) + 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=8), inner, max_size=2),
    max_leaves=4,
)


@given(data=st.data(), value=json_values)
def test_a_key_with_any_other_value_is_a_key_or_a_refusal(
    key_tree: Callable[[], dict], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, value: object
) -> None:
    node = tree = key_tree()
    while True:
        name = data.draw(st.sampled_from(sorted(node)))
        if not isinstance(node[name], dict) or not node[name] or data.draw(st.booleans()):
            break
        node = node[name]
    before, node[name] = node[name], value
    path = tmp_path_factory.getbasetemp() / "any-key.json"
    path.write_text(json.dumps(tree))
    with contextlib.suppress(DdmError):
        key = plans.read_key(path)
        assert key.key == plans.digest(key.parts), (before, value)


@pytest.fixture(scope="session")
def key_tree(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], dict]:
    """key.json as a fresh tree."""
    bundle = Bundle.load(shutil.copytree(tiny_bundle.path, tmp_path_factory.mktemp("keys") / "bundle"))
    text = (add_plan(bundle).path / "plans" / NAME / "key.json").read_text()
    return lambda: json.loads(text)
