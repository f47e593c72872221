"""A bundle's weights from its graphs, for the modules that the graphs were traced from.

Exporting kept the order of the computation, but not every name: what it transposed, reshaped or folded is called
`val_17`. So the modules' calls and the graphs' nodes are walked side by side, in the order in which they use their
weights. A name that was kept must agree, and so must every shape.
"""

import copy
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ddm_rt import graph_files
from ddm_rt.bundle import Bundle
from ddm_rt.engine.torch.networks import Origin, read
from ddm_rt.errors import BundleError
from ddm_rt.model.assemble import build
from ddm_rt.model.parts import Model, Part, parts
from ddm_rt.model.unet import DDM
from ddm_rt.runtime import RuntimeConfig

_PREFIX = "module.model."  # of what kept its name: a part's module holds the model
_SIDE = 2  # of an example's latents, in the smallest sides that the UNet takes


def load(bundle: Bundle) -> Model:
    """The bundle's model in eval mode, with the weights of its graphs, in their dtypes, on the CPU.

    What no graph computes with (a VAE's encoder) isn't there. Raises BundleError for graphs that aren't
    of the model that training.json describes, and weights that are missing or not finite.
    """
    with init_empty_weights(include_buffers=False):
        model = build(bundle.model, bundle.config.latent_shape, bundle.codes.shared_of)
    if not isinstance(model, DDM):
        model.vae.encoder, model.vae.quant_conv = nn.Identity(), nn.Identity()
    found = find(bundle, model)
    weights = read(bundle, {name: origin for name, origin in found.items() if origin is not None})
    shapes = {name: weight.shape for name, weight in model.state_dict().items()}
    # If the result were read after all, it would show.
    weights |= {name: torch.full(shapes[name], torch.nan) for name, origin in found.items() if origin is None}
    model.load_state_dict(weights, strict=False, assign=True)
    return model.eval().requires_grad_(False)


def find(bundle: Bundle, model: Model) -> dict[str, Origin | None]:
    """Where each weight that `model` computes with lies, by its name in the state_dict; None where nothing reads what
    it is computed for, so that the graph has no such weight.
    """
    shadow = copy.deepcopy(model).to("meta")
    names = {id(weight): name for name, weight in shadow.named_parameters(remove_duplicate=False)}
    found: dict[str, Origin | None] = {}
    for graph, part in parts(shadow, bundle.config, ready=bundle.config.keys_values is not None).items():
        path = bundle.graphs[graph]
        uses = _uses(part, example(part, bundle.config), names)
        found |= _matched(path, graph, uses, dict(shadow.named_parameters(remove_duplicate=False)))
    return found


def example(part: Part, config: RuntimeConfig, batch: int = 1, tokens: int = 2) -> dict[str, Tensor]:
    """Inputs of the part's shapes and dtypes on the meta device, at the smallest size that the model takes."""
    channels, *_ = config.latent_shape
    side = _SIDE * max(config.size_multiple * config.latent_shape[1] // config.image_size, 1)
    shapes: dict[str, tuple[int | str, ...]] = {
        "context": config.context_shape,
        "code": (),
        "indicator_scale": (),
        "x_t": (channels, side, side),
        "x0": (channels, side, side),
        "t": (),
        **{spec.name: spec.shape for spec in (*part.cond, *config.added)},
        **{spec.input: (spec.max_length,) for spec in config.text},
    }
    whole = {"code", *(spec.input for spec in config.text)}

    def make(name: str) -> Tensor:
        sides = part.sides(shapes[name], tokens)
        return torch.zeros((batch, *sides), dtype=torch.int64 if name in whole else torch.float32, device="meta")

    return {name: make(name) for name in part.inputs}


class _Recorder(TorchFunctionMode):
    """Names of the weights that torch functions are called with, in order, each once."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self._names = names
        self.seen: dict[str, None] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in pytree.tree_leaves((args, kwargs or {})) if isinstance(result, Tensor) else ():  # not of a shape
            if isinstance(value, Tensor) and id(value) in self._names:
                self.seen.setdefault(self._names[id(value)])
        return result


@torch.no_grad()
def _uses(part: Part, inputs: Mapping[str, Tensor], names: Mapping[int, str]) -> list[str]:
    with torch.device("meta"), _Recorder(names) as recorder:
        part.module(*inputs.values())
    return list(recorder.seen)


def _matched(path: Path, graph: str, uses: list[str], weights: Mapping[str, Tensor]) -> dict[str, Origin | None]:
    """By name; None for what the module computes with and the graph doesn't, since nothing reads the result."""
    found: dict[str, Origin | None] = {}
    waiting = deque(uses)
    tensors = list(graph_files.in_order(graph_files.read_model(path)))
    times = Counter(tensor.name for tensor, _ in tensors)
    for tensor, transposed in tensors:
        # What several layers with equal weights share has the name of any of them: their order alone tells.
        own = times[tensor.name] == 1 and tensor.name.startswith(_PREFIX)
        kept = tensor.name.removeprefix(_PREFIX) if own else None
        if kept in waiting:
            while waiting[0] != kept:
                found[waiting.popleft()] = None
        name = waiting[0] if waiting else None
        if name is not None and kept in (None, name) and _fits(tensor.dims, transposed, weights[name].shape):
            shape = tuple(weights[name].shape)
            found[name] = Origin(graph=graph, initializer=tensor.name, transposed=transposed, shape=shape)
            waiting.popleft()
        elif kept is not None:
            wanted = "nothing more" if name is None else f"{name} {list(weights[name].shape)}"
            raise BundleError(
                f"{path}: has tensor {kept} {list(tensor.dims)}; the model of training.json uses {wanted}"
            )
    if waiting:
        raise BundleError(f"{path}: has no tensor for {waiting[0]}, which the model of training.json uses")
    return found


def _fits(dims: Sequence[int], transposed: bool, shape: torch.Size) -> bool:
    return [side for side in (reversed(dims) if transposed else dims) if side != 1] == [
        side for side in shape if side != 1
    ]
