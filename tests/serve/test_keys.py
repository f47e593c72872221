"""API keys: only the right one opens, and no message shows one."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddm_rt.errors import DdmError
from ddm_rt.serve.http.keys import Caller, Keys

ALICE, BOB = "alice-0123456789abcdef", "bob-0123456789abcdef"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_keys_and_hashes_of_keys(tmp_path: Path) -> None:
    digest = hashlib.sha256(BOB.encode()).hexdigest()
    keys = Keys.load(write(tmp_path / "keys", f"# staff\n\nalice {ALICE}\n  bob\tsha256:{digest}  -3\n"))
    assert keys.find(ALICE) == Caller("alice", 0)
    assert keys.find(BOB) == Caller("bob", -3)
    for wrong in ("", "alice", ALICE + " ", ALICE.upper(), f"sha256:{digest}", digest, "\udc80", "é" * 20):
        assert keys.find(wrong) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "holds no keys"),
        ("# nothing\n", "holds no keys"),
        ("alice\n", "line 1"),
        ("alice short\n", "line 1"),
        (f"alice {ALICE}\nbob {BOB} high\n", "line 2"),
        (f"alice {ALICE} 1 2\n", "line 1"),
        ("alice sha256:0123456789abcdef\n", "line 1"),
        ("alice 0123456789abcdéf0123\n", "line 1"),
        (f"a/b {ALICE}\n", "line 1"),
        (f"alice {ALICE}\nalice {BOB}\n", "a name stands there twice"),
        (f"alice {ALICE}\nbob {ALICE}\n", "a key stands there twice"),
    ],
)
def test_a_file_that_is_wrong_is_refused_without_telling_a_key(tmp_path: Path, text: str, reason: str) -> None:
    path = write(tmp_path / "keys", text)
    with pytest.raises(DdmError, match=reason) as caught:
        Keys.load(path)
    assert str(path) in str(caught.value)
    assert ALICE not in str(caught.value)
    assert BOB not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DdmError, match="cannot be read"):
        Keys.load(tmp_path / "none")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(DdmError, match="not text"):
        Keys.load(tmp_path / "bytes")


def test_a_key_of_16_characters_is_long_enough(tmp_path: Path) -> None:
    keys = Keys.load(write(tmp_path / "keys", f"alice {'k' * 16}\n"))
    assert keys.find("k" * 16) == Caller("alice")
    with pytest.raises(DdmError, match="line 1: expected NAME KEY"):
        Keys.load(write(tmp_path / "keys", f"alice {'k' * 15}\n"))


# Lines that are mostly right, so that some files are, and any text.
names, plain, priorities = (
    st.sampled_from("abcd"),
    st.sampled_from([ALICE, BOB, "k" * 16, "k" * 15]),
    st.integers(-9, 9),
)
lines = st.one_of(
    st.builds("{} {}".format, names, plain),
    st.builds("  {}\t{} {}".format, names, plain, priorities),
    st.sampled_from(["", "# a comment"]),
    st.text(max_size=40),
)


@settings(deadline=None)
@given(st.lists(lines, max_size=4).map("\n".join))
def test_any_text_is_keys_or_one_clear_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any_keys"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    refused = ""
    try:
        keys = Keys.load(path)
    except DdmError as error:  # and nothing else
        refused = str(error)
    if refused:
        assert refused.startswith(f"{path}: ")
        assert "expected" in refused
        assert ALICE not in refused
        assert BOB not in refused
        return
    entries = [line.split() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    assert entries
    for name, key, *priority in entries:
        assert keys.find(key) == Caller(name, int(priority[0]) if priority else 0)
