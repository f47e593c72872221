"""Requests whose images are goldens: `cases.REQUESTS[bundle][name]` are the arguments of `Pipeline.generate`."""

from typing import Any

BACKENDS = {
    "digits": ("onnxruntime", "openvino"),  # ships without weights
    "tiny": ("onnxruntime", "openvino", "torch"),
    "sd15": ("onnxruntime", "openvino", "torch"),
    "sdxl": ("onnxruntime", "openvino", "torch"),
}

REQUESTS: dict[str, dict[str, dict[str, Any]]] = {
    "digits": {
        "uniform": {"n": 4, "seed": 1, "num_steps": 4},
        "shares": {
            "n": 5,
            "seed": 2,
            "target": "code:0=.3,code:1=.7",
            "shuffle": True,
            "sampler": "euler",
            "num_steps": 3,
        },
        # Goes on with the ledger among the goldens: first what lies in its pool, then new positions.
        "scope": {"n": 6, "seed": 3, "scope": "shop", "sampler": "dpm++2m", "num_steps": 4},
        "calibrated": {"n": 4, "seed": 2**64 - 1, "target": "digit:3=.5,8=.5", "num_steps": 3},
        "unbalanced": {"n": 2, "seed": 5, "balance": "off", "sampler": "ddpm", "num_steps": 3},
        "provenance": {"n": 2, "seed": 6, "num_steps": 2, "provenance": True, "provenance_code": True},
    },
    # Samples with eta = 0.5 unless told otherwise.
    "tiny": {
        "eta": {"n": 4, "seed": 1},
        "codes": {
            "n": 3,
            "seed": 2**63,
            "codes": (0, 4, -1),
            "sampler": "ddpm",
            "num_steps": 3,
            "indicator_guidance_scale": 3.0,
        },
        "tall": {"n": 3, "seed": 3, "height": 24, "width": 16, "scope": "gallery", "sampler": "lcm", "num_steps": 2},
    },
    "sd15": {
        "prompt": {"n": 2, "seed": 1, "prompt": "a cat on a mat", "negative_prompt": "dark, blurry", "num_steps": 3},
        "separate": {
            "n": 2,
            "seed": 2,
            "prompt": "a doctor",
            "guidance_scale": 4.0,
            "indicator_guidance_scale": 2.0,
            "sampler": "euler",
            "num_steps": 3,
        },
        "in_turn": {
            "n": 5,
            "seed": 3,
            "prompt": ("a nurse", "a woman at work", "a judge"),
            "leave_alone": ("woman",),
            "target": "code:0=.25,code:1=.75",
            "sampler": "dpm++2m",
            "num_steps": 3,
        },
    },
    "sdxl": {
        "prompt": {"n": 2, "seed": 1, "prompt": "a cat on a mat", "num_steps": 3},
        "separate": {
            "n": 3,
            "seed": 2,
            "prompt": "a doctor",
            "negative_prompt": "dark",
            "guidance_scale": 3.0,
            "indicator_guidance_scale": 1.5,
            "scope": "gallery",
            "sampler": "ddim",
            "num_steps": 2,
        },
        "in_turn": {
            "n": 4,
            "seed": 3,
            "prompt": ("a nurse", ""),
            "shuffle": True,
            "sampler": "dpm++2m",
            "num_steps": 3,
        },
    },
}
# Files said nothing of themselves when the goldens were made, and their manifests go on to replay to such files.
for _requests in REQUESTS.values():
    for _request in _requests.values():
        _request.setdefault("provenance", False)
