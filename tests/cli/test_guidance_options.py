"""`--guidance-interval`, `--apg` and `--cads`: values that are refused, and how."""

from pathlib import Path

import pytest

from ddm_rt.bundle import Bundle


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--guidance-interval", ".2", "'.2': expected numbers with commas between them, for example .2,.8"),
        ("--guidance-interval", ".8,.2", "guidance_interval is (0.8, 0.2); expected a start below a stop"),
        ("--apg", "15,1,2", "--apg '15,1,2': expected numbers with commas between them, for example 15,.5, or 15"),
        ("--apg", "0", "apg is (0.0, 0.0); expected a norm of 1e-06 to"),
        (
            "--cads",
            ".25,.6",
            "--cads '.25,.6': expected numbers with commas between them, for example .25,.6,.9, or .25",
        ),
        ("--cads", ".25", "cads is given; bundle 'tiny' is prompt-free: there are no tokens of a prompt"),
    ],
)
def test_guidance_that_cannot_be(ddm_rt, bundle: Bundle, tmp_path: Path, option: str, value: str, said: str) -> None:
    assert said in ddm_rt("sample", bundle.path, "-n", 2, "--out", tmp_path / "out", option, value).refusal()
    assert not (tmp_path / "out").exists()
