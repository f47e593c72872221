"""The rows of the bench: what each rival needs, where it comes from, what was read of it, and how ours differs."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rival:
    """One row. `kind` is what it acts on: nothing, a prompt, a prompt's words, h without labels, or h with few."""

    name: str
    kind: str  # plain | text | words | modes | labels
    uses: str  # of people's knowledge
    source: str
    read: str
    differs: str
    batch: int = 100
    grid: tuple[float, ...] = ()  # of a strength for which the published one makes no sense, tried on another pair


NO_LABELS, FEW = "nothing", "64 labels"
_GUIDED = "Guidance is 1.5, the bench's own, for all rows with a prompt."
_CODE = "code"

RIVALS = (
    Rival("vanilla", "plain", NO_LABELS, "-", "-", "Plain sampling of the model that every row shares."),
    Rival("vanilla, guided", "text", NO_LABELS, "arXiv 2207.12598, eq. 6", "-", _GUIDED),
    Rival(
        "CADS",
        "text",
        NO_LABELS,
        "arXiv 2310.17347; v0xie/sd-webui-cads scripts/cads.py",
        _CODE,
        "τ .6/.9, s .25, mix 1, rescaled, as there; mean and deviation are each image's own; noise from its seed. "
        "Both conditions are annealed, as in the code. " + _GUIDED,
    ),
    Rival(
        "interval guidance",
        "text",
        NO_LABELS,
        "arXiv 2404.07724; kynkaat/guidance-interval sampling/edm_sampler.py, fig_configs.py",
        _CODE,
        "Steps 17 to 22 of their 32 are σ/α from .28 to 1.61, which is our interval. " + _GUIDED,
    ),
    Rival(
        "APG",
        "text",
        NO_LABELS,
        "arXiv 2410.02416; diffusers guiders/adaptive_projected_guidance.py",
        _CODE,
        "Norm at most 15, η 0 and no momentum; diffusers' default η is 1. " + _GUIDED,
    ),
    Rival(
        "SelfDebias",
        "modes",
        NO_LABELS,
        "WACV 2026; srivardhanakorada/SelfDebias unet_2d.py, new_helper_hclassify_ddim.py, train_proj.py, "
        "create_centroids.py",
        _CODE,
        "The unconditional variant: one gradient a step, none above t = 900, batch 32, temperature 8. CLIP is replaced "
        "by contrastive features learned from 256 of the model's own images; the projection has 256 hidden units for "
        "2,048. As many modes (2 to 8) as the silhouette likes best.",
        batch=32,
        grid=(1e4, 1e6, 1e8, 3e8, 1e9, 6.5e10),  # the last is the published one
    ),
    Rival(
        "distribution guidance",
        "labels",
        FEW,
        "Balancing Act, CVPR 2024; rishubhpar/debiasing_gen_models multi_classifier.py, h_classification.py",
        _CODE,
        "χ² of a batch of 100, temperature 8, as there. The h-classifiers have 64 random labels of training images for "
        "theirs of 1,000 to 2,000 a class, and see images that are noised, not inverted.",
        grid=(4.5e4, 1e5, 2e5, 4.5e5, 4.5e6, 4.5e7),  # the fourth is the published one
    ),
    Rival(
        "classifier guidance, calibrated and regularised",
        "labels",
        FEW,
        "arXiv 2511.05844 (Javid et al.)",
        "abstract, and a summary with the smooth calibration error; the sampling formulas could not be read",
        "Ours after the text: ∇[log p(side) - JS(side, p)], sides in turn, through the same h-classifiers; two thirds "
        "of the labels fit them, the rest calibrate scale and bias.",
        grid=(0.5, 1.0, 2.0, 4.0, 8.0),
    ),
    Rival(
        "group named in the prompt",
        "words",
        "words",
        "-",
        "-",
        "Half of the images are asked for by name, in turn. No method: what words can do by hand. " + _GUIDED,
    ),
    Rival(
        "EquiSteer",
        "words",
        "words",
        "arXiv 2607.01147, ECCV 2026; Atmyre/EquiSteer core/controller.py, controller_multi.py, vector_dump.py, "
        "estimate_thresholds.py",
        _CODE,
        "As the paper has it: gate, removal, add-back by the mean of the largest responses, norms kept, a coin for "
        "each image; the first 40 % of steps, as for SD 1.5. Directions from 4 prompts a group with 8 images each (126 "
        "prompts there); the gate sits at the last layer downwards. " + _GUIDED,
    ),
    Rival(
        "weak guidance",
        "words",
        "words",
        "arXiv 2408.12692 (Kim et al.)",
        "abstract and a review; no code was found",
        "Ours after the text: the mean difference of end-of-prompt embeddings, strength 1, on all tokens from the "
        "prompt's end on and at all steps; groups in turn. " + _GUIDED,
    ),
    Rival(
        "FairImagen",
        "words",
        "words",
        "fuzihaofzh/FairImagen fair_PCA.py, fairpca_processor.py, base_processor.py",
        _CODE,
        "Fair PCA of end-of-prompt embeddings that name a group, 600/768 of the dimensions, on every token of the "
        "condition; `enoise`, scale .6 squared as in the code. 4 prompts a group. " + _GUIDED,
    ),
    Rival(
        "EquiSteer, every step",
        "words",
        "words",
        "as EquiSteer",
        _CODE,
        "As EquiSteer, but steered at every step, as SDXL and SANA are there. " + _GUIDED,
    ),
)
BY_NAME = {rival.name: rival for rival in RIVALS}

_NO_PROMPT = "no condition to act on: the model takes no prompts"
_NO_WORDS = "no words to act on: the prompts in training name no group"


def refusal(kind: str, prompts: bool, words: bool) -> str | None:
    """Why a rival of this kind has nothing to do on a model; None where it has."""
    if kind in ("text", "words") and not prompts:
        return _NO_PROMPT
    return _NO_WORDS if kind == "words" and not words else None


def about(rival: Rival) -> dict[str, Any]:
    """What stands in the row's line besides figures."""
    return {"uses": rival.uses, "source": rival.source, "read": rival.read, "differs": rival.differs}
