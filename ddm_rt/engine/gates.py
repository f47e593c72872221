"""What `auto` must know before it takes a backend, or a precision, that computes otherwise: that balance and quality
were held against fp32 on this kind of processor, with this version, and that it was faster. Where that isn't recorded
in the bundle's `reports/`, `auto` is as if the backend or the precision weren't there.
"""

from typing import Annotated, Literal

from pydantic import Field

from ddm_rt.bundle import Bundle
from ddm_rt.config import Frozen, Precision, Sha256, parse_json
from ddm_rt.engine.devices import Device
from ddm_rt.engine.machine import installed, processor
from ddm_rt.engine.tensorrt import cuda
from ddm_rt.errors import DdmError

GATED = ("openvino",)  # names in `engine.backends`, which are those of their packages
MAX_FD = 0.06  # FD_ddm of the images; with more than two groups FD_L2/√2, which is the same for two
MAX_FRECHET_RATIO = 1.15  # of the Frechet distance to held-out images, to that of the fp32 bundle's own

Kept = Literal["equivalent", "changed", "undecided"]
_Distance = Annotated[float, Field(ge=0)]


class Gate(Frozen):
    """reports/gate-BACKEND/gate.json, or gate-BACKEND-PRECISION where an fp32 bundle is computed in that: the bundle on
    a backend against the fp32 bundle, both with their defaults.

    Pairs are (fp32, this).
    """

    schema_version: Literal[1] = 1
    bundle_id: Sha256
    backend: str
    version: str  # of the backend's package
    precision: Precision | None = None  # None: the bundle's own
    processor: str  # or the GPU
    threads: int
    against: Sha256  # the fp32 bundle's id
    against_backend: str
    judge: str
    groups: tuple[str, ...]
    n: int
    seed: int
    decision: Literal["equivalent", "drift", "undecided"]  # of the drift gate, at its margin
    margin: float
    fd: _Distance
    frechet: tuple[_Distance, _Distance]
    quality: Kept | None = None  # of the fp32 bundle's; None: recorded before `compare` said so
    diversity: Kept | None = None
    seconds_per_image: tuple[_Distance, _Distance]

    def missing(self) -> list[str]:
        """The verdicts that it was recorded without. It counts all the same."""
        return [what for what in ("quality", "diversity") if getattr(self, what) is None]

    def failures(self) -> list[str]:
        """The gates that it didn't pass, in words."""
        found = []
        if self.decision != "equivalent":
            found.append(f"the drift gate said {self.decision} (margin {self.margin:g})")
        if self.fd > MAX_FD:
            found.append(f"FD was {self.fd:.3f}, at most {MAX_FD:g} passes")
        if self.frechet[1] > MAX_FRECHET_RATIO * self.frechet[0]:
            found.append(
                f"the Frechet distance was {self.frechet[1]:.3g}, {MAX_FRECHET_RATIO:g} of {self.frechet[0]:.3g} passes"
            )
        for what in ("quality", "diversity"):
            kept = getattr(self, what)
            # What computes in another precision than the bundle's must have shown that it keeps both.
            if kept == "changed" or (kept == "undecided" and self.precision is not None):
                found.append(f"the verdict on {what} was {kept}")
        if self.seconds_per_image[1] >= self.seconds_per_image[0]:
            ratio = self.seconds_per_image[0] / self.seconds_per_image[1]
            found.append(f"it was no faster ({ratio:.2f} times {self.against_backend})")
        return found


def place(backend: str, precision: Precision | None = None) -> str:
    """The record's directory in a bundle."""
    return f"reports/gate-{backend}" if precision is None else f"reports/gate-{backend}-{precision}"


def read(bundle: Bundle, backend: str, precision: Precision | None = None) -> Gate | None:
    """The record for that backend, None where there is none. Raises DdmError for one that is damaged."""
    directory = place(backend, precision)
    if f"{directory}/gate.json" not in bundle.index.files:
        return None
    bundle.check_directory(directory)
    path = bundle.path / directory / "gate.json"
    return parse_json(Gate, path.read_bytes(), path)


def command(bundle: Bundle, backend: str, precision: Precision | None = None) -> str:
    """The command that records the gate."""
    reference, settings = ("FP32_BUNDLE", "") if precision is None else (bundle.path, f",precision={precision}")
    return f"ddm-rt compare {reference} {bundle.path}@backend={backend}{settings} --record"


def note(bundle: Bundle, backend: str, precision: Precision | None = None) -> str | None:
    """What to say of a gate that was passed without all verdicts; None where there is nothing to say."""
    gate = read(bundle, backend, precision)
    missing = [] if gate is None else gate.missing()
    if not missing:
        return None
    how = f"`{command(bundle, backend, precision)}` records them"
    return f"the gate of {backend} was recorded without verdicts on {' and '.join(missing)}; {how}"


def why_not(
    bundle: Bundle, backend: str, precision: Precision | None = None, device: Device | None = None
) -> str | None:
    """Why `auto` passes the backend, or on a GPU a precision that the bundle hasn't got, over for this bundle here;
    None where it doesn't.

    Imports nothing: what no gate lets through costs no time. That a package is missing is the backend's own to say.
    """
    present = installed(backend) if backend in GATED or precision is not None else None
    if present is None:
        return None
    try:
        gate = read(bundle, backend, precision)
        here = processor() if device is None else cuda.device_info(ordinal=device.ordinal).name
    except DdmError as error:
        return str(error)
    how = f"`{command(bundle, backend, precision)}` records it"
    if gate is None:
        return f"no gate is recorded for it here; {how}"
    for what, recorded, found in (
        ("bundle", bundle.bundle_id if bundle.is_of(gate.bundle_id) else gate.bundle_id, bundle.bundle_id),
        ("processor", gate.processor, here),
        ("version", gate.version, present),
    ):
        if recorded != found:
            return f"its gate is recorded for {what} {recorded}; this is {found}; {how}"
    failures = gate.failures()
    return f"it didn't pass its gates here: {' and '.join(failures)}" if failures else None
