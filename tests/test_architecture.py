"""The house holds: data flows one way through the rooms, files stay small, nothing names a machine."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
from house_tree import with_tree

ROOT = Path(__file__).parents[1]
ROOMS = sorted(
    {path.relative_to(ROOT / "ddm_rt").parts[0].removesuffix(".py") for path in (ROOT / "ddm_rt").rglob("*.py")}
)
SOURCES = sorted(
    path
    for folder in ("ddm_rt", "kernels", "tests", "benchmarks", "docs")
    for path in (ROOT / folder).rglob("*.py")
    if "__pycache__" not in path.parts
)
TEXTS = [
    *SOURCES,
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "pyproject.toml")),
]
MAX_LINES = 400
# A home, a mounted disk or a drive letter; `/tmp` and `/usr` are on every machine, but have no place here either.
MACHINE_PATH = re.compile(r"(?<![\w.}/])/(?:home|root|Users|work|mnt|tmp|usr|opt|var)/|\b[A-Z]:\\")


def told(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.add(node.module or "")
    return found


def contracts() -> list[dict]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]


def lint(configuration: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("lint-imports")
    command = [program, "--config", configuration, "--no-cache"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_import_contracts_are_kept() -> None:
    done = lint(ROOT / "pyproject.toml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout


def test_every_room_stands_in_the_layers() -> None:
    layers = re.findall(r"ddm_rt\.(\w+)", " ".join(contracts()[0]["layers"]))
    assert sorted(set(ROOMS) - {"__init__"}) == sorted(layers)


def test_a_forbidden_import_would_be_seen(tmp_path: Path) -> None:
    """The linter does look inside: an import that is there, and forbidden, is reported."""
    (tmp_path / "forbidden.toml").write_text(
        """
        [tool.importlinter]
        root_packages = ["ddm_rt", "ddm_rt.kernels"]
        include_external_packages = true
        [[tool.importlinter.contracts]]
        name = "the torch backend is not allowed torch, nor kernels numpy's like"
        type = "forbidden"
        source_modules = ["ddm_rt.engine", "ddm_rt.kernels.*"]
        forbidden_modules = ["torch"]
        """
    )
    done = lint(tmp_path / "forbidden.toml")
    assert done.returncode == 1
    assert "ddm_rt.engine.torch.engine -> torch" in done.stdout
    assert "ddm_rt.kernels.indicator_attention" in done.stdout


def test_kernels_import_nothing_of_the_project_but_kernels() -> None:
    """Beside the linter: this sees the folder itself, whatever is installed."""
    files = sorted((ROOT / "kernels").rglob("*.py"))
    assert files
    names = {(told(path), name) for path in files for name in imports(path)}
    assert {both for both in names if re.match(r"ddm_rt\b(?!\.kernels\b)", both[1])} == set()


def test_there_is_no_module_that_would_hide_the_rest() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists(), "the folder is a part of ddm_rt by mapping alone"


def test_a_file_holds_one_idea() -> None:
    lengths = {told(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {path: lines for path, lines in lengths.items() if lines >= MAX_LINES} == {}
    assert [told(path) for path in SOURCES if path.stem in ("utils", "helpers", "common", "misc")] == []


def test_the_tree_of_rooms_is_the_present_one() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert with_tree(text) == text, "run: python tests/house_tree.py"
    (layers,) = (contract["layers"] for contract in contracts() if contract["type"] == "layers")
    row = " > ".join(f"({layer})" if "|" in layer else layer for layer in layers).replace("ddm_rt.", "")
    assert row in " ".join(text.split())


def test_the_files_that_contributing_names_are_there() -> None:
    named = re.findall(
        r"`((?:[\w-]+/)+[\w-]+\.(?:py|cpp|toml))`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    )
    places = (ROOT, ROOT / "ddm_rt", ROOT / "benchmarks")
    assert [name for name in named if not any((place / name).is_file() for place in places)] == []


def test_a_room_has_no_more_files_than_one_can_look_over() -> None:
    folders = {path.parent for folder in ("ddm_rt", "kernels") for path in (ROOT / folder).rglob("*.py")}
    counts = {told(folder): len(list(folder.glob("*.py"))) for folder in folders}
    assert {name: count for name, count in counts.items() if count > 16 and name != "ddm_rt/cli"} == {}


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = grimp.build_graph("ddm_rt", exclude_type_checking_imports=True)
    imported = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    while leaves := [module for module, others in imported.items() if not others & imported.keys()]:
        for module in leaves:
            del imported[module]
    assert imported == {}


def test_imports_are_absolute() -> None:
    for path in SOURCES:
        imports(path)


def test_nothing_names_a_machine() -> None:
    named = [
        f"{told(path)}, line {number}: {line.strip()}"
        for path in TEXTS
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if MACHINE_PATH.search(line)
    ]
    assert named == []
