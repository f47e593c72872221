"""Images in: shipped digits at exact ratios, and folders of whatever files people have."""

import re
from math import gcd
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import write_folder
from PIL import Image

from ddm_rt import data
from ddm_rt.config import DataConfig
from ddm_rt.errors import DdmError
from ddm_rt.files import asset


def digits(source: str, split: str = "train", **fields: int) -> data.ImageSet:
    return data.load(DataConfig.model_validate({"source": source, **fields}), split)


def counts(images: data.ImageSet) -> dict[str, int]:
    labels = images.labels or ()
    return {label: labels.count(label) for label in sorted(set(labels))}


def test_the_splits_share_no_image() -> None:
    held = {split: [image.tobytes() for image in digits("digits", split).images] for split in data.SPLITS}
    for split, images in held.items():
        assert len(images) > 1000
        others = {image for other, some in held.items() if other != split for image in some}
        assert not others.intersection(images), f"{split} shares images with another split"


def test_the_digits_are_mnist_s_own_and_small_enough_to_ship() -> None:
    assert asset(data.DIGITS_FILE).stat().st_size <= 3_000_000
    images = digits("digits", image_size=28)
    assert images.images.shape[1:] == (28, 28, 1)
    assert set(images.labels or ()) == set(data.DIGITS)
    assert len(np.unique(images.images)) > 200, "grey levels of 28x28 scans, not of the 8x8 digits"


def test_padding_leaves_the_digit_in_the_middle_and_repeats_channels() -> None:
    plain, padded = digits("digits:3", image_size=28), digits("digits:3", image_size=33, channels=3)
    assert padded.images.shape[1:] == (33, 33, 3)
    assert (padded.images[:, 2:30, 2:30] == plain.images).all()
    assert padded.images.sum(dtype=np.int64) == 3 * plain.images.sum(dtype=np.int64)


def test_the_model_sees_minus_one_to_one() -> None:
    given_images = np.array([[[[0], [255]]], [[[51], [204]]]], np.uint8)  # [2, 1, 2, 1]
    seen = data.to_model(given_images)
    assert (seen.shape, seen.dtype) == ((2, 1, 1, 2), np.float32)
    assert seen.flatten().tolist() == pytest.approx([-1, 1, -0.6, 0.6])
    back = np.rint((seen.transpose(0, 2, 3, 1) + 1) * 127.5)
    assert (back == given_images).all()


@pytest.mark.parametrize("source", ["digits:3,8@4:1", "digits:8,3@1:4", "digits:0,1@1:4", "digits:0,1,3,7,8@5:4:3:2:1"])
def test_a_ratio_is_exact_and_the_largest_that_fits(source: str) -> None:
    classes, ratio = source.removeprefix("digits:").split("@")
    weights = dict(zip(classes.split(","), map(int, ratio.split(":")), strict=True))
    found, available = counts(digits(source)), counts(digits("digits"))
    unit = found[min(found)] // weights[min(found)]
    assert found == {name: unit * weight for name, weight in weights.items()}
    assert any(unit * weight + weight > available[name] for name, weight in weights.items())


def test_imbalance_is_a_selection_of_the_same_images() -> None:
    all_of_them = dict(zip(digits("digits:3,8").names, digits("digits:3,8").images, strict=True))
    chosen = digits("digits:3,8@4:1")
    assert all((all_of_them[name] == image).all() for name, image in zip(chosen.names, chosen.images, strict=True))
    assert len(set(chosen.names)) == len(chosen)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("digits:3,9", "among 0, 1, 3, 7, 8"),
        ("digits:3,3", "distinct"),
        ("digits:", "among 0, 1, 3, 7, 8"),
        ("digits:3,8@4", "2 positive whole numbers"),
        ("digits:3,8@4:1:1", "2 positive whole numbers"),
        ("digits:3,8@4:0", "positive whole numbers"),
        ("digits:3,8@-4:1", "positive whole numbers"),
        ("digits:3,8@", "positive whole numbers"),
        ("digits:3,8@1600:1", "can't be had"),
        ("digits:3,8@4:1\n", "digits:CLASSES@RATIO"),
        ("digitz", "no such folder"),
        ("x" * 5000, "no such folder"),
        ("a\0b", "no such folder"),
        ("", "images found|no such folder"),
    ],
)
def test_a_bad_source_is_refused(source: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # "" is this folder
    with pytest.raises(DdmError, match=said):
        digits(source)


def test_digits_are_never_shrunk_and_splits_are_known() -> None:
    with pytest.raises(DdmError, match=r"data\.image_size is 27"):
        digits("digits:3,8", image_size=27)
    with pytest.raises(DdmError, match="splits: train, judge, reference"):
        digits("digits:3,8", "test")


_CLASSES = st.lists(st.sampled_from([*data.DIGITS, "2", "", " 3"]), max_size=5).map(",".join)
_RATIO = st.lists(st.integers(-1, 2000), max_size=5).map(lambda xs: ":".join(map(str, xs)))
_SOURCES = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="digts:@,0138", max_size=20).map(lambda tail: "digits" + tail),
    st.tuples(_CLASSES, _RATIO).map(lambda pair: f"digits:{pair[0]}@{pair[1]}"),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(source=_SOURCES)
