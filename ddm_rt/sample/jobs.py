"""What sampling does for each image of a manifest, before anything is sampled."""

from dataclasses import dataclass

from ddm_rt.bundle import Bundle
from ddm_rt.sample.loop.guidance import Branches, Condition, branches
from ddm_rt.sample.manifest import Manifest
from ddm_rt.sample.request import null_text, texts_of
from ddm_rt.schedule import StepTable

Shape = tuple[int, int, int]  # C, H, W of latents
Size = tuple[int, int]  # height and width in pixels


@dataclass(frozen=True)
class Job:
    """One image."""

    seed: int
    branches: Branches


@dataclass(frozen=True)
class Prepared:
    """A request whose codes are drawn: its manifest, and the jobs that make its images."""

    manifest: Manifest
    table: StepTable
    shape: Shape
    jobs: tuple[Job, ...]

    @property
    def size(self) -> Size:
        return self.manifest.request.height, self.manifest.request.width

    @property
    def indicator_scale(self) -> float:
        return self.manifest.request.indicator_scale


def prepared(bundle: Bundle, manifest: Manifest, table: StepTable) -> Prepared:
    """Raises DdmError where the manifest's prompts and the bundle don't go together."""
    request = manifest.request
    texts = texts_of(bundle, request, [image.prompt for image in manifest.images])
    null = null_text(bundle.config, request.negative_prompt)
    jobs = tuple(
        Job(
            image.seed,
            branches(Condition(text, image.code), null, request.guidance_scale, request.indicator_guidance_scale),
        )
        for text, image in zip(texts, manifest.images, strict=True)
    )
    return Prepared(manifest, table, latent_shape(bundle, (request.height, request.width)), jobs)


def latent_shape(bundle: Bundle, size: Size) -> Shape:
    """Shape of the latents of images of `size`."""
    config = bundle.config
    channels, height, width = config.latent_shape
    return channels, size[0] * height // config.image_size, size[1] * width // config.image_size


def image_size(bundle: Bundle, shape: Shape) -> Size:
    """Size of images whose latents have this shape."""
    config = bundle.config
    _, height, width = config.latent_shape
    return shape[1] * config.image_size // height, shape[2] * config.image_size // width
