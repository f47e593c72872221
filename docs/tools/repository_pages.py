"""Pages that are files of the repository too: CONTRIBUTING.md, and the results with their charts."""

import re
from pathlib import Path

_CONTRIBUTING = "contributing.md"
_RESULTS = Path("benchmarks/results")
_INDEX = "README.md"  # of the results: a page of its own here, beside the site's own index
_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)")
_TREE = re.compile(r"^<!-- .*(?:tree).* -->\n", re.MULTILINE)
# Of pages that have none.
_TITLES = {
    "balance.md": "Balance on digits",
    "distill.table.md": "Students of few steps",
    "faces.md": "Balance on faces",
    "latent_digits.md": "Balance through a VAE and prompts",
    "steering.md": "Codes without training",
    "step.md": "Speed of a step",
}


def pages(root: Path) -> dict[str, str]:
    """Place in the site -> Markdown."""
    found = {_CONTRIBUTING: _TREE.sub("", (root / "CONTRIBUTING.md").read_text(encoding="utf-8"))}
    for path in sorted((root / _RESULTS).glob("*.md")):
        text = _LINK.sub(lambda link: link[1] + _name(link[2]), path.read_text(encoding="utf-8"))
        if not re.search(r"^# ", text, re.MULTILINE):
            if path.name not in _TITLES:
                raise ValueError(f"{path}: has no heading; expected a line '# TITLE', or a title in {__name__}")
            text = f"# {_TITLES[path.name]}\n\n{text}"
        found[f"results/{_name(path.name)}"] = text
    return found


def pictures(root: Path) -> dict[str, Path]:
    """Place in the site -> file."""
    return {f"results/{path.name}": path for path in sorted((root / _RESULTS).glob("*.svg"))}


def _name(name: str) -> str:
    return "data.md" if name == _INDEX else name
