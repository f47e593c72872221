"""The README's Python runs, in its order, in an empty directory; what talks to a server talks to one."""

import re
from contextlib import nullcontext
from pathlib import Path

import pytest

from ddm_rt.sample.pipeline import Pipeline

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
SERVER = "http://127.0.0.1:8000"


def test_the_readme_has_an_example() -> None:
    assert BLOCKS


def example(block: str) -> object:
    """One that needs other people's client waits for the extra that brings it."""
    marks = (
        [pytest.mark.slow(reason="needs ddm-rt[integration]")]
        if "import openai" in block or "from openai" in block
        else []
    )
    return pytest.param(block, marks=marks)


@pytest.mark.parametrize("block", [example(block) for block in BLOCKS])
def test_readme_example_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from http_server import running

    monkeypatch.chdir(tmp_path)
    served = running(Pipeline.load("digits", threads=1)) if SERVER in block else nullcontext()
    with served as server:
        code = block.replace(SERVER, server.url) if server is not None else block
        exec(compile(code, str(README), "exec"), {"__name__": "readme"})  # noqa: S102 - our own README
