"""Writes the tree of rooms into CONTRIBUTING.md, from the rooms' own docstrings.

python tests/house_tree.py
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- the tree: python tests/house_tree.py -->", "<!-- end of the tree -->"
_WIDTH = 130


def tree() -> str:
    """One item for each package of the product: its first sentence, and its files."""
    lines = []
    for folder in ("ddm_rt", "kernels"):
        for init in sorted((ROOT / folder).rglob("__init__.py"), key=lambda path: path.parent.parts):
            files = sorted(path.stem for path in init.parent.glob("*.py") if not path.stem.startswith("__"))
            name = init.parent.relative_to(ROOT).as_posix()
            lines += _wrapped(f"- `{name}/` {_first_sentence(init)} *{', '.join(files)}*")
    return "\n".join(lines)


def _first_sentence(path: Path) -> str:
    text = " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split())
    return text.partition(". ")[0].rstrip(".") + "."


def _wrapped(text: str) -> list[str]:
    lines, line = [], ""
    for word in text.split(" "):
        if line and len(f"{line} {word}") > _WIDTH:
            lines.append(line)
            line = f"  {word}"
        else:
            line = f"{line} {word}" if line else word
    return [*lines, line]


def with_tree(text: str) -> str:
    """CONTRIBUTING.md with the present tree in the place of the one that it has."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{tree()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    page = ROOT / "CONTRIBUTING.md"
    page.write_text(with_tree(page.read_text(encoding="utf-8")), encoding="utf-8")
