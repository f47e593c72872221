"""`ddm-rt evaluate` with a folder of anybody's images, `export-judge` and `card`: as a user meets them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from brightness_judge import write as write_judge
from ledger_processes import STREAM, quota
from photos import write_photos
from PIL import Image

from ddm_rt.bundle import Bundle
from ddm_rt.evaluate.judge import Judge
from ddm_rt.sample.balance.ledger import Ledger
from ddm_rt.workflows import export_judge
from ddm_rt.workflows.audit import ledger_extract
from ddm_rt.workflows.export_judge import parse_prompts


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos", "ldd" * 20)


@pytest.fixture
def tone(tmp_path: Path) -> Path:
    return write_judge(tmp_path / "tone.onnx", confusion=((995, 5), (5, 995)))


def record(out: Path) -> dict:
    return json.loads((out / "audit.json").read_bytes())


@pytest.mark.parametrize(
    ("rules", "code", "word"),
    [
        ((), 0, ""),
        (("FD_ddm<=.4",), 0, "PASS: 1 PASS, of 1 rule."),
        (("FD_ddm<=.4", "share:light>=.6"), 1, "FAIL: 1 PASS, 1 FAIL, of 2 rules."),
        (("FD_ddm[tone]<=.17",), 3, "more images would decide"),
    ],
)
def test_the_exit_code_is_that_of_the_rules(
    ddm_rt, photos: Path, tone: Path, tmp_path: Path, rules: tuple[str, ...], code: int, word: str
) -> None:
    line = [part for rule in rules for part in ("--rule", rule)]
    said = ddm_rt("evaluate", photos, "--judge", f"tone={tone}", *line, "--out", tmp_path / "audit")
    assert said.code == code, said.err
    assert word in said.out
    assert f"report: {tmp_path / 'audit' / 'index.html'}\n" in said.out
    assert {path.name for path in (tmp_path / "audit").iterdir()} == {"index.html", "audit.json", "README.md"}
    identity = {fact["name"]: fact["value"] for fact in record(tmp_path / "audit")["identity"]}
    assert identity["command"].startswith("ddm-rt evaluate ")
    assert not re.search(r"(src|href)=[\"']https?:", (tmp_path / "audit" / "index.html").read_text(encoding="utf-8"))


def test_a_folder_without_a_manifest_is_audited_by_one_unnamed_judge(
    ddm_rt, photos: Path, tone: Path, tmp_path: Path
) -> None:
    assert ddm_rt("evaluate", photos, "--judge", tone, "--out", tmp_path / "audit").code == 0
    assert record(tmp_path / "audit")["attributes"][0]["name"] == "tone"


def test_a_sampled_directory_and_a_card_of_its_bundle(ddm_rt, sampled, bundle: Bundle, judge, tmp_path: Path) -> None:
    about = tmp_path / "about.toml"
    about.write_text('provider = "Ours"\nlicence = "mit"\n')
    line = ("--judge", f"bars={judge[0]}", "--about", about)
    assert ddm_rt("evaluate", sampled[0], *line, "--out", tmp_path / "audit").code == 0
    found = record(tmp_path / "audit")
    assert (found["n"], found["attributes"][0]["strata"]) == (12, "code")
    assert {"name": "bundle id", "value": bundle.bundle_id} in found["identity"]
    said = ddm_rt("card", bundle.path, "--audit", tmp_path / "audit")
    assert said.code == 0, said.err
    share = found["attributes"][0]["shares"][0]
    assert f"| {share['group']} | {share['count']} | {share['share']:.3f}" in said.out
    assert 'license: "mit"' in said.out
    assert "| provider | Ours |" in said.out
    out = tmp_path / "README.md"
    assert ddm_rt("card", bundle.path, "--out", out).out == f"card: {out}\n"
    assert "No images were measured" in out.read_text()
    assert "exists; choose another --out" in ddm_rt("card", bundle.path, "--out", out).refusal()
    assert "measured images of the bundle" in ddm_rt("card", "digits", "--audit", tmp_path / "audit").refusal()


def test_a_bundle_is_audited_on_images_that_it_makes(ddm_rt, bundle: Bundle, judge, tmp_path: Path) -> None:
    said = ddm_rt(
        "evaluate", bundle.path, "--judge", f"bars={judge[0]}", "-n", 8, "--seed", 3, "--out", tmp_path / "audit"
    )
    assert said.code == 0, said.err
    identity = {fact["name"]: fact["value"] for fact in record(tmp_path / "audit")["identity"]}
    assert (identity["bundle id"], identity["seed of the images"]) == (bundle.bundle_id, "3")


def test_a_bundle_makes_no_images_for_a_rule_that_is_none(ddm_rt, bundle: Bundle, judge, tmp_path: Path) -> None:
    line = ("--judge", f"bars={judge[0]}", "--rule", "FD<=.1", "-n", 10**6, "--out", tmp_path / "audit")
    assert "the metric 'FD' is unknown" in ddm_rt("evaluate", bundle.path, *line).refusal()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (("--rule", "FD<=.1"), "--rule 'FD<=.1': the metric 'FD' is unknown"),
        (("--group", "a"), "--group: is for a CLIP judge"),
        (("--judge", "a=clip:x", "--judge", "b=clip:y"), "--group: of which CLIP judge?"),
        (("--training", "digits"), "training: an audit doesn't take it"),
        (("--prompt", "a nurse"), "prompt is given, but"),
        (("--about", "nowhere.toml"), "nowhere.toml: cannot be read"),
        (("--judge", "again=nowhere.onnx"), "judge 'nowhere.onnx': no such file"),
        (("--judge", "folder={folder}"), "no config.json there"),
        (("--judge", "clip=clip:{folder}"), "no config.json there"),
        (("--judge", "people=people:nowhere.csv"), "nowhere.csv: cannot be read"),
        (("more",), "an audit measures one folder or bundle; 2 were given"),
    ],
)
def test_an_audit_that_cannot_be(
    ddm_rt, photos: Path, tone: Path, tmp_path: Path, line: tuple[str, ...], said: str
) -> None:
    line = tuple(part.format(folder=photos) for part in line)
    result = ddm_rt("evaluate", photos, "--judge", f"tone={tone}", *line, "--out", tmp_path / "audit")
    assert said in result.refusal()
    assert not (tmp_path / "audit").exists()


def test_a_third_partys_judge(ddm_rt, photos: Path, tmp_path: Path) -> None:
    """Batch of 1, channels last or free, classes and preprocessing in transformers' files: as others export them."""
    import onnx
    from onnx import TensorProto, helper

    folder = tmp_path / "theirs" / "onnx"
    folder.mkdir(parents=True)
    nodes = [helper.make_node("ReduceMean", ["x", "axes"], ["m"], keepdims=0), helper.make_node("Neg", ["m"], ["n"])]
    nodes.append(helper.make_node("Concat", ["n", "m"], ["scores"], axis=1))
    axes = helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3])
    nodes[0] = helper.make_node("ReduceMean", ["x", "axes"], ["flat"], keepdims=0)
    nodes[1:1] = [helper.make_node("Unsqueeze", ["flat", "one"], ["m"])]
    one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
    for shape in ([1, 24, 20, 3], ["batch", "channels", "height", "width"], [1, 3, 24, 20]):
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
        y = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [None, 2])
        graph = helper.make_graph(nodes, "theirs", [x], [y], [axes, one])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.save(model, folder / "model.onnx")
        config = {"id2label": {"0": "night", "1": "day"}, "model_type": "theirs"}
        (folder.parent / "config.json").write_text(json.dumps(config))
        steps = {"size": {"height": 24, "width": 20}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        (folder.parent / "preprocessor_config.json").write_text(json.dumps(steps))
        for k, source in enumerate((folder / "model.onnx", folder.parent)):
            out = tmp_path / f"audit-{len(shape)}-{shape[1]}-{k}"
            said = ddm_rt("evaluate", photos, "--judge", f"time={source}", "--out", out)
            assert said.code == 0, said.err
            found = record(out)
            assert [share["count"] for share in found["attributes"][0]["shares"]] == [40, 20]
            assert found["judges"][0]["preprocessing_from"] == "read from preprocessor_config.json"


def test_a_judge_that_contradicts_its_preprocessing(ddm_rt, photos: Path, tmp_path: Path) -> None:
    judge = write_judge(tmp_path / "tone.onnx", shape=("B", 3, 8, 8))
    steps = tmp_path / "steps.json"
    steps.write_text(json.dumps({"size": 9, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    line = ("--judge", f"tone={judge}", "--preprocessing", steps, "--out", tmp_path / "audit")
    assert "takes [8, 8] pixels, its preprocessing gives [9, 9]" in ddm_rt("evaluate", photos, *line).refusal()
    steps.write_text(json.dumps({"size": 8, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    assert ddm_rt("evaluate", photos, *line).code == 0
    assert record(tmp_path / "audit")["judges"][0]["preprocessing_from"] == "given: steps.json"


CLASSES = {0: "a", 1: "b", 2: "c"}


@pytest.fixture(scope="session")
def transformers_folders(shared_folder: Path) -> Path:
    """`vit`, `resnet` and `clip`: transformers' own architectures with random weights. Read-only."""
    from made_once import made_once

    return made_once(shared_folder / "judges", _write_transformers)


def _write_transformers(folder: Path) -> None:
    import torch
    import transformers
    from checkpoints import tokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    named = {"id2label": CLASSES, "label2id": {name: i for i, name in CLASSES.items()}}
    ends = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1}
    vision = small | {"image_size": 32, "patch_size": 8}
    made = {
        "vit": (
            transformers.ViTForImageClassification(transformers.ViTConfig(**vision, **named)),
            ViTImageProcessorPil(size={"height": 32, "width": 32}),
        ),
        "resnet": (
            transformers.ResNetForImageClassification(
                transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], **named)
            ),
            ConvNextImageProcessorPil(size={"shortest_edge": 32}),
        ),
        "clip": (
            transformers.CLIPModel(
                transformers.CLIPConfig(text_config=small | ends, vision_config=vision, projection_dim=16)
            ),
            CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        ),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, (model, processor) in made.items():
            for parameter in model.parameters():
                parameter.data += 0.05 * torch.randn(parameter.shape)
            model.save_pretrained(folder / name)
            processor.save_pretrained(folder / name)
            (folder / name / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    tokenizer(folder / "vocabulary").save_pretrained(folder / "clip")


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in ((40, 50), (32, 32), (90, 33))
    ]


def probabilities(judge: Judge, image: Image.Image) -> dict[str, float]:
    found = judge.verdicts(judge.prepared(image)[None]).probabilities[0]
    return dict(zip(judge.classes, found.tolist(), strict=True))


@pytest.mark.parametrize(
    "name",
    ["vit", pytest.param("resnet", marks=pytest.mark.slow(reason="traces a second model; its crop is tested alone"))],
)
def test_a_classifier_as_transformers_own_pipeline(
    ddm_rt, transformers_folders: Path, tmp_path: Path, name: str
) -> None:
    import transformers
    from tolerances import JUDGE_PROBABILITY_ABS

    folder, out = transformers_folders / name, tmp_path / "judge.onnx"
    said = ddm_rt("export-judge", folder, "--out", out)
    assert said.code == 0, said.err
    judge = Judge.load(out)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    pipeline = transformers.pipeline("image-classification", model=str(folder), image_processor=processor)
    assert judge.classes == tuple(CLASSES.values())
    for image in pictures():
        wanted = {each["label"]: each["score"] for each in pipeline(image, top_k=3)}
        assert probabilities(judge, image) == pytest.approx(wanted, abs=JUDGE_PROBABILITY_ABS)
    assert judge.training["licence"] == "apache-2.0"
    assert judge.feature_space == "features"


def test_clip_as_transformers_own_pipeline(ddm_rt, transformers_folders: Path, tmp_path: Path) -> None:
    import transformers
    from tolerances import JUDGE_PROBABILITY_ABS

    folder, out = transformers_folders / "clip", tmp_path / "judge.onnx"
    prompts = ["a photo of a woman", "a photo of a man", "a photo of nobody, with many words"]
    groups = [part for text in prompts for part in ("--group", text)]
    said = ddm_rt("export-judge", folder, *groups, "--out", out)
    assert said.code == 0, said.err
    judge = Judge.load(out)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    pipeline = transformers.pipeline("zero-shot-image-classification", model=str(folder), image_processor=processor)
    for image in pictures():
        scores = pipeline(image, candidate_labels=prompts, hypothesis_template="{}")
        wanted = {each["label"]: each["score"] for each in scores}
        assert probabilities(judge, image) == pytest.approx(wanted, abs=JUDGE_PROBABILITY_ABS)
    assert (judge.training["kind"], judge.training["licence"]) == ("CLIP zero-shot", "apache-2.0")
    assert judge.training["prompts"] == "; ".join(f"{text}: {text}" for text in prompts)
    assert parse_prompts(["a=x", "b", "a=y"]) == {"a": ["x", "y"], "b": ["b"]}


def test_folders_are_exported_into_the_cache_once(
    ddm_rt, photos: Path, transformers_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = []

    def export(folder: Path, out: Path, prompts: list[str]) -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        exported.append((folder, list(prompts)))
        write_judge(out)

    monkeypatch.setattr(export_judge, "export_judge", export)
    monkeypatch.setenv("DDM_RT_CACHE", str(tmp_path / "cache"))
    clip, prompts = transformers_folders / "clip", ["dark=a dark photo", "light=a light photo"]
    line = ["--judge", f"tone=clip:{clip}", *(part for text in prompts for part in ("--group", text))]
    assert ddm_rt("evaluate", photos, *line, "--out", tmp_path / "one").code == 0
    assert record(tmp_path / "one")["judges"][0]["name"] == "clip"
    vit = transformers_folders / "vit"
    assert ddm_rt("evaluate", photos, "--judge", f"tone={vit}", "--out", tmp_path / "two").code == 0
    assert exported == [(clip, prompts), (vit, [])]
    assert len(list((tmp_path / "cache").rglob("*.onnx"))) == 2
    monkeypatch.setattr(export_judge, "find_spec", lambda name: None)  # as on a machine without torch
    assert ddm_rt("evaluate", photos, *line, "--out", tmp_path / "three").code == 0
    said = ddm_rt("evaluate", photos, *line, "--group", "grey=a grey photo", "--out", tmp_path / "four").refusal()
    assert f"ddm-rt export-judge {clip} --group" in said
    assert len(exported) == 2


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("vit", ("--group", "a"), "only a CLIP folder takes --group"),
        ("clip", (), "name its groups (--group)"),
        ("clip", ("--group", "a"), "needs two or more groups"),
        ("clip", ("--group", "=a", "--group", "b"), "expected PROMPT or GROUP=PROMPT"),
    ],
)
def test_an_export_that_cannot_be(
    ddm_rt, transformers_folders: Path, tmp_path: Path, name: str, more: tuple[str, ...], said: str
) -> None:
    line = ("export-judge", transformers_folders / name, *more, "--out", tmp_path / "judge.onnx")
    assert said in ddm_rt(*line).refusal()
    assert not list(tmp_path.iterdir())


def test_weights_that_are_a_pickle_are_refused(ddm_rt, transformers_folders: Path, tmp_path: Path) -> None:
    folder = tmp_path / "vit"
    folder.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (folder / name).write_bytes((transformers_folders / "vit" / name).read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    said = ddm_rt("export-judge", folder, "--out", tmp_path / "judge.onnx").refusal()
    assert "transformers can't open it" in said
    assert "safetensors" in said


def test_a_ledger_in_use_is_part_of_the_report(ddm_rt, photos: Path, tone: Path, tmp_path: Path) -> None:
    ledger = tmp_path / "counts.ledger"
    sampled = ddm_rt(
        *("sample", "digits", "-n", 5, "--steps", 2, "--scope", "shop", "--ledger", ledger),
        *("--out", tmp_path / "made"),
    )
    assert sampled.code == 0, sampled.err
    out = tmp_path / "audit"
    said = ddm_rt("evaluate", photos, "--judge", f"tone={tone}", "--ledger", ledger, "--out", out)
    assert said.code == 0, said.err
    _, stream = record(out)["ledger"]
    assert "scope 'shop'" in stream["name"]
    assert stream["value"].startswith("5 images, by code ")
    assert stream["value"].endswith("; 0 under way, 0 to be drawn again")
    for page in ("index.html", "README.md"):
        assert "5 images, by code" in (out / page).read_text("utf-8")


def test_a_ledger_that_is_not_there_is_no_empty_one(ddm_rt, photos: Path, tone: Path, tmp_path: Path) -> None:
    said = ddm_rt("evaluate", photos, "--judge", tone, "--ledger", tmp_path / "no.ledger", "--out", tmp_path / "audit")
    assert said.code == 2
    assert "no.ledger: is no file; expected a ledger" in said.err
    assert not (tmp_path / "audit").exists()
    assert not (tmp_path / "no.ledger").exists()


def test_reading_a_ledger_leaves_the_draws_of_a_server_that_starts_anew(tmp_path: Path) -> None:
    ledger = tmp_path / "counts.ledger"
    with Ledger(ledger, owner="server") as counts:
        counts.lease(STREAM, quota, 4, number=1).forget()
        counts._owner.unlock()  # as when its process has died  # type: ignore[union-attr]
        _, stream = ledger_extract(ledger)
        assert "4 under way, 0 to be drawn again" in stream.value
        counts._owner = None
