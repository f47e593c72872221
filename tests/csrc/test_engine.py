"""The embedding library's parts against Python's: tokens, guidance, calls, steps, words."""

import json
import random
import re
import subprocess
import sysconfig
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import tokenizer as clip
from embedding_build import Built
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from ddm_rt.errors import DdmError
from ddm_rt.kernels.guided_step import guided_step
from ddm_rt.kernels.projected_guidance import projected_guidance
from ddm_rt.runtime import TextSpec
from ddm_rt.sample.balance.leave_alone import parse_words, words_for
from ddm_rt.sample.loop.batch_sizes import CANDIDATES, split
from ddm_rt.sample.loop.guidance import Condition, branches
from ddm_rt.sample.loop.tokenizers import _loss, _open

LENGTH, PAD = 77, 49407

Probe = Callable[..., Any]


@pytest.fixture(scope="module")
def probe(built: Built) -> Probe:
    """probe(op, ...) is what the library's part gives."""

    def ask(op: str, **asked: Any) -> Any:
        command = [built.tests / "ddm-engine-probe"]
        question = json.dumps({"op": op, **asked})
        done = subprocess.run(command, input=question.encode(), capture_output=True, check=False)
        assert done.returncode in (0, 2), done.stderr.decode()
        return json.loads(done.stdout)

    return ask


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    path = folder / "tokenizer.json"
    path.write_text(clip(folder / "vocabulary").backend_tokenizer.to_str())
    return path


def check_tokens(probe: Probe, path: Path, texts: list[str]) -> None:
    spec = TextSpec(tokenizer=path.name, input="input_ids", max_length=LENGTH, pad_id=PAD)
    reference = _open(path, spec)
    found = probe("tokens", tokenizer=str(path), max_length=LENGTH, pad_id=PAD, texts=texts)
    for text, (ids, loss) in zip(texts, found, strict=True):
        encoded = reference.encode(text)
        assert ids == encoded.ids, repr(text)
        assert bool(loss) == bool(encoded.overflowing), repr(text)
        if loss:
            here, there = (
                re.search(r"left out (?:the last )?(\d+)", said) for said in (_loss(text, spec, encoded), loss)
            )
            assert (here and here[1]) == (there and there[1]), repr(text)


NFC = normalizers.NFC()


def is_assigned(character: str) -> bool:
    """Sides agree on the characters that the Unicode of each assigns. The tokenizers library has an older one."""
    among_marks = f"a\u0315{character}\u0334"  # of the highest and the lowest class
    return unicodedata.category(character) not in ("Cn", "Cs") and (
        NFC.normalize_str(among_marks) == unicodedata.normalize("NFC", among_marks)
    )


