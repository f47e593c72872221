"""What a provider states, from TOML."""

from pathlib import Path

import pytest

from ddm_rt.errors import DdmError
from ddm_rt.evaluate.audit.about import NOT_STATED, About, read_about


def test_what_is_stated_and_what_is_not(tmp_path: Path) -> None:
    path = tmp_path / "about.toml"
    path.write_text('provider = "Ours"\nnext_audit = 2027-01-31\n', encoding="utf-8")
    about = read_about(path)
    assert about.told("provider", "next_audit", "intended_use") == [
        ("provider", "Ours"),
        ("next audit", "2027-01-31"),
        ("intended use", NOT_STATED),
    ]
    assert read_about(None) == About()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("provider", "not a TOML file"),
        ("use = 'x'", "field use is unknown; known: model, version"),
        ("provider = 3", "field provider"),
        ("provider = ''", "field provider"),
        ("next_audit = 'soon'", "field next_audit"),
        ("pipeline_tag = 'Text to Image'", "field pipeline_tag"),
    ],
)
def test_a_file_that_states_something_else(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "about.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DdmError, match=r"about\.toml: ") as error:
        read_about(path)
    assert said in str(error.value)
    with pytest.raises(DdmError, match="cannot be read"):
        read_about(tmp_path / "none.toml")
