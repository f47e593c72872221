"""Every benchmark of `run.py`: what is compared on which models, against which baseline, resting on which tests.

A table, not code: a configuration is one line, and so is a case.
"""

from dataclasses import dataclass
from typing import Any

from bench_parts.workers import Call
from peers import Configuration

EAGER = Configuration("diffusers eager", "eager")
EAGER_BF16 = Configuration("diffusers eager bf16", "eager", {"precision": "bf16"})
COMPILED = Configuration("torch.compile", "compiled")
COMPILED_BF16 = Configuration("torch.compile bf16", "compiled", {"precision": "bf16"})
ORT = Configuration("ONNX Runtime", "onnxruntime")
OPENVINO = Configuration("OpenVINO", "openvino")
OPENVINO_FREE = Configuration("OpenVINO, free axes", "openvino", {"fixed": False})
OPENVINO_BF16 = Configuration("OpenVINO bf16", "openvino", {"precision": "bf16"})
OURS_ORT = Configuration("ours, onnxruntime", "ours", {"backend": "onnxruntime"})
OURS_OPENVINO = Configuration("ours, openvino", "ours", {"backend": "openvino"})
OURS_BF16 = Configuration("ours, openvino bf16", "ours", {"backend": "openvino", "precision": "bf16"})
OURS_INT8 = Configuration("ours, openvino int8", "ours", {"backend": "openvino", "precision": "int8"})

TUNED_BF16 = Configuration("diffusers + torch.compile bf16", "tuned", {"precision": "bf16"})
INDICATOR_BF16 = Configuration(
    "diffusers + torch.compile bf16, our indicator", "tuned-indicator", {"precision": "bf16"}
)
OURS_COMPILED_BF16 = Configuration("ours, torch bf16, compiled", "ours-compiled", {"precision": "bf16"})

# Requests for images: plain guidance, and what is beside it. A quarter of sd15's pixels.
_SMALL_REQUEST = {"backend": "onnxruntime", "indicator_guidance_scale": 3.0, "num_steps": 10}
_SD_REQUEST = {"backend": "onnxruntime", "prompt": "a doctor", "num_steps": 5, "height": 256, "width": 256}
_OPTIONS: dict[str, dict[str, Any]] = {
    "plain guidance": {},
    "APG": {"apg": (15.0, 0.0)},
    "guidance in .2 to .8 of the steps": {"guidance_interval": (0.2, 0.8)},
}
_OF_PROMPTS: dict[str, dict[str, Any]] = {"CADS": {"cads": (0.25, 0.6, 0.9)}}
GUIDANCE, SD_GUIDANCE = (
    tuple(Configuration(name, "ours", request | option) for name, option in options.items())
    for request, options in ((_SMALL_REQUEST, _OPTIONS), (_SD_REQUEST, _OPTIONS | _OF_PROMPTS))
)

# What the script does in a step: `peers/training.py`. Ours encodes images and prompts before the first one.
SCRIPT_LORA = Configuration("diffusers' LoRA script", "script-lora")
SCRIPT_LORA_CACHED = Configuration("diffusers' LoRA script, latents and texts ready", "script-lora", {"cached": True})
OURS_LORA = Configuration("ours, no indicator", "ours-lora")
OURS_LORA_CODES = Configuration("ours, codes", "ours-lora", {"indicator": True})

_FLOAT = (EAGER, COMPILED, ORT, OURS_ORT, OPENVINO, OURS_OPENVINO)
_LOW = (EAGER, EAGER_BF16, COMPILED_BF16, OPENVINO_BF16, OURS_BF16)


@dataclass(frozen=True)
class Case:
    """One model and one call. Configurations of a set are open at the same time; each set has the baseline first."""

    name: str
    subject: str  # in subjects.SUBJECTS
    call: Call
    sets: tuple[tuple[Configuration, ...], ...]
    rounds: int


@dataclass(frozen=True)
class Benchmark:
    what: str
    tests: tuple[str, ...]  # of what it measures; nothing is timed unless they pass
    cases: tuple[Case, ...]


