"""What a kernel's PTX says about itself: its entry, its parameters in order, its version, its tensor-core instructions.

Plain text in, facts out; no compiler is needed.
"""

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["pointer", "i32", "scratch"]

_ENTRY = re.compile(r"\.visible\s+\.entry\s+(\w+)\s*\(([^)]*)\)([^{]*)\{")
_PARAMETER = re.compile(r"\.param\s+\.(\w+)\s[^,]*?(\w+)\s*(?:,|$)")
_THREADS = re.compile(r"\.(?:reqntid|maxntid)\s+(\d+)")
_VERSION = re.compile(r"^\.version\s+(\d+)\.(\d+)\s*$", re.MULTILINE)

# Parameter type -> kind and size. Triton passes nothing else to these kernels: what isn't here is refused.
_KINDS: dict[str, tuple[Kind, int]] = {
    "u64": ("pointer", 8),
    "b64": ("pointer", 8),
    "u32": ("i32", 4),
    "b32": ("i32", 4),
    "s32": ("i32", 4),
}

# Strongest first. A chip with a newer kind still runs small tiles on the older one.
_TENSOR_CORE = (("tcgen05", "tcgen05.mma"), ("wgmma", "wgmma.mma_async"), ("mma.sync", "mma.sync"))


@dataclass(frozen=True)
class Argument:
    """One launch argument, in the order of the launch.

    `pointer` is a device address (8 bytes), `i32` a 32-bit integer (4 bytes), and `scratch` a device address that
    the compiler added and that must be null (8 bytes).
    """

    name: str
    kind: Kind
    bytes: int


@dataclass(frozen=True)
class Entry:
    """A kernel's head: kind and size of its parameters in order, and the block size that it insists on, or None."""

    name: str
    parameters: tuple[tuple[Kind, int], ...]
    threads: int | None


def read_entry(ptx: str) -> Entry:
    """The one `.visible .entry` of `ptx`.

    Raises ValueError where there isn't exactly one, or where a parameter is neither an address nor a 32-bit integer.
    """
    found = _ENTRY.findall(ptx)
    if len(found) != 1:
        raise ValueError(f"the PTX has {len(found)} entries, expected one")
    name, declarations, directives = found[0]
    types = [kind for kind, _ in _PARAMETER.findall(declarations)]
    if len(types) != declarations.count(".param"):
        raise ValueError(f"the parameter list of {name} has a form that isn't known: {' '.join(declarations.split())}")
    unknown = sorted(set(types) - set(_KINDS))
    if unknown:
        raise ValueError(f"{name} has parameters of type {', '.join(unknown)}; expected {', '.join(_KINDS)}")
    threads = _THREADS.search(directives)
    return Entry(name, tuple(_KINDS[kind] for kind in types), int(threads[1]) if threads else None)


def name_arguments(entry: Entry, declared: tuple[tuple[str, Kind], ...]) -> tuple[Argument, ...]:
    """The launch arguments: `declared` (name and kind, in the source's order), then the compiler's own as `scratch`.

    Raises ValueError where the PTX has fewer parameters than were declared, another kind at some place, or more than
    the two scratch pointers that Triton appends (global and profile scratch).
    """
    extra = entry.parameters[len(declared) :]
    if len(entry.parameters) < len(declared) or len(extra) > 2:
        raise ValueError(f"{entry.name} has {len(entry.parameters)} parameters, its source declares {len(declared)}")
    arguments = []
    for (name, kind), (found, size) in zip(declared, entry.parameters, strict=False):
        if kind != found:
            raise ValueError(f"{entry.name}: argument {name} is a {found} in the PTX, its source declares a {kind}")
        arguments.append(Argument(name, kind, size))
    for name, (found, size) in zip(("global_scratch", "profile_scratch"), extra, strict=False):
        if found != "pointer":
            raise ValueError(f"{entry.name} ends with a parameter that is a {found}; expected a scratch pointer")
        arguments.append(Argument(name, "scratch", size))
    return tuple(arguments)


def tensor_core(ptx: str) -> str | None:
    """`tcgen05`, `wgmma` or `mma.sync`, whichever is strongest among the instructions of `ptx`; None without any."""
    return next((name for name, instruction in _TENSOR_CORE if instruction in ptx), None)


def version(ptx: str) -> int:
    """The PTX version as ten times itself: 9.4 is 94. Raises ValueError where `ptx` has none."""
    found = _VERSION.search(ptx)
    if found is None:
        raise ValueError("the PTX has no .version line")
    return 10 * int(found[1]) + int(found[2])
