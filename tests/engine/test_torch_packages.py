"""Compiled networks: what was built here runs, and nothing else ever does."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_once import made_once
from safetensors.torch import save_file
from tolerances import HALF_REL

from ddm_rt.bundle import Bundle
from ddm_rt.config import Precision
from ddm_rt.engine import backends, user_cache
from ddm_rt.engine.devices import Device
from ddm_rt.engine.torch import packages
from ddm_rt.engine.torch.engine import TorchEngine
from ddm_rt.engine.torch.packages import EXTRAS, Code, Package, Record
from ddm_rt.errors import BackendUnavailable, DdmError
from ddm_rt.files import sha256
from ddm_rt.sample.pipeline import Pipeline

CPU = Device("cpu")
BF16 = Precision.BF16


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own."""
    monkeypatch.setenv(user_cache.CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def package(tiny_bundle: Bundle, cache: Path) -> Callable[..., Path]:
    """package(...): one that was signed here, of a file that is no code; `changes` are to what it was made on."""

    def make(**changes: Any) -> Path:
        path = packages.place(tiny_bundle, BF16, CPU)
        path.mkdir(parents=True)
        (path / "denoiser-2.pt2").write_bytes(b"no code")
        save_file({}, path / EXTRAS)
        code = Code(
            file="denoiser-2.pt2",
            sha256=sha256(path / "denoiser-2.pt2"),
            network="denoiser",
            inputs={"x_t": (2, 4, 8, 8)},
            outputs=("output",),
            dtype=BF16,
            constants={},
            extras=(),
            seconds=1.0,
        )
        made = packages.made_here(tiny_bundle, BF16, CPU).model_copy(update=changes)
        packages.sign(path, Record(made=made, extras=sha256(path / EXTRAS), codes=(code,)))
        return path

    return make


def test_where_none_was_built_there_is_none(tiny_bundle: Bundle) -> None:
    assert packages.find(tiny_bundle, BF16, CPU) is None


def test_one_that_was_built_here_is_found(tiny_bundle: Bundle, package: Callable[..., Path]) -> None:
    path = package()
    found = packages.find(tiny_bundle, BF16, CPU)
    assert found is not None
    assert (found.path, found.sizes) == (path, (2,))
    assert packages.find(tiny_bundle, Precision.FP32, CPU) is None
    assert (user_cache.root() / user_cache.SECRET).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"torch": "2.0.0"},
            rf"compiled for torch 2\.0\.0; this is {torch.__version__.replace('+', '.')}; `ddm-rt build ",
        ),
        ({"processor": "Another CPU"}, "compiled for processor Another CPU; this is "),
        ({"bundle_id": "f" * 64}, "compiled for bundle_id f"),
    ],
    ids=["torch", "processor", "bundle"],
)
def test_one_of_another_device_or_version_is_refused_by_name(
    tiny_bundle: Bundle, package: Callable[..., Path], changes: dict[str, Any], said: str
) -> None:
    path = package(**changes)
    with pytest.raises(DdmError, match=said) as caught:
        packages.find(tiny_bundle, BF16, CPU)
    assert str(caught.value).startswith(f"{path}: ")
    with pytest.raises(BackendUnavailable, match=said):
        backends.load(tiny_bundle, "torch", 1, "cpu", "bf16")
    assert backends.load(tiny_bundle, "torch", 1, "cpu").precision == "fp32", "the other precisions run"


def another_secret(path: Path, root: Path) -> None:
    (root / user_cache.SECRET).write_bytes(b"x" * 32)


def open_secret(path: Path, root: Path) -> None:
    (root / user_cache.SECRET).chmod(0o644)


def no_secret(path: Path, root: Path) -> None:
    (root / user_cache.SECRET).unlink()


def altered_record(path: Path, root: Path) -> None:
    record = path / packages.RECORD
    record.write_text(record.read_text().replace("denoiser-2.pt2", "denoiser-4.pt2"))


def altered_code(path: Path, root: Path) -> None:
    (path / "denoiser-2.pt2").write_bytes(b"other code")


def no_code(path: Path, root: Path) -> None:
    (path / "denoiser-2.pt2").unlink()


def no_signature(path: Path, root: Path) -> None:
    (path / packages.SIGNATURE).unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (another_secret, "was not built here, and compiled code of others is never run"),
        (open_secret, r"secret: belongs to somebody else, isn't whole, or others may read it"),
        (no_secret, "was not built here, and compiled code of others is never run"),
        (altered_record, "was not built here, and compiled code of others is never run"),
        (altered_code, r"denoiser-2\.pt2: missing or altered"),
        (no_code, r"denoiser-2\.pt2: missing or altered"),
        (no_signature, r"incomplete \(No such file or directory: package\.json\.hmac\)"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_one_that_somebody_else_put_there_is_refused(
    tiny_bundle: Bundle,
    package: Callable[..., Path],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path, Path], None],
    said: str,
) -> None:
    def loaded(*args: object) -> None:
        raise AssertionError("code was opened")

    monkeypatch.setattr(torch._C._aoti, "AOTIModelPackageLoader", loaded)
    damage(package(), cache)
    with pytest.raises(BackendUnavailable, match=said):
        TorchEngine(tiny_bundle, 1, CPU, BF16)


