"""A process in which the training packages can't be imported: a machine that only serves."""

import subprocess
import sys

# What a serving image hasn't got. The first six must not be there by the promise; the rest aren't needed either.
ABSENT = (
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "triton",
    "tensorrt",
    "tensorrt_rtx",
    "cuda",
    "onnx",
    "onnxscript",
    "safetensors",
    "sklearn",
    "scipy",
    "matplotlib",
    "jinja2",
    "click",
    "pytest",
)
BROUGHT = {"click"}  # of these: there all the same, since tokenizers requires huggingface_hub, and that click
# Every finder of modules, asked for one of these, finds nothing: as on a machine that hasn't got them.
BLOCK = f"""
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {ABSENT!r} else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
# What to run there for `ddm-rt ARGUMENTS`.
COMMAND = "from ddm_rt.cli import main; sys.argv[0] = 'ddm-rt'; main()"


def without_training_packages(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCK + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)
