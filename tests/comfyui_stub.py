"""A stub of ComfyUI, which tests do not install: it loads a node pack and runs a graph as its execution.py does.

It keeps to the contract of `comfy/comfy_types/node_typing.py`, and to what `execution.py` does about validation, links,
lists, `IS_CHANGED`, results and errors. It is no ComfyUI: it shows nothing, and knows no node but the pack's.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

_PYTHON = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}


class StubRefusal(Exception):
    """A graph that doesn't pass validation."""


class StubComfyUI:
    def __init__(self, pack: Path) -> None:
        """`pack` is a folder below custom_nodes."""
        name = f"custom_nodes.{pack.name}"
        place = importlib.util.spec_from_file_location(name, pack / "__init__.py")
        assert place is not None
        assert place.loader is not None
        module = importlib.util.module_from_spec(place)
        sys.modules[name] = module
        place.loader.exec_module(module)
        self.nodes: dict[str, Any] = module.NODE_CLASS_MAPPINGS
        self.names: dict[str, str] = module.NODE_DISPLAY_NAME_MAPPINGS
        self.executed: list[str] = []  # ids of nodes that ran in the last graph
        self._cache: dict[str, tuple[Any, list[list[Any]]]] = {}

    def defaults(self, kind: str) -> dict[str, Any]:
        """What the page fills in."""
        return {name: more["default"] for name, (_, more) in self.nodes[kind].INPUT_TYPES()["required"].items()}

    def run(self, graph: dict[str, Any]) -> dict[str, Any]:
        """Runs the output nodes and what they depend on. Returns the `ui` of each, by the node's id."""
        self.executed = []
        shown: dict[str, Any] = {}
        for node, its in graph.items():
            self._validate(graph, node)
            if getattr(self.nodes[its["class_type"]], "OUTPUT_NODE", False):
                self._outputs(graph, node, shown)
        return shown

    def outputs(self, graph: dict[str, Any], node: str) -> list[list[Any]]:
        """Values of each of the node's outputs: more than one where the output is a list."""
        self._validate(graph, node)
        return self._outputs(graph, node, {})

    def _validate(self, graph: dict[str, Any], node: str) -> None:
        its = graph[node]
        kinds = self.nodes[its["class_type"]].INPUT_TYPES()
        for name, (kind, more) in kinds["required"].items():
            if name not in its["inputs"]:
                raise StubRefusal(f"Required input is missing: {name}")
            value = its["inputs"][name]
            if isinstance(value, list):
                continue
            its["inputs"][name] = value = _PYTHON[kind](value)
            if not more.get("min", value) <= value <= more.get("max", value):
                raise StubRefusal(f"{name} is {value}: out of {more['min']} to {more['max']}")
        for name, value in its["inputs"].items():
            if isinstance(value, list):
                kind = (kinds["required"] | kinds.get("optional", {}))[name][0]
                given = self.nodes[graph[value[0]]["class_type"]].RETURN_TYPES[value[1]]
                if kind != given:
                    raise StubRefusal(f"{name}, {given} != {kind}")

    def _outputs(self, graph: dict[str, Any], node: str, shown: dict[str, Any]) -> list[list[Any]]:
        its = graph[node]
        kind = self.nodes[its["class_type"]]
        signature = self._signature(graph, node)
        if node in self._cache and self._cache[node][0] == signature:
            return self._cache[node][1]
        values = {
            name: self._outputs(graph, value[0], shown)[value[1]] if isinstance(value, list) else [value]
            for name, value in its["inputs"].items()
        }
        runs = []
        for i in range(max(len(each) for each in values.values())):  # shorter lists repeat their last value
            instance = kind()
            one = {name: each[min(i, len(each) - 1)] for name, each in values.items()}
            runs.append(getattr(instance, kind.FUNCTION)(**one))
        for result in runs:
            if isinstance(result, dict) and "ui" in result:
                shown[node] = result["ui"]
        rows = [result["result"] if isinstance(result, dict) else result for result in runs]
        assert all(isinstance(row, tuple) and len(row) == len(kind.RETURN_TYPES) for row in rows)
        lists = getattr(kind, "OUTPUT_IS_LIST", (False,) * len(kind.RETURN_TYPES))
        outputs = [
            [value for row in rows for value in row[i]] if is_list else [row[i] for row in rows]
            for i, is_list in enumerate(lists)
        ]
        self.executed.append(node)
        self._cache[node] = (signature, outputs)
        return outputs

    def _signature(self, graph: dict[str, Any], node: str) -> list[Any]:
        """What a cached result is found by: a NaN among it is equal to nothing."""
        its = graph[node]
        kind = self.nodes[its["class_type"]]
        links = {name for name, value in its["inputs"].items() if isinstance(value, list)}
        constants = {name: None if name in links else value for name, value in its["inputs"].items()}
        # A float of its own: comparison of lists takes one and the same object for equal.
        changed = float(kind.IS_CHANGED(**constants)) if hasattr(kind, "IS_CHANGED") else False
        return [
            its["class_type"],
            constants,
            changed,
            *(self._signature(graph, its["inputs"][name][0]) for name in links),
        ]
