"""Backends of the embedding library: which there are, and what is said of one that isn't."""

import sys
from ctypes.util import find_library
from pathlib import Path

import pytest
from c_library import CError, CLibrary
from embedding_build import ROOT, Built, onnxruntime_library, run
from tolerances import IMAGE_GREY_LEVELS
from toolchain import reason

from ddm_rt.errors import BackendUnavailable, DdmError
from ddm_rt.files import asset
from ddm_rt.sample.pipeline import Pipeline

DIGITS = asset("digits")


@pytest.mark.parametrize(("backend", "kind"), [("abacus", DdmError), ("tensorrt", BackendUnavailable)])
def test_a_backend_that_is_not_there(c_library: CLibrary, backend: str, kind: type[DdmError]) -> None:
    with pytest.raises(kind) as here:
        Pipeline.load(DIGITS, backend=backend)
    with pytest.raises(CError) as there, c_library.pipeline(DIGITS, backend=backend):
        pass
    # Reasons differ, and so does what else there is.
    assert str(there.value).split(":")[0] == str(here.value).split(":")[0]
    assert there.value.status == ("backend" if kind is BackendUnavailable else "input")


def test_backends_are_reported(c_library: CLibrary) -> None:
    found = {entry["name"]: entry["reason"] for entry in c_library.json("backends")}
    assert found["onnxruntime"] is None
    assert found["tensorrt"].startswith("not built")
    (own,) = (entry for entry in c_library.json("backends") if entry["name"] == "onnxruntime")
    assert "CPUExecutionProvider" in own["providers"]


def test_a_provider_is_in_the_manifest(c_library: CLibrary) -> None:
    """Azure's computes nothing itself: the wheel of ONNX Runtime has no other, and images are the CPU's."""
    with c_library.pipeline(DIGITS) as plain, c_library.pipeline(DIGITS, provider="azure") as other:
        here, there = (pipeline.generate(n=2, num_steps=2) for pipeline in (plain, other))
        assert c_library.function("model_provider")(other.model) == b"AzureExecutionProvider"
    assert (there.images == here.images).all()
    assert "provider" not in here.manifest["versions"]
    assert there.manifest["versions"] == here.manifest["versions"] | {"provider": "AzureExecutionProvider"}


@pytest.mark.skipif(find_library("onnxruntime") is None, reason=reason("libonnxruntime-dev"))
def test_a_provider_of_the_systems_runtime(built: Built) -> None:
    """Debian's ONNX Runtime has XNNPACK; in a process of its own, which may have that runtime."""
    program = (
        "import sys; sys.path.insert(0, 'tests'); from pathlib import Path; from c_library import CLibrary\n"
        "library, bundle, runtime = CLibrary(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3]\n"
        "made = []\n"
        "for provider in ('CPU', 'XNNPACK'):\n"
        "    with library.pipeline(bundle, onnxruntime=runtime, provider=provider) as pipeline:\n"
        "        made.append(pipeline.generate(n=2, num_steps=2))\n"
        f"assert abs(made[0].images.astype(int) - made[1].images).max() <= {IMAGE_GREY_LEVELS}\n"
        "print(made[1].manifest['versions']['provider'])"
    )
    runtime = find_library("onnxruntime") or ""
    said = run(sys.executable, "-c", program, built.shared, DIGITS, runtime, folder=ROOT)
    assert said.splitlines()[-1] == "XnnpackExecutionProvider"


def test_a_provider_that_does_not_start(c_library: CLibrary) -> None:
    said = r"^provider 'CUDA' is not in this ONNX Runtime; available here: "
    with pytest.raises(CError, match=said) as caught, c_library.pipeline(DIGITS, provider="CUDA"):
        pass
    assert (caught.value.status, caught.value.field) == ("backend", "provider")


def test_listing_backends_takes_no_runtime_into_use(built: Built, tmp_path: Path) -> None:
    """In a process that has opened none yet: afterwards a bundle opens with another one."""
    other = tmp_path / "libonnxruntime-other.so"
    other.symlink_to(onnxruntime_library())
    program = (
        "import sys; sys.path.insert(0, 'tests'); from pathlib import Path; from c_library import CLibrary\n"
        "library, bundle = CLibrary(Path(sys.argv[1])), Path(sys.argv[2])\n"
        "assert library.json('backends')\n"
        "with library.pipeline(bundle, onnxruntime=sys.argv[3]) as pipeline: pipeline.generate(n=1, num_steps=1)"
    )
    run(sys.executable, "-c", program, built.shared, DIGITS, other, folder=ROOT)
