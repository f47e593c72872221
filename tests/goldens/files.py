"""Where the goldens lie, and how the old bundles among them are opened."""

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from goldens import made_on
from numpy.typing import NDArray
from PIL import Image

from ddm_rt.bundle import Bundle
from ddm_rt.sample.balance.ledger import Ledger
from ddm_rt.sample.calibration.audit import Audit, read
from ddm_rt.sample.calibration.calibration import Calibration, Settings, calibration, store, with_target
from ddm_rt.sample.generation import encoded
from ddm_rt.sample.pipeline import Pipeline

FILES = Path(__file__).parent / "files"
ARCHIVES = FILES / "bundles"
DIGITS = FILES / "digits"  # what the shipped bundle was, without its graphs, which are still the shipped ones
LEDGER = FILES / "ledger.sqlite"
IMAGES = FILES / "images"
AUDIT = FILES / "calibration" / "audit.csv"
TINY = ("tiny", "sd15", "sdxl")
# An even target, one of a single attribute and one of two.
TARGETS = (None, "digit:3=.5,8=.5", "digit:3=.3,8=.7;slant:left=.4,right=.6")


def write_json(path: Path, tree: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree, indent=1) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_bytes())


def unpack(name: str, out: Path) -> Path:
    """The bundle `name`, as it was exported, at `out`."""
    with tarfile.open(ARCHIVES / f"{name}.tar.xz") as tar:
        tar.extractall(out, filter="data")
    return out


def old_digits(out: Path) -> Path:
    """The shipped bundle of that time at `out`."""
    out.mkdir()
    for path in DIGITS.iterdir():
        shutil.copyfile(path, out / path.name)
    for path in Bundle.load("digits").graphs.values():
        shutil.copyfile(path, out / path.name)
    return out


def open_bundle(name: str, out: Path) -> Bundle:
    """One of the old bundles, at `out`; digits with its calibration."""
    return calibrated(Bundle.load(old_digits(out)))[0] if name == "digits" else Bundle.load(unpack(name, out))


def open_pipeline(bundle: Bundle, backend: str, ledger: Ledger | None = None) -> Pipeline:
    """On one thread, in small batches: bytes don't depend on them, and OpenVINO compiles graphs for each size."""
    pipeline = Pipeline.load(bundle, backend, made_on.THREADS, ledger)
    pipeline.engine.max_batch = 2
    return pipeline


def open_ledger(name: str, out: Path) -> Ledger:
    """A ledger at `out` for the bundle `name`: digits goes on with the old one."""
    if name == "digits":
        shutil.copyfile(LEDGER, out)
    return Ledger(out)


def calibrated(bundle: Bundle) -> tuple[Bundle, Calibration, str]:
    """The digits bundle with the audit's calibration added; the calibration; its id."""
    audit = read(AUDIT)
    made = calibration(
        bundle,
        audit.attributes,
        [(code, groups) for _, code, groups in audit.images],
        _settings(audit),
        {"method": "audit"},
    )
    for target in TARGETS:
        made, _ = with_target(made, target, bundle.codes)
    added, calibration_id = store(bundle, made, "audit")
    return added, made, calibration_id


def _settings(audit: Audit) -> Settings:
    manifest = audit.manifest
    return Settings.of(manifest.request, manifest.sampler, manifest.num_steps, manifest.precision, audit.scope)


def write_strip(images: NDArray[np.uint8], path: Path) -> None:
    """Images [n, H, W, 3] side by side, as one PNG."""
    path.write_bytes(encoded(np.concatenate(images, axis=1)))


def read_strip(path: Path, n: int) -> NDArray[np.uint8]:
    """The images [n, H, W, 3] of `write_strip`."""
    with Image.open(path) as strip:
        return np.stack(np.split(np.asarray(strip), n, axis=1))
