"""Targets over crossing factors in the embedding library's core: weights as Python's to the bit, errors as well."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_formats import change, read, reindex, write
from c_library import CError, CLibrary
from core_probe import CoreProbe, agree, place, python
from factor_tables import random_table
from paper_bundle import fill

from ddm_rt.bundle import Bundle, write_bundle
from ddm_rt.errors import DdmError
from ddm_rt.files import asset
from ddm_rt.runtime import CodeTable
from ddm_rt.sample.balance.assignment import by_names
from ddm_rt.sample.balance.ledger import Ledger
from ddm_rt.sample.pipeline import Pipeline

DIGITS = asset("digits")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle", fill, {}).path


def put(bundle: Path, codes: CodeTable) -> None:
    tree = codes.model_dump(mode="json")
    write(
        bundle / "runtime.json", read(bundle / "runtime.json") | {"codes": tree["leaves"], "factors": tree["factors"]}
    )
    reindex(bundle)


def named(bundle: Bundle, target: str) -> Any:
    found = by_names(bundle, target)
    if found is None:
        return None
    leaves = [[code, share] for branch in found.leaves for code, share in branch.items()]
    return {"target": found.target, "tops": list(found.tops), "leaves": leaves}


def check(core: CoreProbe, bundle: Path, targets: list[str]) -> list[Any]:
    opened = Bundle.load(bundle)
    found: list[Any] = core("named_weights", path=str(bundle), targets=targets)
    for target, there in zip(targets, found, strict=True):
        assert agree(there, python(lambda target=target: named(opened, target))), target  # type: ignore[misc]
    return found


@pytest.mark.parametrize("seed", range(30))
def test_weights_are_pythons(core: CoreProbe, bundle: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes = random_table(rng)
    put(bundle, codes)
    targets = ["uniform"]
    for _ in range(6):
        parts = []
        for factor in rng.permutation(np.array(codes.factors, dtype=object))[: rng.integers(1, 4)]:
            raw = rng.dirichlet(np.ones(len(factor.values))) * (rng.random(len(factor.values)) < 0.9)
            raw = raw / raw.sum() if raw.any() else raw
            parts += [
                f" {factor.name}:{value}={share!r}" for value, share in zip(factor.values, raw.tolist(), strict=True)
            ]
        targets.append(",".join(parts))
    found = check(core, bundle, targets)
    told = [str(each["error"]).rpartition(" is ")[2] for each in found if "nearest" in each.get("error", "")]
    check(core, bundle, told)


TARGETS = [
    "", "uniform", "α:", ":", "α:v0", "α:v0=", "α:v0=1", "α : v0 = 1", "α:v0=.5", "α:v0=.5,α:v0=.5", "α:v9=1", "v0=1",
    "α:v0=x", "α:v0=nan", "α:v0=-1,α:v1=2", "α:v0=1,b b:v0=1", "α:v0=1;b b:v0=1", "α:v0=.5,v1=.5", "α:uniform", "α",
    "b b:v0=.3,b b:v1=.7", "b  b:v0=1", "α&b b:uniform", "α:v0=1e-300,α:v1=1", "α:v0=5e-324,α:v1=1", "α:v0=1,",
    ",α:v0=1", "α:v0=1=1", "α:v0:v1=1", "code:0=1", "code:0=1,α:v0=1", "α:v0=1,code:0=1", "A:v0=1", "\u00a0α:v0=1",
    "a\u0301:v0=1", "α:v0='", 'α:"v0"=1',
]  # fmt: skip


def test_any_text_as_a_target(core: CoreProbe, bundle: Path) -> None:
    put(bundle, random_table(np.random.default_rng(0)))
    check(core, bundle, TARGETS)
    change(bundle, "runtime.json", "factors", value=[])
    check(core, bundle, TARGETS)


CHANGES: list[Callable[[list[Any]], Any]] = [
    lambda factors: factors[0].update(name="code"),
    lambda factors: factors[1].update(name=factors[0]["name"]),
    *(lambda factors, name=name: factors[1].update(name=name) for name in ("", " a", "a:b", "a\n", "a" * 65, "é" * 64)),
    lambda factors: factors[0]["values"].pop(),
    lambda factors: factors[0].update(values=["one"]),
    lambda factors: factors[0].update(values=[]),
    lambda factors: factors[1]["values"].__setitem__(0, factors[1]["values"][1]),
    lambda factors: factors[1]["values"].__setitem__(0, "a=b"),
    lambda factors: factors[1]["value_of"].pop(),
    lambda factors: factors[1]["value_of"].__setitem__(0, 99),
    lambda factors: factors[1]["value_of"].__setitem__(0, -1),
    lambda factors: factors[1]["value_of"].__setitem__(0, "x"),
    lambda factors: factors[1].pop("values"),
    lambda factors: factors[0]["value_of"].reverse(),
    lambda factors: factors.pop(1),
    lambda factors: factors.append(7),
    lambda factors: factors.clear(),
    lambda factors: factors[0].update(invented=1),
]


@pytest.mark.parametrize("number", range(len(CHANGES)))
def test_damaged_factors_are_refused(core: CoreProbe, bundle: Path, number: int) -> None:
    put(bundle, random_table(np.random.default_rng(3)))
    factors = read(bundle / "runtime.json")["factors"]
    CHANGES[number](factors)
    change(bundle, "runtime.json", "factors", value=factors)
    there = core("bundle", path=str(bundle))
    here = python(lambda: Bundle.load(bundle) and {})
    assert ("error" in there) == ("error" in here)
    assert "runtime.json: field factors" in there.get("error", "runtime.json: field factors")


def test_the_library_samples_such_targets(c_library: CLibrary, tmp_path: Path) -> None:
    """Digits, as if somebody had named two factors."""
    folder = shutil.copytree(DIGITS, tmp_path / "digits")
    leaves = read(folder / "runtime.json")["codes"]
    number = [sum(other["top_code"] == leaf["top_code"] for other in leaves[:i]) for i, leaf in enumerate(leaves)]
    tops = [leaf["top_code"] for leaf in leaves]
    factors = [
        {"name": "digit", "values": [f"d{top}" for top in range(max(tops) + 1)], "value_of": tops},
        {"name": "style", "values": [f"s{i}" for i in range(max(number) + 1)], "value_of": number},
    ]
    change(folder, "runtime.json", "factors", value=factors)
    fields: dict[str, Any] = {"n": 7, "seed": 5, "num_steps": 2, "target": "digit:d1=.6 , digit:d0=.4"}
    here = Pipeline.load(folder, backend="onnxruntime", threads=1, ledger=Ledger(tmp_path / "here"))
    with c_library.pipeline(folder, ledger=tmp_path / "there") as there:
        for target in ("d0=.5,d1=.5", "x:d0=1", "d0", "no=1", "style:s9=1", "digit:d0=.5"):
            said = []
            for pipeline in (here, there):
                with pytest.raises((DdmError, CError)) as caught:
                    pipeline.generate(**(fields | {"target": target}))
                said.append(str(caught.value))
            assert place(said[0]) == place(said[1]) != ""
        for scope in (None, "a", "a"):
            one, other = here.generate(**fields, scope=scope), there.generate(**fields, scope=scope)
            assert one.manifest["images"] == other.manifest["images"]
            assert one.manifest["target"] == other.manifest["target"] == "digit:d0=0.4,digit:d1=0.6"
            assert (one.images == other.images).all()
