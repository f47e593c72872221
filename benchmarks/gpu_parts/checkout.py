"""`ddm_rt` from the checkout, where it isn't installed: a GPU machine may hold torch, triton and numpy and no more."""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path


def provide(root: Path = Path(__file__).parents[2]) -> None:
    """Make `ddm_rt` and `ddm_rt.kernels` importable from `root`; an installed ddm_rt is left as it is."""
    try:
        if importlib.util.find_spec("ddm_rt.kernels") is not None:
            return
    except ModuleNotFoundError:
        sys.path.append(str(root))
    import ddm_rt

    # The folder is top-level in the checkout and a part of the package where it is installed.
    spec = importlib.machinery.ModuleSpec("ddm_rt.kernels", None, is_package=True)
    spec.submodule_search_locations = [str(root / "kernels")]
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    ddm_rt.kernels = module
