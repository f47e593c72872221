"""The runner of mutants, on a project of a few lines."""

import json
from pathlib import Path

import mutants
import pytest

MODULE = """def larger(a, b):
    return a if a > b else b


def smaller(a, b):
    return a if a < b else b
"""
TESTS = """from toy.order import larger, smaller


def test_order():
    assert [larger(1, 2), larger(2, 1), smaller(1, 1)] == [2, 2, 1]
"""
KILLED = {"file": "toy/order.py", "old": "a if a > b", "new": "b if a > b"}
SURVIVES = {"file": "toy/order.py", "old": "a < b", "new": "a <= b"}
ENDLESS = {"file": "toy/order.py", "old": "return a if a > b else b", "new": "while True: pass"}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # seconds for each start of pytest
    root = tmp_path / "toy-project"
    for name, text in (("toy/order.py", MODULE), ("tests/toy/test_order.py", TESTS)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def run(root: Path, *lines: dict[str, object], options: tuple[str, ...] = ()) -> int:
    path = root.parent / "list.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return mutants.main([str(path), *options], root)


def test_survivors_are_told_from_the_killed(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.jsonl"
    assert run(toy, KILLED, SURVIVES, options=("--out", str(out), "--jobs", "2")) == 1
    said = capsys.readouterr().out
    assert "| toy | 1 | 1 | 0 |" in said
    assert "survived: toy/order.py: 'a < b' to 'a <= b'" in said
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["outcome"], line["by"]) for line in found] == [
        ("killed", "tests/toy/test_order.py::test_order"),
        ("survived", ""),
    ]
    assert (toy / "toy" / "order.py").read_text() == MODULE
    assert sorted(path.name for path in toy.iterdir()) == ["tests", "toy"]


def test_a_mutant_that_never_ends_is_killed_by_the_limit(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(toy, ENDLESS, options=("--limit", "0.5")) == 0
    assert "| all | 0 | 0 | 1 |" in capsys.readouterr().out


def test_tests_that_fail_anyway_or_see_another_tree_are_an_error(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = toy / "tests" / "test_other.py"
    other.write_text("def test_other():\n    pass\n")
    assert run(toy, KILLED | {"tests": ["tests/test_other.py"]}) == 2
    assert "toy/order.py: the tests pass although it can't be imported" in capsys.readouterr().err
    other.write_text("def test_other():\n    assert False\n")
    assert run(toy, KILLED | {"tests": ["tests/test_other.py"]}) == 2
    assert "the tests fail without a mutant" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"old": "a >= b"}, "list.jsonl:1: toy/order.py: 'a >= b' to 'x': the text stands 0 times"),
        ({"old": "return a"}, "the text stands 2 times in the file; expected once"),
        ({"old": "x"}, "it changes nothing"),
        ({"file": "toy/chaos.py"}, "no such file"),
        ({"tests": ["tests/test_chaos.py::test_it"]}, "no such tests: tests/test_chaos.py::test_it"),
        ({"odd": 1}, "not a mutant"),
    ],
)
def test_a_mutant_that_does_not_fit_is_named(
    toy: Path, line: dict[str, object], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(toy, KILLED | {"new": "x"} | line) == 2
    assert said in capsys.readouterr().err


def test_of_some_rooms_only_theirs_must_fit(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = KILLED | {"file": "ddm_rt/sample/quota.py"}
    assert run(toy, KILLED, elsewhere, options=("--room", "toy")) == 0
    assert "| toy | 1 | 0 | 0 |" in capsys.readouterr().out
    assert run(toy, KILLED, elsewhere, options=("--room", "sample")) == 2
    assert "list.jsonl:2: ddm_rt/sample/quota.py" in capsys.readouterr().err
    assert run(toy, KILLED, options=("--room", "sample")) == 2
    assert "error: no mutants are left" in capsys.readouterr().err


def test_the_tests_of_a_module_are_its_mirror_and_those_that_name_it(tmp_path: Path) -> None:
    for name, text in {
        "sample/test_quota.py": "",
        "test_a.py": "import ddm_rt.sample.quota",
        "test_b.py": "from ddm_rt.sample import (\n    loop,\n    quota,\n)",
        "test_c.py": "from ddm_rt.sample import loop, quotas",
        "benchmarks/test_balance.py": "import balance",
        "test_d.py": "from ddm_rt.sample import balance",
    }.items():
        (tmp_path / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tests" / name).write_text(text)
    found = mutants.default_tests("ddm_rt/sample/quota.py", tmp_path)
    assert found == ("tests/sample/test_quota.py", "tests/test_a.py", "tests/test_b.py")
    assert mutants.default_tests("benchmarks/balance.py", tmp_path) == ("tests/benchmarks/test_balance.py",)