def test_code_inside_a_bundle_is_never_opened(
    tiny_bundle: Bundle, package: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger's bundle may bring a whole cache along."""
    import shutil

    folder = Path(shutil.copytree(tiny_bundle.path, tmp_path / "strange"))
    shutil.copytree(user_cache.root(), folder / "cache") if user_cache.root().exists() else package()
    shutil.copytree(user_cache.root(), folder / "torch")
    shutil.rmtree(user_cache.root())

    def loaded(*args: object) -> None:
        raise AssertionError("code was opened")

    monkeypatch.setattr(torch._C._aoti, "AOTIModelPackageLoader", loaded)
    engine = TorchEngine(Bundle.load(folder), 1, CPU, BF16)
    assert "compiled" not in engine.versions


def test_shapes_that_were_not_compiled_are_named(tiny_bundle: Bundle, package: Callable[..., Path]) -> None:
    package()
    found = packages.find(tiny_bundle, BF16, CPU)
    assert found is not None
    networks = packages.Packaged(tiny_bundle, found, torch.device("cpu"))
    with pytest.raises(
        DdmError, match=r"no denoiser is compiled for \{'x_t': \[3, 4, 8, 8\]\}, .* \[2, 4, 8, 8\]; `ddm-rt"
    ):
        networks("denoiser", (torch.zeros(3, 4, 8, 8),))


@pytest.fixture(scope="session")
def compiled(tiny_bundle: Bundle, shared_folder: Path) -> tuple[Path, Package]:
    """A cache, and the package of the tiny bundle in it."""
    from ddm_rt.engine.torch.building import build

    root = shared_folder / "compiled"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(user_cache.CACHE, str(root))
        made_once(root, lambda place: build(tiny_bundle, BF16, CPU, batches=(1, 2), size=(8, 8)))
        found = packages.find(tiny_bundle, BF16, CPU)
    assert found is not None
    return root, found


COMPILES = pytest.mark.slow(reason="compiles C++ for minutes")

FIRST_IMAGE = """
import sys
import time
from ddm_rt.sample.pipeline import Pipeline
pipeline = Pipeline.load(sys.argv[1], "torch", 1, precision="bf16")
pipeline.generate(n=1)
print(pipeline.engine.versions)
print([name for name in ("diffusers", "transformers", "accelerate", "torch._inductor") if name in sys.modules])
"""


@COMPILES
def test_compiled_networks_give_the_eager_ones_numbers(
    tiny_bundle: Bundle, compiled: tuple[Path, Package], monkeypatch: pytest.MonkeyPatch
) -> None:
    eager = Pipeline(tiny_bundle, TorchEngine(tiny_bundle, 1, CPU, BF16))
    monkeypatch.setenv(user_cache.CACHE, str(compiled[0]))
    engine = TorchEngine(tiny_bundle, 1, CPU, BF16)
    assert engine.batch_sizes == (1, 2)
    assert "compiled" in engine.versions
    pipeline = Pipeline(tiny_bundle, engine)
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((2, 4, 8, 8), np.float32), np.array([10, 900], np.float32)
    cond, _ = pipeline._conditions.probe_rows(1.0, (8, 8))
    cond = {name: engine.take(value, np.array([0, 1])) for name, value in cond.items()}
    got, want = (each.denoiser(each.array(x), each.array(t), cond).numpy() for each in (engine, eager.engine))
    assert np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)) <= HALF_REL
    made = pipeline.generate(n=3, num_steps=3)
    assert pipeline.replay(made.manifest).images.tobytes() == made.images.tobytes()
    alone = pipeline.replay(made.manifest, index=2)
    assert alone.images[0].tobytes() == made.images[2].tobytes()


@COMPILES
def test_a_new_process_opens_it_without_the_model(tiny_bundle: Bundle, compiled: tuple[Path, Package]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FIRST_IMAGE, str(tiny_bundle.path)],
        env=os.environ | {user_cache.CACHE: str(compiled[0])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    versions, imported = done.stdout.splitlines()
    assert "'compiled'" in versions
    assert imported == "[]"


@COMPILES
def test_weights_lie_in_the_graphs_alone(compiled: tuple[Path, Package]) -> None:
    _, package = compiled
    denoiser = next(code for code in package.record.codes if code.network == "denoiser")
    assert len(denoiser.constants) > 50
    assert denoiser.extras == ()
    record = json.loads((package.path / packages.RECORD).read_text())
    assert record["made"]["precision"] == "bf16"


@COMPILES
def test_a_bundle_with_prompts_is_compiled(latent_bundles: Mapping[str, Bundle]) -> None:
    """Its text encoders too, whose last layer nothing reads, and whose positions lie in no graph."""
    from ddm_rt.engine.torch.building import build

    bundle = latent_bundles["sdxl"]
    package = build(bundle, BF16, CPU, batches=(2,), size=(8, 8))
    engine = TorchEngine(bundle, 1, CPU, BF16)
    assert {code.network for code in package.record.codes} == set(bundle.graphs)
    made = Pipeline(bundle, engine).generate(prompt="ab cd", n=1, num_steps=2)
    assert made.manifest["versions"]["compiled"] == engine.versions["compiled"]


@pytest.mark.idle
def test_the_first_digit_is_there_3_seconds_after_its_process_starts(cache: Path) -> None:
    from ddm_rt.engine.torch.building import build

    digits = Bundle.load("digits")
    build(digits, BF16, CPU, batches=(1, 2), size=(8, 8))
    script = FIRST_IMAGE + "\nimport time\nprint(time.time())"
    taken = []
    for _ in range(3):
        start = time.time()
        done = subprocess.run(
            [sys.executable, "-c", script, "digits"],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        taken.append(float(done.stdout.splitlines()[-1]) - start)
    assert sorted(taken)[1] <= 3
