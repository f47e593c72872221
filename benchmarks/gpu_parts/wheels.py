"""What the benchmark needs beyond python, torch and triton, as wheels: fetched beforehand, installed offline."""

import subprocess
import sys
from pathlib import Path

# With all that they need themselves. None of these needs torch.
WITH_DEPENDENCIES = {
    "diffusers": "diffusers>=0.35,<0.43",
    "transformers": "transformers>=4.50,<6",
    "pydantic": "pydantic>=2.12,<3",
    "safetensors": "safetensors>=0.5,<1",
    "onnx": "onnx>=1.18,<2",
    "scikit-learn": "scikit-learn>=1.5,<2",
    "pillow": "pillow>=11.1,<14",
    "rich": "rich>=13,<16",
    "tokenizers": "tokenizers>=0.21,<1",
    "psutil": "psutil",  # accelerate's and peft's
}
# Alone, because they would bring torch; what else they need is above.
ALONE = {
    "accelerate": "accelerate>=1.0,<2",
    "peft": "peft>=0.15,<1",
}
# The machine has its own; a wheel of one would take its place.
NEVER = ("torch", "triton", "nvidia")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def fetch(folder: Path, python: str | None = None) -> list[str]:
    """Downloads the wheels into `folder`, for this interpreter, or for `python` (such as 3.12) on Linux x86-64.

    Returns the names of the files. Raises RuntimeError with what pip said where it failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--only-binary", ":all:", "--dest", str(folder), "--quiet"]
    if python is not None:
        options += ["--python-version", python, "--implementation", "cp"]
        options += [word for name in PLATFORMS for word in ("--platform", name)]
    _pip("download", *options, *WITH_DEPENDENCIES.values())
    _pip("download", *options, "--no-deps", *ALONE.values())
    names = sorted(path.name for path in folder.glob("*.whl"))
    if odd := [name for name in names if name.startswith(NEVER)]:
        raise RuntimeError(f"{folder}: {', '.join(odd)} came along, which the machine has itself")
    return names


def install(folder: Path, site: Path) -> None:
    """Unpacks the wheels of `folder` into `site`, once. Raises RuntimeError where pip fails."""
    wheels = sorted(str(path) for path in folder.glob("*.whl"))
    if not wheels:
        raise RuntimeError(f"{folder}: holds no wheels; `--fetch {folder}` downloads them")
    done = site / ".wheels"
    listing = "\n".join(Path(wheel).name for wheel in wheels)
    if done.is_file() and done.read_text() == listing:
        return
    # All of them are there, so nothing is looked up, and what the machine has is no concern of theirs.
    _pip("install", "--no-index", "--no-deps", "--quiet", "--upgrade", "--target", str(site), *wheels)
    site.mkdir(parents=True, exist_ok=True)
    done.write_text(listing)


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"pip {arguments[0]}: {done.stderr.strip()[-1000:] or 'it said nothing'}")
