"""Make the goldens: files that every later commit must keep, or name what it changed (`tests/goldens/changed.py`).

Without PART: all but the old bundles. Look at `git diff` afterwards.
"""

import argparse
import csv
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest does

from goldens import cases, files, ledgers, made_on, streams, tables

from ddm_rt.bundle import Bundle
from ddm_rt.sample.balance.assignment import code_tree
from ddm_rt.sample.calibration.audit import AuditSet
from ddm_rt.sample.calibration.groups import Attribute
from ddm_rt.sample.request import Request

_AUDITED = 96


def make_bundles(folder: Path) -> None:
    """Once, at the first commit: later ones would export other bundles, and ship another."""
    from goldens import tiny_bundles

    files.ARCHIVES.mkdir(parents=True, exist_ok=True)
    tiny_bundles.write(files.ARCHIVES)
    files.DIGITS.mkdir(exist_ok=True)
    shipped = Bundle.load("digits")
    for path in shipped.path.glob("*.json"):
        shutil.copyfile(path, files.DIGITS / path.name)
    ids = {name: Bundle.load(files.unpack(name, folder / name)).bundle_id for name in files.TINY}
    files.write_json(files.FILES / "bundle_ids.json", {"digits": shipped.bundle_id, **ids})


def make_calibration(folder: Path) -> None:
    """An audit with made-up labels, which follow the top codes and the codes' numbers, not always."""
    bundle = Bundle.load(files.old_digits(folder / "digits"))
    codes = [i % bundle.codes.num_codes for i in range(_AUDITED)]
    pipeline = files.open_pipeline(bundle, "onnxruntime")
    with pipeline.prepare(Request(n=_AUDITED, seed=7, codes=codes, num_steps=3)) as request:
        files.write_json(files.AUDIT.with_name("manifest.json"), request.manifest.tree())
    digit, slant = Attribute(name="digit", groups=("3", "8")), Attribute(name="slant", groups=("left", "right"))
    described = AuditSet(attributes=(digit, slant))
    files.AUDIT.with_name("audit.json").write_text(described.model_dump_json(indent=1) + "\n")
    with files.AUDIT.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", digit.name, slant.name])
        for i, code in enumerate(codes):
            first = digit.groups[bundle.codes.top_of[code] ^ (i * 7 % 10 == 0)]
            second = slant.groups[code % 2 ^ (i * 3 % 7 == 0)]
            writer.writerow([f"{i:05d}.png", "?" if i % 17 == 0 else first, second])
    _, made, calibration_id = files.calibrated(bundle)
    files.write_json(files.AUDIT.with_name("id.json"), calibration_id)
    files.AUDIT.with_name("calibration.json").write_text(made.model_dump_json(indent=1) + "\n")


def make_ledger(folder: Path) -> None:
    known = ledgers.Streams(*files.calibrated(Bundle.load(files.old_digits(folder / "digits"))))
    ledgers.fill(folder / "ledger", known, files.LEDGER)
    shutil.copyfile(files.LEDGER, folder / "copy")
    files.write_json(files.FILES / "ledger.json", ledgers.go_on(folder / "copy", known))


def make_images(folder: Path) -> None:
    for name, backends in cases.BACKENDS.items():
        bundle = files.open_bundle(name, folder / name)
        for backend in backends:
            place, ledger = files.IMAGES / f"{name}-{backend}", folder / f"{name}-{backend}.ledger"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            files.write_json(place / "made_on.json", made_on.here(backend))
            with files.open_ledger(name, ledger) as counts:
                pipeline = files.open_pipeline(bundle, backend, counts)
                for case, request in cases.REQUESTS[name].items():
                    generation = pipeline.generate(**request)
                    generation.save(folder / "saved")  # as `sample` does
                    shutil.move(folder / "saved" / "manifest.json", place / f"{case}.json")
                    shutil.rmtree(folder / "saved")
                    files.write_strip(generation.images, place / f"{case}.png")


def make_tables(folder: Path) -> None:
    files.write_json(files.FILES / "tables.json", tables.tables())


def make_streams(folder: Path) -> None:
    digits = code_tree(Bundle.load(files.old_digits(folder / "digits")))
    files.write_json(files.FILES / "streams.json", streams.streams(digits))


# In the order in which they need each other.
_PARTS = {
    "bundles": make_bundles,
    "calibration": make_calibration,
    "ledger": make_ledger,
    "images": make_images,
    "tables": make_tables,
    "streams": make_streams,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of: {', '.join(_PARTS)}")
    wanted = parser.parse_args().parts or [name for name in _PARTS if name != "bundles"]
    if unknown := set(wanted) - set(_PARTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; parts: {', '.join(_PARTS)}")
    for part, make in _PARTS.items():
        if part in wanted:
            with TemporaryDirectory() as temporary:
                make(Path(temporary))
            print(f"made: {part}")
