"""`ddm-rt sample --prompt`: Stable Diffusion bundles without the training packages, replays, and mistakes in text."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from serving_only import COMMAND, without_training_packages

from ddm_rt.bundle import Bundle, FileEntry, bundle_id

PROMPTS = ("a photo of a doctor", "", "a photo of a Female judge")


@pytest.fixture(scope="module")
def sd(latent_bundles: Mapping[str, Bundle]) -> Bundle:
    return latent_bundles["sd15"]


def line(bundle: Bundle, out: Path, *more: object) -> tuple[object, ...]:
    return ("sample", bundle.path, "-n", 3, "--steps", 2, "--threads", 1, "--out", out, *more)


def pixels(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("0*.png")}


@pytest.fixture(scope="module")
def sampled(sd: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three prompts with guidance on text and code apart, made where torch and transformers can't be imported."""
    out = tmp_path_factory.mktemp("prompts") / "out"
    texts = [part for prompt in PROMPTS for part in ("--prompt", prompt)]
    scales = ("--guidance-scale", 7.5, "--indicator-guidance-scale", 2)
    command = line(sd, out, *texts, "--negative-prompt", "blurry", *scales, "--leave-alone", "female,woman")
    done = without_training_packages(COMMAND, *command)
    assert done.returncode == 0, done.stderr
    assert "too long" not in done.stderr
    return out


def test_the_manifest_says_what_was_asked(sampled: Path) -> None:
    manifest = json.loads((sampled / "manifest.json").read_bytes())
    request = manifest["request"]
    assert request["prompt"] == [image["prompt"] for image in manifest["images"]] == list(PROMPTS)
    assert (request["negative_prompt"], request["leave_alone"]) == ("blurry", ["female", "woman"])
    assert (request["guidance_scale"], request["indicator_guidance_scale"]) == (7.5, 2.0)
    codes = [image["code"] for image in manifest["images"]]
    assert codes[2] == -1
    assert -1 not in codes[:2]
    assert manifest["versions"].keys() == {"onnxruntime", "numpy", "tokenizers"}
    assert len(set(pixels(sampled).values())) == 3


@pytest.mark.parametrize("index", [None, 0, 2])
def test_a_manifest_replays_to_the_same_bytes(
    ddm_rt, sd: Bundle, sampled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, index: int | None
) -> None:
    one = () if index is None else ("--index", index)
    replay = ("sample", sd.path, "--from", sampled / "manifest.json", "--threads", 1, *one, "--out", tmp_path / "again")
    done = ddm_rt(*replay)
    assert done.code == 0, done.err
    assert "bytes may differ" not in caplog.text
    made, again = pixels(sampled), pixels(tmp_path / "again")
    assert again == (made if index is None else {f"{index:05d}.png": made[f"{index:05d}.png"]})


def test_a_prompt_that_is_too_long_is_cut_with_a_warning(ddm_rt, sd: Bundle, tmp_path: Path) -> None:
    long = " ".join(["the"] * 80)
    done = without_training_packages(COMMAND, *line(sd, tmp_path / "long", "--prompt", long))  # its stderr is its own
    assert done.returncode == 0, done.stderr
    said = [row for row in done.stderr.splitlines() if "too long" in row]
    assert said == [
        "prompt too long: left out 5 tokens beyond the 77 that the text encoder reads (begin and end count): "
        "'the the the the the'"
    ]
    assert ddm_rt(*line(sd, tmp_path / "short", "--prompt", " ".join(["the"] * 75))).code == 0
    assert pixels(tmp_path / "long") == pixels(tmp_path / "short")
    assert json.loads((tmp_path / "long" / "manifest.json").read_bytes())["request"]["prompt"] == long


