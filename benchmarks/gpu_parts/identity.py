"""Whether an image's bytes stay the same whoever its neighbours are, with the whole of SD 1.5 on the engine.

Every call of the denoiser has the same number of rows, as the product's buckets see to it; what changes is who stands
in them. The compiled networks are those that the section of images at this batch size has compiled.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpu_parts import models
from gpu_parts.record import Record
from gpu_parts.rig import Rig
from gpu_parts.trajectories import LOAD_S, Attempt
from gpu_parts.variants import ENGINE_MODE, Product, Variant, Workshop

IMAGES = 8  # in one call, two rows each
STEPS = 4

# Mix -> numbers of the images, in order, and how many of them join after the first step. All but `together`, which is
# first, are compared with it.
MIXES: dict[str, tuple[tuple[int, ...], int]] = {
    "together": (tuple(range(IMAGES)), 0),
    "again": (tuple(range(IMAGES)), 0),
    "in reverse": (tuple(reversed(range(IMAGES))), 0),
    "two of them alone": ((2, 5), 0),
    "the first alone": ((0,), 0),
    "the last alone": ((IMAGES - 1,), 0),
    "beside others": ((1, 101, 3, 103, 4, 105), 0),
    "half of them join later": (tuple(range(IMAGES)), IMAGES // 2),
}


def section_identity(record: Record, rig: Rig) -> None:
    record.facts["measure"] = "equal bytes of float32 latents and of uint8 images, for each image that is in both mixes"
    record.facts["rows of each call"] = 2 * IMAGES
    workshop = Workshop(models.sd15(tiny=rig.tiny), IMAGES, rig)
    for mode in (None, ENGINE_MODE):
        variant = Variant("engine", True, mode)
        if all(record.has(variant=variant.name, mix=mix) for mix in [*MIXES][1:]):
            continue
        if not record.room(variant.name, 0 if rig.dry or mode is None else LOAD_S):
            continue
        with Attempt(record, variant=variant.name):
            product = workshop.images(variant)
            assert isinstance(product, Product)
            compare(record, product, variant)


def compare(record: Record, product: Product, variant: Variant) -> None:
    """One row per mix."""
    identity = {"op": "byte identity", "model": "sd15", "dtype": "bf16", "variant": variant.name, "steps": STEPS}
    expected: dict[int, tuple[bytes, bytes]] = {}
    for mix, (numbers, late) in MIXES.items():
        found = bytes_of(product, numbers, (2 * IMAGES,), late)
        if not expected:
            expected = found
            continue
        shared = found.keys() & expected.keys()
        same = [number for number in shared if found[number] == expected[number]]
        if not record.has(**identity, mix=mix):
            record.add(**identity, mix=mix, images=len(shared), same=len(same), passed=len(same) == len(shared))
    # No bar: the product probes which sizes round alike, and mixes only those.
    if variant.mode is None and not record.has(**identity, mix="other sizes"):
        alone = bytes_of(product, (0,), (2,), 0)
        record.add(**identity, mix="other sizes", images=1, same=int(alone[0] == expected[0]))
    elif variant.mode is not None:
        record.leave_out(f"{variant.name}, other sizes: compiled for calls of {2 * IMAGES} rows alone")


def bytes_of(
    product: Product, numbers: Sequence[int], buckets: Sequence[int], late: int
) -> dict[int, tuple[bytes, bytes]]:
    """Number -> the bytes of its latents and of its image."""
    latents, _ = product.made(STEPS, numbers, buckets, late, decoded=False)
    # The decoder gets calls of one size as well; what fills them up is the first image.
    filled = product.engine.take(latents, np.resize(np.arange(len(numbers)), IMAGES))
    images: Any = product.engine.images(filled)
    host = latents.float().cpu().numpy()
    return {number: (host[i].tobytes(), images[i].tobytes()) for i, number in enumerate(numbers)}
