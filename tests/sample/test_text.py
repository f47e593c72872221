"""Token ids are those of transformers' CLIPTokenizer; what doesn't fit is cut with one warning that says so."""

import dataclasses
import logging
import random
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from fake_engine import FakeEngine
from fake_text import MAX_LENGTH, text_bundle
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from ddm_rt.config import RunConfig, parse_json
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.export.run import read_text
from ddm_rt.sample.loop.tokenizers import Tokenizers, check_text
from ddm_rt.sample.pipeline import Pipeline

ODD = (
    *("", " ", "\n\t ", "🙂", "👩‍⚕️ at work", "👩🏽‍🚒👨‍👩‍👧‍👦", "naïve café", "nai\u0308ve cafe\u0301", "ﬁreﬁghter"),
    *("İSTANBUL", "ẞtraße", "医生的照片", "طبيب", "доктор", "นางพยาบาล", "a\0b", "\x07\x1b[31m", "\u200b\u200d\ufeff"),
    *("\ufffd", "\U0010ffff", "<|startoftext|>", "<|endoftext|> a nurse", "a nurse<|endoftext|>", "<|ENDOFTEXT|>"),
    *("!!!!!", "</w>", "it's we're I'LL they'd", "3.14159 1,000,000 4x4", "a   b\u00a0c\u3000d", "&amp; &lt;b&gt;"),
    *("a\\b", "e" * 500, "x " * 76, "x " * 75, "x " * 74, "too long " * 300, "🙂" * 100, "医" * 100),
)


