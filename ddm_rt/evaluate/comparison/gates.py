"""Recording that a bundle on a backend passed, or didn't pass, the gates that let `auto` take it (`engine.gates`)."""

from importlib.metadata import version
from typing import Any, cast

import numpy as np

from ddm_rt.bundle import Bundle, add_directory, is_writable
from ddm_rt.config import Balance, Precision
from ddm_rt.engine import devices
from ddm_rt.engine.devices import CPU
from ddm_rt.engine.gates import GATED, MAX_FRECHET_RATIO, Gate, place
from ddm_rt.engine.machine import processor
from ddm_rt.errors import DdmError
from ddm_rt.evaluate.comparison.compare import Comparison
from ddm_rt.evaluate.comparison.kept import decision
from ddm_rt.evaluate.comparison.paired import NEITHER
from ddm_rt.evaluate.comparison.sides import Side
from ddm_rt.evaluate.fairness import fd_l2, shares
from ddm_rt.files import write_json


def check_sides(a: Side, b: Side, *, reference: str | None, target: str, balance: Balance, rounds: int) -> None:
    """Raises DdmError where comparing these would say nothing about the two bundles as they are served."""
    if b.backend not in GATED and not b.rounds:
        raise DdmError(
            f"--record: {b.text!r} names nothing that `auto` takes by its gates; expected "
            f"BUNDLE@backend={GATED[0]}, or on a GPU BUNDLE@backend=torch,precision=bf16"
        )
    if b.rounds and (b.device == CPU or devices.invisible() is not None):
        raise DdmError(f"--record: {b.text!r} computes on a CPU, where `auto` never rounds; expected device=cuda")
    for side in (a, b):
        if side.is_sampled:
            raise DdmError(f"--record: {side.text!r} holds images; expected a bundle")
        if side.settings:
            raise DdmError(
                f"--record: {side.text!r} sets {', '.join(side.settings)}; the gate is about the bundle's own defaults"
            )
    if a.backend in GATED or a.rounds or Bundle.load(a.source, verify=False).config.precision is not Precision.FP32:
        raise DdmError(f"--record: A is {a.text!r}; expected an fp32 bundle, on none of: {', '.join(GATED)}")
    if reference is None or rounds < 1 or target != "uniform" or balance is Balance.OFF:
        raise DdmError("--record: needs a --reference, --rounds of at least 1, the target uniform and balance")
    bundle = Bundle.load(b.source, verify=False)
    if b.precision not in (None, bundle.config.precision) and not b.rounds:
        raise DdmError(
            f"--record: {b.text!r} is converted for this comparison alone; `ddm-rt export` makes a bundle that stays"
        )
    if not is_writable(bundle):
        raise DdmError(f"--record: {bundle.path} can't be written to; give a copy of the bundle")


def gate_of(comparison: Comparison) -> Gate:
    """What a comparison of two bundles with their defaults says, for `auto`.

    Raises DdmError where it holds no quality or no speed, and where quality was held to less than `auto` asks.
    """
    asked = max((ratio.bound for ratio in comparison.kept if ratio.kind == "quality"), default=MAX_FRECHET_RATIO)
    if asked > MAX_FRECHET_RATIO:
        raise DdmError(f"--record: frechet_ratio is {asked:g}; a gate takes at most {MAX_FRECHET_RATIO:g}")
    whole = next((change for change in comparison.quality if change.group == "all"), None)
    if whole is None or whole.frechet is None or comparison.speed is None:
        reason = "" if whole is None or whole.reason is None else f": {whole.reason}"
        raise DdmError(f"--record: the comparison has no Frechet distance or no speed{reason}")
    counts = np.array([change.share_b for change in comparison.labels.changes if change.group != NEITHER])
    p = shares(np.rint(counts * comparison.labels.n).astype(np.int64), comparison.groups)
    b = comparison.b
    return Gate(
        bundle_id=b.bundle_id,
        backend=b.backend,
        version=version(b.backend),
        precision=None if b.backend in GATED else Precision(b.precision),
        processor=b.versions.get("device", processor()),
        threads=b.threads,
        against=comparison.a.bundle_id,
        against_backend=comparison.a.backend,
        judge=comparison.judge.sha256,
        groups=comparison.groups,
        n=comparison.labels.n,
        seed=comparison.seed or 0,
        decision=cast(Any, comparison.labels.decision.name.lower()),
        margin=comparison.labels.margin,
        fd=fd_l2(p, np.full(len(p), 1 / len(p))) / 2**0.5,
        frechet=whole.frechet,
        quality=decision(comparison.kept, "quality"),
        diversity=decision(comparison.kept, "diversity"),
        seconds_per_image=comparison.speed.seconds_per_image,
    )


def record(source: str, comparison: Comparison) -> Gate:
    """`gate_of`, written into the bundle of B, in place of what was there. Raises DdmError as that does, and for a
    bundle that can't be written.
    """
    gate = gate_of(comparison)
    where = place(gate.backend, gate.precision)
    add_directory(Bundle.load(source), where, lambda folder: write_json(folder / "gate.json", gate.model_dump()))
    return gate
