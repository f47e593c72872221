"""What several rooms' tests need: a small run and its bundle; and an account of what wasn't exercised here."""

import functools
import gc
import importlib.util
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import few_threads  # noqa: F401
import pytest
from goldens import made_on
from goldens.files import unpack
from hypothesis import HealthCheck, settings
from made_once import made_once
from toolchain import EMBEDDING, missing, summary

from ddm_rt.bundle import Bundle
from ddm_rt.config import RunConfig
from ddm_rt.engine.user_cache import CACHE
from ddm_rt.files import write_atomic
from ddm_rt.presets import resolve
from ddm_rt.runtime import Codes, Leaf
from ddm_rt.workflows.upgrade import upgrade_bundle as upgrade

Made = TypeVar("Made")

# How long an example takes depends on what else the machine does.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

try:
    import torch
except ModuleNotFoundError:
    HAS_TORCH = False
else:
    HAS_TORCH = True
    # Bits depend on the thread count, and parallel test workers share the cores.
    torch.set_num_threads(1)


def has_cuda() -> bool:
    return HAS_TORCH and torch.cuda.is_available()


# Kernel tests run in Triton's interpreter where there is no device. Triton reads the variable when it is imported and
# when a kernel is defined: so here, before any test module. What compiles does so in a process without it.
if not has_cuda():
    os.environ["TRITON_INTERPRET"] = "1"


def has_package(name: str) -> Callable[[], bool]:
    return lambda: importlib.util.find_spec(name) is not None


def has_debian(*packages: str) -> Callable[[], bool]:
    return lambda: not missing(*packages)


@functools.cache
def has_own_file_system() -> bool:
    """Whether a test may mount a small file system that nobody else sees."""
    script = 'mount -t tmpfs -o size=64k tmpfs "$0"'
    with tempfile.TemporaryDirectory() as folder:
        command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, folder]
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:
            return False


# What only some machines can show -> whether this one can. The end of a test run names the rest.
EXERCISED: dict[str, Callable[[], bool]] = {
    "bf16 device numerics": has_cuda,
    "Triton kernels on a device": has_cuda,
    "TensorRT plans on a device": has_cuda,
    "benchmarks/gpu.py": has_cuda,
    "compiling kernels for six architectures": has_package("triton"),
    "TensorRT-RTX builds": has_package("tensorrt_rtx"),
    "TensorRT's plugin contract (lean runtime)": lambda: (
        all(has_package(name)() for name in ("tensorrt_bindings", "tensorrt_lean_libs", "triton"))
        and has_debian("gcc")()
    ),
    "OpenVINO": has_package("openvino"),
    "the embedding library": has_debian(*EMBEDDING),
    "the embedding library's Debian packages": has_debian("lintian"),
    "the embedding library under valgrind": has_debian("valgrind"),
    "the embedding library's fuzz targets": has_debian("clang"),
    "writing onto a full disk": has_own_file_system,
    "OpenAI's client": has_package("openai"),
    "clients that run on node": has_debian("nodejs", "npm"),
    "requests made from the OpenAPI schema": has_package("schemathesis"),
    "webdataset's reader": has_package("webdataset"),
    "object storage": lambda: has_package("s3fs")() and has_package("moto")(),
    "the documentation site": has_package("mkdocs"),
    "Prometheus's rules": has_debian("prometheus"),
    "the page in a browser": lambda: has_debian("chromium")() and has_package("playwright")(),
}

NO_CUDA = "needs a CUDA device"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What test modules import stays to the end: the garbage collector needn't look through it, then or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The one place that handles the `gpu` marker."""
    if has_cuda():
        return
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(pytest.mark.skip(reason=NO_CUDA))


_LAST_WORDS = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    unseen = [name for name, check in EXERCISED.items() if not check()]
    # Read from the reports, which come from the workers too where tests run in parallel.
    skipped = terminalreporter.stats.get("skipped", [])
    unseen += [report.nodeid for report in skipped if NO_CUDA in str(report.longrepr)]
    for reason in (r"not run: (\S+\.md:\d+)", r"not installed: ([\w ]+), for no package index"):
        unseen += sorted({found for report in skipped for found in re.findall(reason, str(report.longrepr))})
    unseen += made_on.unlike_here(Path(__file__).parent / "goldens" / "files" / "images")
    wanting = summary(str(report.longrepr[2]) for report in skipped if isinstance(report.longrepr, tuple))
    said = f"not exercised on this machine: {', '.join(unseen)}" if unseen else None
    config.stash[_LAST_WORDS] = [line for line in (wanting, said) if line is not None]