def lines() -> Iterator[str]:
    """English, code and names; some too long."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        source = path.read_text(encoding="utf-8", errors="replace").splitlines()
        yield " ".join(source[:40])
        yield from (line for line in source if len(line.split()) > 4)


ODD = (
    *(
        "",
        " ",
        "\n\t ",
        "🙂",
        "👩🏽‍🚒👨‍👩‍👧‍👦 at work",
        "naïve café",
        "nai\u0308ve cafe\u0301",
        "ﬁreﬁghter",
        "İSTANBUL",
        "ẞtraße",
    ),
    *(
        "医生的照片",
        "طبيب",
        "доктор",
        "นางพยาบาล",
        "각 \u1100\u1161\u11a8",
        "\u200b\u200d\ufeff",
        "\x07\x1b[31m",
        "a\u0323\u0307b",
    ),
    *(
        "<|startoftext|>",
        "<|endoftext|> a nurse",
        "a nurse<|endoftext|>",
        "<|ENDOFTEXT|>",
        "</w>",
        "it's we're I'LL they'd",
    ),
    *("!'s", "3.14159 4x4", "a   b\u00a0c\u3000d", "e" * 500, "x " * 76, "x " * 75, "x " * 74, "🙂" * 100, "医" * 100),
)


def test_tokens_are_those_of_the_tokenizers_library(probe: Probe, tokenizer_file: Path) -> None:
    check_tokens(probe, tokenizer_file, [*ODD, *random.Random(0).sample(list(lines()), 3000)])


def test_tokens_of_any_characters(probe: Probe, tokenizer_file: Path) -> None:
    rng = random.Random(1)

    def noise() -> str:
        last = rng.choice([0x7F, 0x24F, 0x2FFF, 0x10FFFF])
        letters = (chr(rng.randrange(last + 1)) for _ in range(rng.randrange(1, 40)))
        return "".join(filter(is_assigned, letters))

    check_tokens(probe, tokenizer_file, [noise() for _ in range(3000)])


@settings(max_examples=10, deadline=None)  # each starts the probe, which reads the tokenizer
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs", "Cn"]).filter(is_assigned), max_size=40),
        min_size=1,
        max_size=120,
    )
)
def test_any_unicode_text(probe: Probe, tokenizer_file: Path, texts: list[str]) -> None:
    check_tokens(probe, tokenizer_file, texts)


@pytest.mark.slow  # there are a million
def test_tokens_of_every_character(probe: Probe, tokenizer_file: Path) -> None:
    every = list(filter(is_assigned, map(chr, range(0x110000))))
    texts = ["".join(f"a{c}" for c in every[i : i + 12]) for i in range(0, len(every), 12)]
    check_tokens(probe, tokenizer_file, texts)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"normalizer": None}, "normalizer"),
        ({"pre_tokenizer": {"type": "ByteLevel"}}, "pre_tokenizer.pretokenizers"),
        ({"post_processor": {"type": "ByteLevel"}}, "post_processor.type"),
        ({"model": {"type": "WordPiece"}}, "model.type"),
        ({"added_tokens": 3}, "added_tokens"),
    ],
)
def test_a_tokenizer_of_another_kind_is_refused(
    probe: Probe, tokenizer_file: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps(json.loads(tokenizer_file.read_text()) | change))
    found = probe("tokens", tokenizer=str(other), max_length=LENGTH, pad_id=PAD, texts=["a"])
    assert found["error"].startswith(f"{other}: field {said}: ")


def test_a_padding_token_that_is_not_there(probe: Probe, tokenizer_file: Path) -> None:
    with pytest.raises(DdmError) as here:
        _open(tokenizer_file, TextSpec(tokenizer="t", input="i", max_length=LENGTH, pad_id=60000))
    found = probe("tokens", tokenizer=str(tokenizer_file), max_length=LENGTH, pad_id=60000, texts=["a"])
    assert found["error"] == str(here.value)


SCALES = st.sampled_from([0.0, 1.0, 1.5, 2.0, 7.5])
TEXTS = st.sampled_from([None, "", "a nurse", "blurry"])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(TEXTS, st.integers(-1, 3), TEXTS, st.none() | SCALES, SCALES), min_size=20, max_size=60))
def test_branches_are_pythons(probe: Probe, cases: list[tuple[Any, ...]]) -> None:
    names = ("text", "code", "null", "text_scale", "code_scale")
    found = probe("branches", cases=[dict(zip(names, case, strict=True)) for case in cases])
    for (text, code, null, text_scale, code_scale), (conditions, scales) in zip(cases, found, strict=True):
        want = branches(Condition(text, code), null, text_scale, code_scale)
        assert [Condition(*condition) for condition in conditions] == list(want.conditions)
        assert scales == list(want.scales)


def test_calls_are_split_as_pythons(probe: Probe) -> None:
    sizes = [[1], [1, 2, 4, 8, 16], [2, 8], [64], list(CANDIDATES), [1, 16]]
    cases = [[rows, buckets] for rows in range(1, 150, 3) for buckets in sizes]
    found = probe("splits", cases=cases)
    assert found == [[call.tolist() for call in split(rows, buckets)] for rows, buckets in cases]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(0, 2**32 - 1), st.booleans(), st.booleans())
def test_a_step_is_numpys_bit_for_bit(probe: Probe, count: int, seed: int, noisy: bool, clipped: bool) -> None:
    """But for noise, whose last bit is another's logarithm's."""
    rng = np.random.default_rng(seed)
    outputs = [rng.normal(size=(1, 2, 3, 5)).astype(np.float32) for _ in range(count)]
    x, x0 = (rng.normal(size=(1, 2, 3, 5)).astype(np.float32) for _ in range(2))
    scales = rng.uniform(0, 9, size=(1, count - 1)).astype(np.float32)
    row = rng.normal(size=(1, 9)).astype(np.float32)
    row[0, 6] = rng.uniform() if noisy else 0
    limit = 0.7 if clipped else 1e6
    row[0, 7:] = -limit, limit
    noise = (np.array([seed], np.uint64), np.array([3])) if noisy else (None, None)
    want = guided_step(outputs, scales, row, x, x0, *noise)
    found = probe(
        "step",
        outputs=[output.ravel().tolist() for output in outputs],
        scales=scales[0].tolist(),
        row=row[0].tolist(),
        x=x.ravel().tolist(),
        x0=x0.ravel().tolist(),
        seed=seed,
        counter=3,
    )
    for here, there in zip(want, found, strict=True):
        got = np.array(there, np.float32).reshape(here.shape)
        if noisy:
            np.testing.assert_allclose(got, here, rtol=1e-6, atol=1e-6)
        else:
            np.testing.assert_array_equal(got.view(np.uint32), here.view(np.uint32))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 3), st.integers(0, 2**32 - 1), st.sampled_from([(1, 1, 1), (2, 3, 5), (4, 16, 16)]))
def test_projected_guidance_is_numpys_bit_for_bit(probe: Probe, count: int, seed: int, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(seed)
    outputs = [rng.normal(size=(1, *shape)).astype(np.float32) for _ in range(count)]
    scales = rng.uniform(0, 9, size=count - 1).astype(np.float32)
    apg = rng.uniform([0.1, 0], [30, 2]).astype(np.float32)
    (want,) = projected_guidance(outputs, np.concatenate([scales, apg])[None])
    lists = [output.ravel().tolist() for output in outputs]
    found = probe("project", outputs=lists, scales=scales.tolist(), apg=apg.tolist())
    np.testing.assert_array_equal(np.array(found, np.float32).view(np.uint32), want.ravel().view(np.uint32))


@pytest.mark.parametrize("dtype", ["float16", "int64", "float32"])
def test_numbers_become_those_of_another_dtype_as_numpys(probe: Probe, dtype: str) -> None:
    """Halves, ties and all, of each size that a half has; and what has no number there."""
    rng = np.random.default_rng(0)
    ties = np.arange(0x33000000, 0x47900000, 0x1000, dtype=np.uint32)[:: 1 if dtype == "float16" else 100]
    edges = np.array([0, 1, 0x7F800000, 0x7FC00000, 0x477FEFFF, 0x477FF000, 0x5F000000, 0x5EFFFFFF], np.uint32)
    bits = np.concatenate([ties, edges, rng.integers(0, 2**31, 3000, np.uint32)])
    bits = np.concatenate([bits, bits | np.uint32(1 << 31)])
    values = bits.view(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        want = values.astype(dtype)
    found = np.array(probe("cast", bits=bits.tolist(), dtype=dtype), np.int64).astype(f"i{want.itemsize}")
    numbers = ~np.isnan(values) if want.dtype.kind == "f" else np.abs(values) < 2.0**63  # others are the machine's own
    np.testing.assert_array_equal(found[numbers], want.view(found.dtype)[numbers])
    if want.dtype.kind == "f":
        assert np.isnan(found.view(want.dtype)[~numbers]).all()


@pytest.mark.parametrize(
    "content",
    [
        '["woman", "man"]',
        '{"*": ["woman", "man"], "staff": ["nurse", "man"], "other": ["x"]}',
        "{",
        "3",
        '["woman", 3]',
        '["woman", -123456789012345678901234567890]',
        '{"staff": "nurse"}',
        '{"staff": [true, null, 1.5, {"a": []}]}',
        '{"staff": [" "]}',
        '{"staff": ["zebra"], "*": ["apple"]}',
    ],
)
@pytest.mark.parametrize("scope", [None, "staff"])
def test_words_from_a_file(
    probe: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, scope: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("words.json").write_text(content)
    there = probe("words", content=content, scope=scope)
    try:
        assert there == list(words_for(parse_words("words.json"), scope))
    except DdmError:
        assert "words.json" in there["error"]