def test_words_by_scope_from_a_file(ddm_rt, sd: Bundle, tmp_path: Path) -> None:
    words = tmp_path / "words.json"
    words.write_text(json.dumps({"jobs": ["doctor"]}))
    given = ("--prompt", "a doctor", "--leave-alone", words)
    for scope, balanced in (("jobs", False), ("pets", True)):
        assert ddm_rt(*line(sd, tmp_path / scope, *given, "--scope", scope)).code == 0
        images = json.loads((tmp_path / scope / "manifest.json").read_bytes())["images"]
        assert {image["code"] >= 0 for image in images} == {balanced}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ("--prompt", "a", "--prompt", "b", "--prompt", "c", "--prompt", "d"),
            "--prompt: 4 texts for 3 images",
        ),
        (("--prompt", "\udcff"), "prompt is '\\udcff'; expected Unicode text"),
        (("--negative-prompt", "\udcff"), "negative_prompt is '\\udcff'; expected Unicode text"),
        (("--guidance-scale", "nan"), "guidance_scale is nan"),
        (("--guidance-scale", -2), "guidance_scale is -2.0; expected a finite number, not negative"),
        (("--leave-alone", ""), "leave_alone is ['']; expected a list of words"),
        (("--leave-alone", "man,,woman"), "expected a list of words"),
        (("--leave-alone", "nowhere.json"), "nowhere.json: cannot be read"),
        (("--leave-alone", "man", "--balance", "on"), 'leave_alone is given, but balance is "on"'),
        (("--height", 61), "height is 61; expected a multiple of 4"),
    ],
    ids=str,
)
def test_a_request_that_cannot_be(
    ddm_rt, sd: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[object, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in ddm_rt(*line(sd, tmp_path / "out", *more)).refusal()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--prompt", "a"), "--from: a replay has the manifest's own prompts; leave out --prompt"),
        (("--leave-alone", "a"), "leave out --leave-alone"),
        (("--steps", 5), "--from: a replay has the manifest's own settings; leave out --steps"),
        (("-n", 5), "leave out -n"),
        (("--target", "code:0=1"), "leave out --target"),
    ],
    ids=str,
)
def test_a_replay_refuses_what_it_would_ignore(
    ddm_rt, sd: Bundle, tmp_path: Path, more: tuple[object, ...], said: str
) -> None:
    replay = ("sample", sd.path, "--from", "manifest.json", "--out", tmp_path / "out")
    assert said in ddm_rt(*replay, *more).refusal()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "more",
    [("--prompt", "a digit"), ("--negative-prompt", "blurry"), ("--guidance-scale", 3), ("--leave-alone", "man")],
    ids=str,
)
def test_a_prompt_free_bundle_takes_no_text(ddm_rt, tmp_path: Path, more: tuple[object, ...]) -> None:
    said = ddm_rt("sample", "digits", "-n", 2, "--out", tmp_path / "out", *more).refusal()
    assert "prompt-free" in said
    assert more[0].removeprefix("--").replace("-", "_") in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["text_encoder.onnx", "tokenizer/tokenizer.json"])
def test_a_bundle_without_what_reads_its_prompts(ddm_rt, sd: Bundle, tmp_path: Path, name: str) -> None:
    """A copy by links; the file is missing, then not listed either."""
    copy, out = tmp_path / "bundle", tmp_path / "out"
    for listed in ("bundle.json", *sd.index.files):
        (copy / listed).parent.mkdir(parents=True, exist_ok=True)
        (copy / listed).symlink_to(sd.path / listed)
    (copy / name).unlink()
    assert f"{name}: missing" in ddm_rt("sample", copy, "-n", 1, "--out", out).refusal()
    index = json.loads((copy / "bundle.json").read_bytes())
    del index["files"][name], index["former"]
    files = {path: FileEntry.model_validate(entry) for path, entry in index["files"].items()}
    (copy / "bundle.json").unlink()
    (copy / "bundle.json").write_text(json.dumps(index | {"bundle_id": bundle_id(files)}))
    said = ddm_rt("sample", copy, "-n", 1, "--out", out).refusal()
    assert f"{name} is not listed; a bundle with prompts must have it" in said
    assert not out.exists()