_ENGINES = ("tests/engine/test_cpu.py", "tests/engine/test_openvino.py")
_SMALL_SETS = ((*_FLOAT, OPENVINO_FREE), (*_LOW, OURS_INT8))
_SD_SETS = ((EAGER, ORT, OURS_ORT), (EAGER, OPENVINO, OURS_OPENVINO), (EAGER, OPENVINO_BF16, OURS_BF16))
_SD_INT8 = (EAGER, OURS_BF16, OURS_INT8)
_BF16 = (OPENVINO, OPENVINO_BF16, OURS_BF16)
_TORCH = (INDICATOR_BF16, EAGER_BF16, OURS_COMPILED_BF16)
_SD_TORCH = ((EAGER, COMPILED), (EAGER, EAGER_BF16, COMPILED_BF16))

BENCHMARKS: dict[str, Benchmark] = {
    "step": Benchmark(
        "one denoiser call of small models, every peer",
        _ENGINES,
        (
            Case("digits, batch 2", "digits", Call("step", 2), _SMALL_SETS, 60),
            Case("digits, batch 32", "digits", Call("step", 32), _SMALL_SETS, 40),
            Case("small, batch 2", "small", Call("step", 2), _SMALL_SETS, 40),
            Case("small, batch 16", "small", Call("step", 16), _SMALL_SETS, 25),
        ),
    ),
    "step-bf16": Benchmark(
        "one denoiser call of small models in bf16 on OpenVINO: our bundle's graph against OpenVINO's own hint",
        _ENGINES,
        (
            Case("digits, batch 2", "digits", Call("step", 2), (_BF16,), 300),
            Case("digits, batch 32", "digits", Call("step", 32), (_BF16,), 200),
            Case("small, batch 2", "small", Call("step", 2), (_BF16,), 200),
            Case("small, batch 16", "small", Call("step", 16), (_BF16,), 120),
        ),
    ),
    "step-sd": Benchmark(
        "one denoiser call at Stable Diffusion 1.5's size, the two branches of one image",
        _ENGINES,
        (
            Case("sd15, 32x32 latents, batch 2", "sd15", Call("step", 2, side=32), _SD_SETS + _SD_TORCH, 7),
            Case("sd15, 64x64 latents, batch 2", "sd15", Call("step", 2, side=64), _SD_SETS, 5),
            Case("sd15 in int8, 32x32 latents, batch 2", "sd15-int8", Call("step", 2, side=32), (_SD_INT8,), 7),
        ),
    ),
    "step-torch": Benchmark(
        "one denoiser call in bf16 on the CPU: our compiled torch engine against diffusers + torch.compile",
        ("tests/engine/test_torch.py", "tests/engine/test_torch_gpu.py"),
        (
            Case("small, batch 2", "small", Call("step", 2), (_TORCH,), 60),
            Case("small, batch 16", "small", Call("step", 16), (_TORCH,), 30),
            Case("sd15, 32x32 latents, batch 2", "sd15", Call("step", 2, side=32), ((*_TORCH, TUNED_BF16),), 15),
        ),
    ),
    "train": Benchmark(
        "one optimizer step of LoRA at Stable Diffusion 1.5's size, 256x256 pixels: ours against diffusers' own script",
        ("tests/train/test_latent.py", "tests/train/test_loop.py"),
        (
            Case(
                "sd15, 32x32 latents, batch 1",
                "sd15-checkpoint",
                Call("train", 1, side=32),
                ((SCRIPT_LORA, SCRIPT_LORA_CACHED, OURS_LORA), (SCRIPT_LORA, OURS_LORA_CODES)),
                9,
            ),
        ),
    ),
    "guidance": Benchmark(
        "images with options of guidance: a step of APG against one of plain guidance, and what an interval saves",
        ("tests/kernels/test_projected_guidance.py", "tests/sample/test_slots.py"),
        (
            Case("digits, 1 image", "digits", Call("images", 1), (GUIDANCE,), 60),
            Case("digits, 16 images", "digits", Call("images", 16), (GUIDANCE,), 40),
            Case("small, 8 images", "small", Call("images", 8), (GUIDANCE,), 25),
            Case("sd15, 32x32 latents, 1 image", "sd15", Call("images", 1, side=32), (SD_GUIDANCE,), 7),
        ),
    ),
    "branches": Benchmark(
        "guidance as one batch of two branches, or as two calls (the row with batch 1, counted twice)",
        _ENGINES,
        (
            Case("small, one branch", "small", Call("step", 1), ((ORT, OURS_ORT, OURS_BF16, OURS_INT8),), 60),
            Case("small, two branches", "small", Call("step", 2), ((ORT, OURS_ORT, OURS_BF16, OURS_INT8),), 60),
        ),
    ),
}
