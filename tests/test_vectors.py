"""The golden vectors that every reader is held to: Python still gives them."""

import json

import pytest
from vectors import VECTORS, answer, questions

STORED = json.loads(VECTORS.read_text())


@pytest.mark.parametrize("number", range(len(STORED)))
def test_python_gives_the_golden_vectors(number: int) -> None:
    vector = STORED[number]
    assert answer(vector["op"], vector["asked"]) == vector["want"]


def test_the_file_asks_what_its_maker_asks() -> None:
    asked = [{"op": op, "asked": asked} for op, asked in questions()]
    assert json.loads(json.dumps(asked)) == [{"op": each["op"], "asked": each["asked"]} for each in STORED]