def test_any_source_gives_images_at_its_ratio_or_is_refused(
    source: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.getbasetemp())
    if not source.startswith("digits"):  # only what looks like digits may read this machine's files
        source = f"nowhere/{source}".replace("..", "")
    try:
        images = digits(source)
    except DdmError as error:
        assert str(error)  # noqa: PT017 - both outcomes are right
        return
    classes, _, ratio = source.removeprefix("digits").removeprefix(":").partition("@")
    found = counts(images)
    assert not classes or set(found) == set(classes.split(","))
    if ratio:
        weights = [int(part) for part in ratio.split(":")]
        unit = gcd(*weights)
        got = [found[name] for name in (classes.split(",") if classes else data.DIGITS)]
        assert [n * unit // gcd(*got) for n in got] == weights


FORMATS = {
    "grey.png": ("L", (16, 16)),
    "colour.JPG": ("RGB", (31, 17)),
    "alpha.webp": ("RGBA", (9, 40)),
    "palette.gif": ("P", (16, 24)),
    "bits.bmp": ("1", (20, 20)),
    "deep.tiff": ("RGB", (16, 16)),
    "alpha.png": ("RGBA", (1, 1)),
    "cmyk.jpeg": ("CMYK", (64, 3)),
}


def write_any(path: Path, mode: str, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [16, 19])
def test_a_folder_may_hold_any_format_mode_and_size(tmp_path: Path, channels: int, size: int) -> None:
    for name, (mode, shape) in FORMATS.items():
        target = tmp_path / ("inner" if "alpha" in name else ".") / name
        target.parent.mkdir(exist_ok=True)
        write_any(target, mode, shape)
    (tmp_path / "notes.txt").write_text("not an image")
    images = digits(str(tmp_path), image_size=size, channels=channels)
    assert images.images.shape == (len(FORMATS), size, size, channels)
    assert images.images.dtype == np.uint8
    assert sorted(Path(name).name for name in images.names) == sorted(FORMATS)
    assert images.labels is None
    assert images.prompts is None


def test_a_folder_s_order_depends_on_names_alone(tmp_path: Path) -> None:
    first, again = write_folder(tmp_path / "a"), tmp_path / "b"
    again.mkdir()
    for file in sorted(first.iterdir(), reverse=True):
        (again / file.name).write_bytes(file.read_bytes())
    one, two = digits(str(first), image_size=16), digits(str(again), image_size=16)
    assert one.names == two.names
    assert (one.images == two.images).all()
    assert one.labels == two.labels


def test_sixteen_bit_grey_keeps_its_greys(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint16) * 257, (256, 1))  # 0 to 65535
    for i in range(2):
        Image.fromarray(ramp).save(tmp_path / f"{i}.png")
    seen = digits(str(tmp_path), image_size=256).images[0, 0, :, 0]
    assert np.abs(seen.astype(int) - np.arange(256)).max() <= 1


def test_the_camera_s_rotation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8] = 255  # upper half white
    exif = Image.Exif()
    exif[0x0112] = 3  # shown upside down
    for i in range(2):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png", exif=exif)
    seen = digits(str(tmp_path), image_size=16).images[0, :, :, 0]
    assert seen[:8].max() == 0
    assert seen[8:].min() == 255


METADATA = {
    "labels": ("file_name,label\n000.png,a\n001.png,b\n002.png,\n", ("a", "b", ""), None),
    "prompts": ("file_name,prompt\n000.png,a cat\n001.png,\n002.png,a dog\n", None, ("a cat", "", "a dog")),
    "both, other columns and orders": (
        'prompt,extra,file_name,label\n"x, y",1,002.png,b\n,2,000.png,a\n,3,001.png,a\n',
        ("a", "a", "b"),
        ("", "", "x, y"),
    ),
    "names alone": ("file_name\n000.png\n001.png\n002.png\n", None, None),
}