def pytest_unconfigure(config: pytest.Config) -> None:
    """After pytest's own last line, so that a run ends with what it didn't show."""
    gc.unfreeze()  # nanobind lists what isn't collected at the end
    for line in config.stash.get(_LAST_WORDS, []):
        print(line)


def _write_run(directory: Path, config: RunConfig, num_codes: int, num_top_codes: int = 2) -> Path:
    """A run as training leaves it, with random weights; without codes where `num_codes` is 0."""
    from safetensors.torch import save_file

    from ddm_rt.model.unet import DDM

    leaves = tuple(
        Leaf(code=i, top_code=i * num_top_codes // num_codes, size=10, share_in_top=num_top_codes / num_codes)
        for i in range(num_codes)
    )
    codes = Codes(origin="discovered" if leaves else "none", leaves=leaves)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DDM(config.model, config.model.latent_shape(config.data), codes.shared_of)
        # Norm scales of 1 and biases of 0 would hide a parameter that got lost on the way.
        state = {
            name: tensor + 0.05 * torch.randn(tensor.shape) if tensor.is_floating_point() else tensor.clone()
            for name, tensor in model.state_dict().items()
        }
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(config.model_dump_json(indent=1))
    (directory / "codes.json").write_text(codes.model_dump_json(indent=1))
    save_file(state, directory / "weights.safetensors")
    return directory


def one_level() -> dict[str, Any]:
    """The `tiny` preset's U-Net with one block down and one up."""
    blocks = {"down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"]}
    return resolve("tiny").model.unet | blocks | {"block_out_channels": [16], "mid_block_type": None}


@pytest.fixture
def own_file_system() -> None:
    """Skips where `has_own_file_system` is false; the last line of the run says so."""
    if not has_own_file_system():
        pytest.skip("needs a user namespace with mounts")


@pytest.fixture(scope="session")
def write_run() -> Callable[..., Path]:
    """write_run(directory, config, num_codes=..., num_top_codes=2) makes a run directory."""
    return _write_run


@pytest.fixture(scope="session")
def tiny_run(shared_folder: Path) -> Path:
    """A run with 4 codes in 2 top codes and random weights: the `tiny` preset with fewer layers, which take time to
    trace. Read-only.
    """
    if not HAS_TORCH:
        pytest.skip("needs torch")
    config = resolve("tiny", {"model.unet": one_level()})
    return made_once(shared_folder / "runs" / "tiny", lambda place: _write_run(place, config, num_codes=4))


@pytest.fixture(scope="session")
def tiny_run_without_codes(shared_folder: Path) -> Path:
    """As `tiny_run`, trained with `--indicator none`. Read-only."""
    if not HAS_TORCH:
        pytest.skip("needs torch")
    config = resolve("tiny", {"train.indicator": "none", "model.unet": one_level()})
    return made_once(shared_folder / "runs" / "plain", lambda place: _write_run(place, config, num_codes=0))


@pytest.fixture(scope="session")
def tiny_bundle(tiny_run: Path, shared_folder: Path) -> Bundle:
    """The bundle of `tiny_run`. Read-only."""
    from ddm_rt.export.run import export_run

    place = shared_folder / "bundles" / "tiny"
    return Bundle.load(made_once(place, lambda place: export_run(tiny_run, place)))


@pytest.fixture(scope="session")
def plain_bundle(tiny_run_without_codes: Path, shared_folder: Path) -> Bundle:
    """The bundle of `tiny_run_without_codes`. Read-only."""
    from ddm_rt.export.run import export_run

    place = shared_folder / "bundles" / "plain"
    return Bundle.load(made_once(place, lambda place: export_run(tiny_run_without_codes, place)))


@pytest.fixture(scope="session")
def plain_x0_run(shared_folder: Path) -> Path:
    """As `tiny_run_without_codes`, of drawings (`pictures`), and it predicts x0. Read-only."""
    if not HAS_TORCH:
        pytest.skip("needs torch")
    from pictures import write_folder

    drawings = made_once(shared_folder / "data" / "bars", write_folder)
    fields = {
        "train.indicator": "none",
        "model.unet": one_level(),
        "schedule.prediction_type": "sample",
        "data.source": str(drawings),
    }
    place = shared_folder / "runs" / "plain_x0"
    return made_once(place, lambda place: _write_run(place, resolve("tiny", fields), num_codes=0))


