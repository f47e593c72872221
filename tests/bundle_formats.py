"""Bundles of both formats, written by hand from what the formats say: a reader is held to that, not to our writer."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

Json = dict[str, Any]

_GRAPHS = ("conditioner.onnx", "denoiser.onnx", "decoder.onnx", "text_encoder.onnx")
_OF_FORMAT_1 = ("config.json", "schedule.json", "codes.json")
_IN_ID = (*_OF_FORMAT_1, "runtime.json")
_BESIDE_IMAGES = ("model", "run", "num_codes", "num_top_codes", "schema_version")


def read(path: Path) -> Json:
    tree: Json = json.loads(path.read_bytes())
    return tree


def runtime_of(bundle: Path) -> Json:
    """What runtime.json says of a bundle, or would say of one of format 1."""
    if (bundle / "runtime.json").exists():
        return read(bundle / "runtime.json")
    config, schedule, codes = (read(bundle / name) for name in _OF_FORMAT_1)
    student = config["run"].get("distill") is not None
    tree = {name: value for name, value in config.items() if name not in _BESIDE_IMAGES}
    del schedule["schema_version"]
    return {
        "schema_version": 1,
        "requires": [],
        **tree,
        "takes_negative_prompt": not student,
        "schedule": schedule,
        "codes": codes["leaves"],
    }


def write_format(number: int, bundle: Path, out: Path, *, former: bool = True) -> Path:
    """A bundle of that format with the images of `bundle`; of format 2 with the id of `bundle` as its former one."""
    runtime = runtime_of(bundle)
    left_out = (*_IN_ID, "training.json", "bundle.json")
    shutil.copytree(bundle, out, ignore=lambda _, names: [name for name in names if name in left_out])
    if number == 2:
        write(out / "runtime.json", runtime)
        write(out / "training.json", {"schema_version": 1, "model": {}, "run": {}, "discovery": {}})
    else:
        schedule, leaves = runtime.pop("schedule"), runtime.pop("codes")
        distill = None if runtime.pop("takes_negative_prompt") else {}
        counts = {"num_codes": len(leaves), "num_top_codes": len({leaf["top_code"] for leaf in leaves})}
        del runtime["requires"]
        write(out / "config.json", runtime | counts | {"model": {}, "run": {"distill": distill}})
        write(out / "schedule.json", {"schema_version": 1, **schedule})
        write(out / "codes.json", {"schema_version": 1, "origin": "discovered", "leaves": leaves})
    index: Json = {"schema_version": number, "provenance": {}}
    if number == 2 and former:
        index["former_ids"] = [read(bundle / "bundle.json")["bundle_id"]]
    write(out / "bundle.json", index)
    reindex(out)
    return out


def write(path: Path, tree: Json) -> None:
    path.write_text(json.dumps(tree))


def reindex(bundle: Path) -> str:
    """Files' hashes and the bundle's id as they are now, for an index that has its other fields; the id."""
    index = read(bundle / "bundle.json")
    files: Json = {}
    for path in sorted(bundle.rglob("*")):
        if path.is_file() and path != bundle / "bundle.json":
            content = path.read_bytes()
            name = path.relative_to(bundle).as_posix()
            files[name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    index["files"] = files
    index["bundle_id"] = bundle_id(files)
    write(bundle / "bundle.json", index)
    return str(index["bundle_id"])


def bundle_id(files: Json) -> str:
    digest = hashlib.sha256()
    for name in sorted(files):
        graph = name.split(".onnx")[0] + ".onnx"
        if name in _IN_ID or name.startswith("tokenizer/") or graph in _GRAPHS:
            digest.update(f"{name}\0{files[name]['sha256']}\n".encode())
    return digest.hexdigest()


def change(bundle: Path, name: str, *fields: str | int, value: Any) -> None:
    """Another value at `fields` of a JSON file, and an index that fits."""
    tree: Any = read(bundle / name)
    at = tree
    for field in fields[:-1]:
        at = at[field]
    at[fields[-1]] = value
    write(bundle / name, tree)
    if name != "bundle.json":
        reindex(bundle)
