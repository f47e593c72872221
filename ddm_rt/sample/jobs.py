"""What sampling does for each image of a manifest, before anything is sampled."""

from collections.abc import Sequence
from typing import NamedTuple

from ddm_rt.bundle import Bundle
from ddm_rt.errors import DdmError
from ddm_rt.runtime import RuntimeConfig, Shape
from ddm_rt.sample.loop.guidance import Condition, branches
from ddm_rt.sample.loop.slots import Job
from ddm_rt.sample.manifest import Manifest
from ddm_rt.sample.request import ResolvedRequest
from ddm_rt.schedule import StepTable


class Prepared(NamedTuple):
    """A request whose codes are drawn: its manifest, and the jobs that make its images."""

    manifest: Manifest  # seed, prompt, code and settings of each image
    table: StepTable  # the coefficients of each step
    shape: Shape  # of each image's latents: C, H, W
    jobs: tuple[Job, ...]  # one for each image


def prepared(bundle: Bundle, manifest: Manifest, table: StepTable) -> Prepared:
    """Raises DdmError where the manifest's prompts and the bundle don't go together."""
    request = manifest.request
    texts = texts_of(bundle, request, [image.prompt for image in manifest.images])
    null = null_text(bundle.config, request.negative_prompt)
    jobs = tuple(
        Job(image.seed, branches(Condition(text, image.code), null, *request.scales))
        for text, image in zip(texts, manifest.images, strict=True)
    )
    return Prepared(manifest, table, bundle.config.latents_of((request.height, request.width)), jobs)


def texts_of(bundle: Bundle, request: ResolvedRequest, recorded: Sequence[str | None]) -> list[str | None]:
    """The prompt of each image of a manifest. Raises DdmError where request and bundle don't go together."""
    prompt_free = bundle.config.prompt_free
    for field, value in (("prompt", request.prompt), ("guidance_scale", request.guidance_scale)):
        if (value is None) != prompt_free:
            wanted = "none: the bundle is prompt-free" if prompt_free else "one: the bundle takes prompts"
            raise DdmError(f"manifest: field request.{field}: expected {wanted}")
    found: list[str | None] = []
    for number, own in enumerate(recorded):
        shared = None if isinstance(request.prompt, tuple) else request.prompt
        text = shared if own is None else own
        if (text is None) != prompt_free:
            raise DdmError(f"manifest: field images.{number}.prompt: expected {'none' if prompt_free else 'text'}")
        found.append(text)
    return found


def null_text(config: RuntimeConfig, negative_prompt: str | None) -> str | None:
    """What stands in for no prompt: the negative one, the empty one, or None where zeros do."""
    if negative_prompt is not None:
        return negative_prompt
    return None if config.prompt_free or config.empty_negative_is_zero else ""
