"""One session, run over memory that is the engine's own: nothing is copied on the way in or out."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

from ddm_rt.errors import DdmError

Shape = tuple[int, ...]

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
_NOT_CAPTURED = "-1"


class Addressed(NamedTuple):
    """A contiguous array on the device."""

    pointer: int
    shape: Shape
    dtype: np.dtype[Any]


class BoundSession:
    """Runs a session on CUDA device `ordinal` by IO binding. A run is queued, not waited for."""

    def __init__(self, session: ort.InferenceSession, ordinal: int) -> None:
        """Raises DdmError for a tensor of a type that isn't known here."""
        self._session, self._place = session, ("cuda", ordinal)
        self.inputs = {item.name: _dtype(item) for item in session.get_inputs()}
        self.outputs = {item.name: _dtype(item) for item in session.get_outputs()}
        self._binding = session.io_binding()
        self._bound_inputs: dict[str, Addressed] = {}  # what is bound is an address: equal ones needn't be again
        self._bound_outputs: dict[str, Addressed] = {}
        self._options: dict[str, ort.RunOptions] = {}  # by graph: an entry that is changed is a line in the log

    def first(self, inputs: Mapping[str, Addressed]) -> dict[str, ort.OrtValue]:
        """The outputs, in ONNX Runtime's memory: a run for which nobody need know their shapes."""
        self._bind(inputs)
        self._binding.clear_binding_outputs()
        self._bound_outputs.clear()
        for name in self.outputs:
            self._binding.bind_output(name, *self._place)
        self._run(_NOT_CAPTURED)
        return dict(zip(self.outputs, self._binding.get_outputs(), strict=True))

    def run(self, inputs: Mapping[str, Addressed], outputs: Mapping[str, Addressed], graph: int | None = None) -> None:
        """Fill `outputs`. With a `graph`, a number from 1, the session captures the first run under it, and replays it
        later; the addresses must then be the same ones each time.
        """
        self._bind(inputs)
        for name, array in outputs.items():
            if self._bound_outputs.get(name) != array:
                self._binding.bind_output(name, *self._place, array.dtype.type, array.shape, array.pointer)
                self._bound_outputs[name] = array
        self._run(_NOT_CAPTURED if graph is None else str(graph))

    def _bind(self, inputs: Mapping[str, Addressed]) -> None:
        if inputs.keys() != self._bound_inputs.keys():
            self._binding.clear_binding_inputs()
            self._bound_inputs.clear()
        for name, array in inputs.items():
            if self._bound_inputs.get(name) != array:  # of a loop's inputs most stay where they are
                self._binding.bind_input(name, *self._place, array.dtype.type, array.shape, array.pointer)
                self._bound_inputs[name] = array

    def _run(self, graph: str) -> None:
        if graph not in self._options:
            self._options[graph] = options = ort.RunOptions()
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
            options.add_run_config_entry("gpu_graph_id", graph)
        self._session.run_with_iobinding(self._binding, self._options[graph])


def _dtype(item: Any) -> np.dtype[Any]:
    if item.type not in _TYPES:
        raise DdmError(f"{item.name} is a {item.type}; expected {', '.join(_TYPES)}")
    return np.dtype(_TYPES[item.type])
