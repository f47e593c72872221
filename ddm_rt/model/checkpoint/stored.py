"""Weight files of a checkpoint's components: safetensors or .bin, one file or shards, variants."""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ddm_rt.errors import BundleError


def find(folder: Path, stems: tuple[str, ...], variant: str | None) -> tuple[Path, ...]:
    """The weight files of one component, in `folder`: those of `variant` where it has some, else the plain ones.

    Where they are shards, their index comes first. `stems` are tried in order; safetensors come before .bin. Raises
    BundleError naming what was looked for.
    """
    for tag in (f".{variant}", "") if variant else ("",):
        for stem in stems:
            for kind in ("safetensors", "bin"):
                whole, index = folder / f"{stem}{tag}.{kind}", folder / f"{stem}.{kind}.index{tag}.json"
                if whole.is_file():
                    return (whole,)
                if index.is_file():
                    return (index, *_shards(index))
    others = sorted(
        path.name for stem in stems for path in folder.glob(f"{stem}.*") if path.suffix in (".safetensors", ".bin")
    )
    hint = f"; found {others[0]}: give its --variant" if others else ""
    raise BundleError(f"{folder}: no weights; expected {stems[0]}.safetensors or .bin, whole or in shards{hint}")


def tensors(files: tuple[Path, ...]) -> Iterator[tuple[Path, str, Tensor]]:
    """File, name and tensor, one by one: mapped from the file where the format allows, so that no second copy is made.

    Raises BundleError naming a file that can't be read.
    """
    for path in (path for path in files if path.suffix != ".json"):
        yield from ((path, name, tensor) for name, tensor in read(path))


def read(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of one .safetensors or .bin file; a .bin is read without running what is in it.

    Raises BundleError naming the file when it is truncated, of another format, or holds anything but tensors.
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  (not a dict)
                    yield name, file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise BundleError(f"{path}: not a readable safetensors file ({error})") from error
        return
    try:
        # Files from before torch 1.6 are no archives and can't be mapped.
        tree = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch names no types: pickle, archive, runtime and OS errors
        raise BundleError(f"{path}: not readable as weights alone ({_first_line(error)})") from error
    tree = tree.get("state_dict", tree) if isinstance(tree, dict) else tree
    if not isinstance(tree, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in tree.items()):
        raise BundleError(f"{path}: expected a dictionary of tensors")
    yield from tree.items()


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise BundleError(f"{index}: field weight_map: expected names of tensors and their files") from error
    if not names:
        raise BundleError(f"{index}: field weight_map: it is empty; expected names of tensors and their files")
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not (index.parent / name).is_file():
            raise BundleError(f"{index}: shard {name} is missing beside it")
    return tuple(index.parent / name for name in names)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