@pytest.mark.parametrize("case", METADATA)
def test_metadata(tmp_path: Path, case: str) -> None:
    text, labels, prompts = METADATA[case]
    folder = write_folder(tmp_path / "images", 3, labels=False)
    (folder / "metadata.csv").write_text(text, encoding="utf-8")
    images = digits(str(folder), image_size=16)
    assert images.labels == labels
    assert images.prompts == prompts


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"file_name,label\n000.png,a\n001.png,b\n", "'002.png' has no row"),
        (b"file_name,label\n000.png,a\n001.png,b\n002.png,c\n000.png,d\n", "line 5: '000.png' is listed twice"),
        (b"file_name,label\n000.png,a\n001.png,b\n002.png,c\n9.png,d\n", "'9.png' is not an image"),
        (b"name,label\n000.png,a\n", "column file_name"),
        (b"", "column file_name"),
        (b"file_name,label\n\xff\xfe", "UTF-8"),
    ],
)
def test_bad_metadata_is_refused_with_its_line(tmp_path: Path, content: bytes, said: str) -> None:
    folder = write_folder(tmp_path / "images", 3, labels=False)
    (folder / "metadata.csv").write_bytes(content)
    with pytest.raises(DdmError, match=rf"metadata\.csv.*{re.escape(said)}"):
        digits(str(folder), image_size=16)


def test_a_byte_order_mark_is_not_part_of_the_header(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", 2, labels=False)
    (folder / "metadata.csv").write_text("file_name,label\n000.png,a\n001.png,b\n", encoding="utf-8-sig")
    assert digits(str(folder), image_size=16).labels == ("a", "b")


def test_an_empty_folder_and_one_image_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DdmError, match=f"{tmp_path}: 0 images found; expected at least 2"):
        digits(str(tmp_path))
    write_any(tmp_path / "only.png", "L", (8, 8))
    with pytest.raises(DdmError, match=f"{tmp_path}: 1 images? found; expected at least 2"):
        digits(str(tmp_path))


@pytest.mark.parametrize("damage", ["text", "empty", "truncated", "folder link"])
def test_an_unreadable_image_is_named(tmp_path: Path, damage: str) -> None:
    folder = write_folder(tmp_path / "images", 3, size=64, labels=False)
    victim = folder / "001.png"
    if damage == "text":
        victim.write_text("this is no picture")
    elif damage == "empty":
        victim.write_bytes(b"")
    elif damage == "truncated":
        victim.write_bytes(victim.read_bytes()[:60])
    else:
        victim.unlink()
        victim.symlink_to(folder / "gone.png")
        write_any(folder / "004.png", "L", (8, 8))
        assert len(digits(str(folder), image_size=16)) == 3, "a dangling link is no file"
        return
    with pytest.raises(DdmError, match=r"001\.png: not a readable image"):
        digits(str(folder), image_size=16)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draws=st.data())
def test_damaged_bytes_give_an_image_or_name_the_file(
    draws: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    name = draws.draw(st.sampled_from(sorted(FORMATS)))
    write_any(folder / "sound.png", "L", (8, 8))
    write_any(folder / name, FORMATS[name][0], (12, 12))
    raw = bytearray((folder / name).read_bytes())
    for _ in range(draws.draw(st.integers(1, 6))):
        raw[draws.draw(st.integers(0, len(raw) - 1))] = draws.draw(st.integers(0, 255))
    (folder / name).write_bytes(bytes(raw[: draws.draw(st.integers(0, len(raw)))]))
    try:
        images = digits(str(folder), image_size=16)
    except DdmError as error:
        assert name in str(error)  # noqa: PT017 - both outcomes are right
    else:
        assert len(images) == 2


def test_a_picture_says_how_it_was_cut_from_the_original(tmp_path: Path) -> None:
    Image.new("L", (40, 20)).save(tmp_path / "wide.png")
    Image.new("L", (20, 60)).save(tmp_path / "tall.png")
    found = data.find(DataConfig(source=str(tmp_path), image_size=10))
    assert found.names == ("tall.png", "wide.png")
    assert found.read(0).frame == (60, 20, 10, 0, 10, 10)
    assert found.read(1).frame == (20, 40, 0, 5, 10, 10)


def test_contents_follow_names_pixels_and_prompts(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("L", (8, 8)).save(tmp_path / name)
    config = DataConfig(source=str(tmp_path), image_size=8)
    seen = {data.find(config).contents()}
    (tmp_path / "metadata.csv").write_text("file_name,prompt\na.png,one\nb.png,two\n")
    seen.add(data.find(config).contents())
    Image.new("L", (8, 8), 9).save(tmp_path / "b.png")
    seen.add(data.find(config).contents())
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    (tmp_path / "metadata.csv").unlink()
    seen.add(data.find(config).contents())
    assert len(seen) == 4
    assert data.find(config).contents() in seen
