"""Preprocessing as transformers' own processors do it on Pillow, and the files that are refused."""

import json

import numpy as np
import pytest
from PIL import Image
from tolerances import PROCESSOR_ABS

from ddm_rt.errors import DdmError
from ddm_rt.evaluate.preprocessing import Preprocessing, from_processor

SIZES = [(300, 200), (33, 77), (224, 224), (10, 501), (1, 1)]
NORMAL = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}


def processors():
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
    from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    yield ViTImageProcessorPil()
    yield ViTImageProcessorPil(size={"height": 30, "width": 41}, resample=3, **NORMAL)
    yield CLIPImageProcessorPil()
    yield CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 33, "width": 40})  # black at the edges
    yield ConvNextImageProcessorPil(size={"shortest_edge": 224})
    yield ConvNextImageProcessorPil(size={"shortest_edge": 384})
    yield DeiTImageProcessorPil()
    yield SiglipImageProcessorPil()


def test_images_come_out_as_transformers_makes_them() -> None:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in SIZES]
    for processor in processors():
        ours = from_processor(json.loads(processor.to_json_string()), "p.json")
        for image in images:
            (wanted,) = processor(image, return_tensors="np")["pixel_values"]
            assert np.allclose(ours(image), wanted, rtol=0, atol=PROCESSOR_ABS), (processor, image.size)
            assert ours(image).shape[1:] == ours.output


def test_what_is_left_out_is_not_done() -> None:
    ours = from_processor({"do_resize": False, "do_rescale": False, "do_normalize": False}, "p.json")
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert np.array_equal(ours(Image.fromarray(pixels)), pixels.transpose(2, 0, 1))
    assert ours.output is None
    assert str(ours) == "multiply by 1"


def test_one_number_is_a_square_or_the_shorter_edge() -> None:
    assert from_processor({"size": 8, **NORMAL}, "p").size == (8, 8)
    clip = from_processor({"size": 8, "crop_size": 6, "image_processor_type": "CLIPFeatureExtractor", **NORMAL}, "p")
    assert (clip.shortest_edge, clip.crop) == (8, (6, 6))
    assert "shorter edge to 8" in str(clip)


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ([], "expected an object"),
        ({"image_processor_type": "DonutImageProcessor"}, "the processor Donut is unknown here; known: "),
        ({"size": 8, "do_pad": True, **NORMAL}, "field do_pad"),
        ({**NORMAL}, "field size is None"),
        ({"size": {"longest_edge": 8}, **NORMAL}, "field size"),
        ({"size": {"height": 8, "width": 0}, **NORMAL}, "field size"),
        ({"size": True, **NORMAL}, "field size"),
        ({"size": 8, "resample": 9, **NORMAL}, "field resample is 9"),
        ({"size": 8, "do_center_crop": True, "crop_size": {"shortest_edge": 4}, **NORMAL}, "field crop_size"),
        ({"size": 8, "rescale_factor": "x", **NORMAL}, "field rescale_factor"),
        ({"size": 8}, "field image_mean is None"),
        ({"size": 8, "image_mean": [float("nan")] * 3, "image_std": [0.5] * 3}, "field mean.0"),
        ({"size": 10**6, **NORMAL}, "size is 1000000x1000000; expected at most"),
        ({"size": 8, "image_mean": [0.5] * 3, "image_std": [0.5, 0, 0.5]}, "without zeros"),
    ],
)
def test_a_file_that_states_something_else(tree: object, said: str) -> None:
    with pytest.raises(DdmError, match=r"^p\.json: ") as error:
        from_processor(tree, "p.json")
    assert said in str(error.value)


def test_the_statement_survives_as_json() -> None:
    ours = from_processor({"size": 8, **NORMAL}, "p")
    assert Preprocessing.model_validate_json(ours.model_dump_json()) == ours
