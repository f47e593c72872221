"""`ddm-rt compare`: does one configuration keep the group shares of another? Converts what isn't there yet."""

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddm_rt.bundle import Bundle
from ddm_rt.config import Balance, Precision
from ddm_rt.evaluate.comparison import compare as comparing
from ddm_rt.evaluate.comparison import gates
from ddm_rt.evaluate.comparison.compare import Comparison
from ddm_rt.evaluate.comparison.sides import Side
from ddm_rt.evaluate.judge import Judge
from ddm_rt.evaluate.report import comparison_page
from ddm_rt.files import check_free
from ddm_rt.progress import OnStage


def compare(
    side_a: Side,
    side_b: Side,
    *,
    judge: str,
    classes: Sequence[str] | None = None,
    groups: Sequence[str],
    reference: str | None = None,
    target: str = "uniform",
    balance: Balance = Balance.AUTO,
    margin: float,
    rounds: int,
    out: Path | None = None,
    to_record: bool = False,
    on_stage: OnStage | None = None,
    on_converted: Callable[[str, Bundle], None] | None = None,
    **options: Any,
) -> tuple[Comparison, Path | None]:
    """Compare two sides by a judge (digits, or an ONNX file with `classes`): the figures, and the page of the report
    that was written into `out`.

    An fp32 bundle whose side asks for another precision is converted first, into a bundle that ends with the
    comparison; `on_converted` is called with the source and the bundle. `options` and all else are as in
    `evaluate.comparison.compare.compare`, which says what is raised; DdmError also where `out` isn't empty, and with
    `to_record` for sides whose comparison `evaluate.comparison.gates.record` doesn't take.
    """
    if out is not None:
        check_free(out)
    if to_record:
        gates.check_sides(side_a, side_b, reference=reference, target=target, balance=balance, rounds=rounds)
    loaded = Judge.load(judge, classes=classes)
    comparing.check_groups(loaded, groups, margin)  # before minutes are spent on converting
    with _converted((side_a, side_b), on_stage, on_converted) as (opened_a, opened_b):
        comparison, pictures = comparing.compare(
            opened_a,
            opened_b,
            judge=loaded,
            groups=groups,
            reference=reference,
            target=target,
            balance=balance,
            margin=margin,
            rounds=rounds,
            **options,
        )
    return comparison, None if out is None else comparison_page.write(comparison, pictures, out)


@contextmanager
def _converted(
    sides: Sequence[Side], on_stage: OnStage | None, on_converted: Callable[[str, Bundle], None] | None
) -> Iterator[list[Side]]:
    """The sides, those of fp32 bundles in the precision that they ask for; what is converted ends with the block.

    Others, and those whose backend computes in it, are left to whoever opens them.
    """
    with tempfile.TemporaryDirectory(prefix="ddm-rt-") as folder:

        @functools.cache
        def convert(source: str, precision: Precision) -> str:
            from ddm_rt.workflows.export import export  # onnx, which a comparison that converts nothing needs not

            bundle = export(source, Path(tempfile.mkdtemp(dir=folder)), precision, progress=on_stage)
            if on_converted is not None:
                on_converted(source, bundle)
            return str(bundle.path)

        yield [
            dataclasses.replace(side, source=convert(side.source, side.precision))
            if side.precision is not None and _is_to_be_converted(side)
            else side
            for side in sides
        ]


def _is_to_be_converted(side: Side) -> bool:
    if side.is_sampled or side.rounds or side.precision is Precision.FP32:
        return False
    return Bundle.load(side.source, verify=False).config.precision is Precision.FP32