@pytest.fixture(scope="session")
def steered_run(plain_x0_run: Path, shared_folder: Path) -> Path:
    """`plain_x0_run` with two codes, which are the kinds of drawings. Read-only."""
    from pictures import KINDS, drawings

    from ddm_rt.train.steering.run import steer

    codes = shared_folder / "steered.json"
    if not codes.exists():
        write_atomic(codes, json.dumps({"code": [KINDS.index(kind) for kind in drawings(40)[1]]}))
    place = shared_folder / "runs" / "steered"
    return made_once(place, lambda place: steer(plain_x0_run, place, {"codes.source": str(codes)}))


@pytest.fixture(scope="session")
def steered_bundle(steered_run: Path, shared_folder: Path) -> Bundle:
    """The bundle of `steered_run`. Read-only."""
    from ddm_rt.export.run import export_run

    place = shared_folder / "bundles" / "steered"
    return Bundle.load(made_once(place, lambda place: export_run(steered_run, place)))


def unpack_upgraded(name: str, out: Path) -> None:
    """The committed bundle `name` in today's format."""
    upgrade(Bundle.load(unpack(name, out)))


class PerFamily(Mapping[str, Made]):
    """What is made for a family of checkpoints when it is first asked for. Parallel workers share `folder`."""

    def __init__(
        self,
        folder: Path,
        families: tuple[str, ...],
        make: Callable[[str, Path], object],
        open_made: Callable[[Path], Made],
    ) -> None:
        self._folder, self._families, self._make = folder, families, make
        self._open = functools.cache(open_made)

    def __getitem__(self, family: str) -> Made:
        if family not in self._families:
            raise KeyError(family)
        return self._open(made_once(self._folder / family, lambda place: self._make(family, place)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._families)

    def __len__(self) -> int:
        return len(self._families)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all parallel workers of a test run."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session", autouse=True)
def _user_cache(shared_folder: Path) -> Iterator[None]:
    """What is compiled is kept for all workers of this run, and not in the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE, str(shared_folder / "user-cache"))
        yield


@pytest.fixture(scope="session")
def precomputed_bundle(tiny_run: Path, shared_folder: Path) -> Bundle:
    """The bundle of `tiny_run` whose conditioner makes the keys and values. Read-only."""
    from ddm_rt.export.run import export_run

    place = shared_folder / "bundles" / "precomputed-kv"
    return Bundle.load(made_once(place, lambda place: export_run(tiny_run, place, precompute_kv=True)))


@pytest.fixture(scope="session")
def checkpoints(shared_folder: Path) -> Mapping[str, Path]:
    """Tiny checkpoints in diffusers' format, by family: "sd15", "sd21", "sdxl". Read-only."""
    if not HAS_TORCH:
        pytest.skip("needs torch")
    from checkpoints import FAMILIES, write_checkpoint

    return PerFamily(shared_folder / "checkpoints", FAMILIES, write_checkpoint, Path)


@pytest.fixture(scope="session")
def latent_runs(checkpoints: Mapping[str, Path], shared_folder: Path) -> Mapping[str, Path]:
    """By family: a run of its checkpoint with 4 codes in 2 top codes and a LoRA, all drawn. Read-only."""
    from latent_runs import add_indicator, write_run

    def make(family: str, out: Path) -> Path:
        return add_indicator(write_run(checkpoints[family], out))

    return PerFamily(shared_folder / "latent-runs", tuple(checkpoints), make, Path)


@pytest.fixture(scope="session")
def exported_bundles(latent_runs: Mapping[str, Path], shared_folder: Path) -> Mapping[str, Bundle]:
    """By family: the bundle of `latent_runs`. Read-only. One takes half a minute to make."""
    from ddm_rt.export.run import export_run

    def make(family: str, out: Path) -> Bundle:
        return export_run(latent_runs[family], out)

    return PerFamily(shared_folder / "exported-bundles", tuple(latent_runs), make, Bundle.load)


@pytest.fixture(scope="session")
def latent_bundles(shared_folder: Path) -> Mapping[str, Bundle]:
    """By family ("sd15", "sdxl"): a bundle with 4 codes in 2 top codes, for tests that use one and don't
    look at how it is exported. Read-only. It was exported once and is committed.
    """
    return PerFamily(shared_folder / "latent-bundles", ("sd15", "sdxl"), unpack_upgraded, Bundle.load)