@pytest.fixture(scope="module")
def clip_tokenizers(latent_runs: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Tokenizers:
    """SDXL's two, which pad with different tokens."""
    run = latent_runs["sdxl"]
    text = read_text(run, parse_json(RunConfig, (run / "config.json").read_bytes(), run))
    bundle = text_bundle(tmp_path_factory.mktemp("clip"), sized=True)
    for name, content in text.files.items():
        (bundle.path / name).write_text(content)
    return Tokenizers(dataclasses.replace(bundle, config=bundle.config.model_copy(update={"text": text.specs})))


@pytest.fixture(scope="module")
def references(checkpoints: Mapping[str, Path]) -> dict[str, CLIPTokenizer]:
    folders = {"input_ids": "tokenizer", "input_ids_2": "tokenizer_2"}
    return {
        name: CLIPTokenizer.from_pretrained(checkpoints["sdxl"] / folder, local_files_only=True)
        for name, folder in folders.items()
    }


def sentences() -> Iterator[str]:
    """Lines of the standard library's sources: English, code and names; each file's whole text once, which is long."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        yield " ".join(lines[:40])
        yield from (line for line in lines if len(line.split()) > 4)


def noise(rng: random.Random) -> str:
    """Any characters, from all of Unicode and from its crowded first pages."""
    last = rng.choice([0x7F, 0x24F, 0x2FFF, 0x10FFFF])
    letters = (chr(rng.randrange(last + 1)) for _ in range(rng.randrange(1, 40)))
    return "".join(letter for letter in letters if not "\ud800" <= letter <= "\udfff")


@pytest.mark.parametrize("strings", [2_000, pytest.param(10_000, marks=pytest.mark.slow(reason="fewer are quick"))])
def test_thousands_of_strings(
    strings: int, clip_tokenizers: Tokenizers, references: dict[str, CLIPTokenizer], caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(0)
    lines = list(sentences())
    texts = list(ODD) + [noise(rng) for _ in range(strings // 7)]
    texts += rng.sample(lines, strings - len(texts))
    assert len(texts) == strings
    caplog.set_level(logging.ERROR)  # hundreds are too long
    found = [clip_tokenizers.ids(text) for text in texts]
    for name, reference in references.items():
        ids = np.concatenate([one[name] for one in found])
        options = {"padding": "max_length", "max_length": 77, "truncation": True, "return_tensors": "np"}
        want = reference(texts, **options)["input_ids"]
        assert ids.dtype == np.int64
        for i in np.flatnonzero((ids != want).any(axis=1)):
            pytest.fail(f"{texts[i]!r}: {ids[i].tolist()}; expected {want[i].tolist()}")
    assert not np.array_equal(found[0]["input_ids"], found[0]["input_ids_2"])  # paddings differ


@pytest.fixture
def tokenizers(tmp_path: Path) -> Tokenizers:
    return Tokenizers(text_bundle(tmp_path))


LETTERS = MAX_LENGTH - 2


@pytest.mark.parametrize(
    ("lost", "said"),
    [(1, f"left out 1 token beyond the {MAX_LENGTH} that"), (30, f"left out 30 tokens beyond the {MAX_LENGTH} that")],
)
def test_a_warning_says_what_was_lost(
    tokenizers: Tokenizers, caplog: pytest.LogCaptureFixture, lost: int, said: str
) -> None:
    whole = tokenizers.ids("a" * LETTERS)["input_ids"]
    assert not caplog.records
    cut = tokenizers.ids("a" * LETTERS + "b" * lost)["input_ids"]
    np.testing.assert_array_equal(cut, whole)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert said in record.message
    assert record.message.endswith(repr("b" * lost))


def test_a_warning_is_one_line_of_bounded_length(tokenizers: Tokenizers, caplog: pytest.LogCaptureFixture) -> None:
    tokenizers.ids("a" * LETTERS + "%s\n" * 10_000)
    (record,) = caplog.records
    assert "\n" not in record.message
    assert len(record.message) < 1000


def test_a_request_warns_once_per_prompt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipeline = Pipeline(text_bundle(tmp_path, sized=True), FakeEngine())
    texts = ["a" * 60, "b" * 60, "short"]
    pipeline.generate(texts, negative_prompt="c" * 60, n=9)
    pipeline.generate(texts[0], n=2, seed=5)
    said = [record.message for record in caplog.records if "too long" in record.message]
    assert sorted(message[-10:-1] for message in said) == ["a" * 9, "b" * 9, "c" * 9]


@given(st.text(max_size=60))
def test_any_unicode_text_has_ids(clip_tokenizers: Tokenizers, text: str) -> None:
    for ids in clip_tokenizers.ids(text).values():
        assert ids.shape == (1, 77)
        assert ids[0, 0] == 49406


@pytest.mark.parametrize("text", ["\ud800", "a nurse \udcff"])
def test_half_a_character_is_refused(tokenizers: Tokenizers, text: str) -> None:
    with pytest.raises(DdmError, match=r"prompt is .*expected Unicode text"):
        tokenizers.ids(text)


def test_text_is_a_string() -> None:
    for value in (None, 3, b"a nurse", ["a nurse"]):
        with pytest.raises(DdmError, match=r"negative_prompt is .*expected text"):
            check_text("negative_prompt", value)


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[]", b"\xff\xfe", b'{"model": {"type": "BPE"}}'])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, content: bytes | None) -> None:
    bundle = text_bundle(tmp_path)
    path = tmp_path / "tokenizer" / "tokenizer.json"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(BundleError, match=r"tokenizer\.json: (cannot be read|not a tokenizer)"):
        Tokenizers(bundle)


def test_a_padding_token_that_is_not_there(tmp_path: Path) -> None:
    bundle = text_bundle(tmp_path)
    spec = bundle.config.text[0].model_copy(update={"pad_id": 9999})
    bundle = dataclasses.replace(bundle, config=bundle.config.model_copy(update={"text": (spec,)}))
    with pytest.raises(BundleError, match="no token of the id 9999"):
        Tokenizers(bundle)


def test_the_version_that_makes_the_ids_is_recorded(tokenizers: Tokenizers) -> None:
    assert tokenizers.versions.keys() == {"tokenizers"}
