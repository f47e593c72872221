"""What `--judge` names: an attribute, and who judges it."""

import pytest

from ddm_rt.errors import DdmError
from ddm_rt.evaluate.audit.judges import parse_source


@pytest.mark.parametrize(
    ("text", "attribute", "kind", "path"),
    [
        ("gender=a/b.onnx", "gender", "file", "a/b.onnx"),
        ("a/age judge.onnx", "age_judge", "file", "a/age judge.onnx"),
        ("clip:models/openai", "openai", "clip", "models/openai"),
        ("race=people:labels.csv", "race", "people", "labels.csv"),
        ("digits", "digits", "file", "digits"),
        ("1.onnx", "group", "file", "1.onnx"),
    ],
)
def test_names_of_judges(text: str, attribute: str, kind: str, path: str) -> None:
    source = parse_source(text)
    assert (source.attribute, source.kind, source.path) == (attribute, kind, path)


@pytest.mark.parametrize("text", ["", "gender=", "clip:", "gender=people: ", "a b=c.onnx", "a&b=c.onnx"])
def test_no_judge(text: str) -> None:
    with pytest.raises(DdmError, match="--judge"):
        parse_source(text)
