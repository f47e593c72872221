"""Where float32 matters in a bf16 denoiser on the CPU: every island of it taken away, and others put in.

    python benchmarks/islands.py --work DIR            # what islands.jsonl already has is not measured again
    python benchmarks/islands.py --work DIR --only small --rounds 40

An island is what computes in float32 between casts while the rest is bf16. A bundle's graph has these: timesteps and
their sines, each group norm, and the statistics within each layer norm. Each is taken away alone, and each kind at
once. Then kinds of operators and blocks of the network that compute in bf16 are put into float32, to see what is left
to gain.

The graphs run on OpenVINO as they are, without what `engine/cpu/openvino_graph.py` does to them. Errors are of each
image of one call, relative to the fp32 graph, root mean square. Times are CPU time on one thread, interleaved with the
bundle's graph, so that other processes on the machine count little. "hint" is OpenVINO's own: the fp32 graph, all of
it in bf16. "tuned" is the bundle's graph as ddm_rt runs it. "rounded" are errors on onnx's own evaluator, which rounds
at every operator and sums in bf16 where a graph says bf16, as an engine may.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino as ov
import render
from bench_parts.feeds import feeds
from bench_parts.rows import quartiles
from measured_steps import commit
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto
from onnx.reference import ReferenceEvaluator
from store import RESULTS, put, read
from subjects import SUBJECTS, Subject, of_bundle

from ddm_rt import graph_files
from ddm_rt.bundle import Bundle
from ddm_rt.engine.cpu import openvino_graph
from ddm_rt.engine.machine import processor
from ddm_rt.export.precision import half, opset
from ddm_rt.half import STATISTICS

OPSET = 22  # the first whose operators take bf16
BATCHES = {"shipped": (2, 32), "small": (2, 16)}  # of `run.py step`; errors are of the second
# Put into float32: kinds of operators.
KINDS = ({"Softmax"}, {"Sigmoid"}, {"Erf"}, {"Conv"}, {"MatMul", "Gemm"}, {"Add", "Mul"})
KEY = ("subject", "change", "kind", "layer")
Feeds = dict[str, NDArray[Any]]


class Graphs:
    """The denoiser of one bundle with any set of islands."""

    def __init__(self, subject: Subject) -> None:
        self.path = Bundle.load(subject.bundle, verify=False).graphs["denoiser"]
        self._source = graph_files.read_model(self.path)
        opset.raise_to(self._source, OPSET, self.path)
        self.nodes = list(self._source.graph.node)
        self.own = half.islands(self._source)
        self.norms = {i for i in self.own if self.nodes[i].op_type in STATISTICS}
        self.sines = self.own - self.norms  # and what they are computed from
        self.layer_norms = {i for i, node in enumerate(self.nodes) if node.op_type == "LayerNormalization"}
        self._users: dict[str, list[int]] = {}
        for number, node in enumerate(self.nodes):
            for name in node.input:
                self._users.setdefault(name, []).append(number)

    def made(self, islands: set[int], half_statistics: frozenset[int] = frozenset()) -> ModelProto:
        """The graph with these nodes in float32; layer norms in `half_statistics` have bf16 statistics."""
        source = ModelProto()
        source.CopyFrom(self._source)
        for number in half_statistics:
            source.graph.node[number].attribute.append(onnx.helper.make_attribute("stash_type", TensorProto.BFLOAT16))
        return half.to_half(source, self.path, TensorProto.BFLOAT16, islands)

    def layer(self, number: int) -> str:
        """The module of the first weight that the node's output meets."""
        todo, seen = [number], set()
        while todo:
            number = todo.pop(0)
            for name in self.nodes[number].input:
                if name.endswith(".weight"):
                    return name.removesuffix(".weight").split("unet.")[-1]
            seen.add(number)
            todo += [
                user for name in self.nodes[number].output for user in self._users.get(name, ()) if user not in seen
            ]
        return "output"

    def block(self, number: int) -> str:
        parts = self.layer(number).split(".")
        return ".".join(parts[:2]) if parts[0] in ("down_blocks", "up_blocks") else parts[0]

    def changes(self) -> Iterator[tuple[str, str, str, ModelProto]]:
        """Change, kind, layer and the graph that has it; kinds at once have the layer "all"."""
        yield "without", "timesteps", "all", self.made(self.norms)
        yield "without", "group norms", "all", self.made(self.sines)
        yield "without", "layer norms", "all", self.made(self.own, frozenset(self.layer_norms))
        yield "without", "all islands", "all", self.made(set(), frozenset(self.layer_norms))
        for number in sorted(self.norms):
            yield "without", "group norms", self.layer(number), self.made(self.own - {number})
        for number in sorted(self.layer_norms):
            yield "without", "layer norms", self.layer(number), self.made(self.own, frozenset({number}))
        for operators in KINDS:
            chosen = {i for i, node in enumerate(self.nodes) if node.op_type in operators}
            yield "with", ", ".join(sorted(operators)), "all", self.made(self.own | chosen)
        blocks: dict[str, set[int]] = {}
        for number in range(len(self.nodes)):
            blocks.setdefault(self.block(number), set()).add(number)
        for block, numbers in blocks.items():
            yield "with", "block", block, self.made(self.own | numbers)


def request(source: ModelProto | Path, given: Feeds, hint: str = "f32", tuned: bool = False) -> ov.InferRequest:
    """`source` compiled for the shapes of the call, on one thread."""
    model = ov.Core().read_model(source if isinstance(source, Path) else source.SerializeToString())
    model.reshape({name: list(value.shape) for name, value in given.items()})
    if tuned:
        openvino_graph.tune(model)
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    return ov.Core().compile_model(model, "CPU", settings).create_infer_request()


def errors(found: NDArray[Any], reference: NDArray[Any]) -> NDArray[Any]:
    """Of each image."""
    axes = (1, 2, 3)
    each: NDArray[Any] = np.sqrt(((found - reference) ** 2).mean(axes) / (reference**2).mean(axes))
    return each


def ratios(base: ov.InferRequest, other: ov.InferRequest, given: Feeds, rounds: int) -> list[float]:
    """CPU time of the base's calls over the other's, round by round; above 1 the other is faster."""
    start = time.perf_counter()
    for each in (base, other):
        each.infer(given)
    calls = max(1, int(0.04 / (time.perf_counter() - start)))
    found = []
    for i in range(rounds):
        taken = {}
        for each in (base, other) if i % 2 else (other, base):
            each.infer(given)
            before = time.process_time()
            for _ in range(calls):
                each.infer(given)
            taken[id(each)] = time.process_time() - before
        found.append(taken[id(base)] / taken[id(other)])
    return found


def measure(name: str, subject: Subject, rounds: int, results: Path, stamp: dict[str, Any]) -> None:
    """Every line of one subject that isn't there."""
    graphs = Graphs(subject)
    fp32, own = graphs.path, graphs.made(graphs.own)
    calls = [feeds(subject, batch) for batch in BATCHES[name]]
    bases = [request(own, given) for given in calls]
    reference = request(fp32, calls[-1]).infer(calls[-1])[0].copy()
    now = errors(bases[-1].infer(calls[-1])[0], reference)
    there = {tuple(line[part] for part in KEY) for line in read(results / "islands.jsonl")}

    def keep(error: NDArray[Any], base: NDArray[Any], times: dict[str, Any], *key: str) -> None:
        line = dict(zip(KEY, (name, *key), strict=True)) | {
            "error": quartiles(error.tolist()),
            "error_ratio": quartiles((error / base).tolist()),
            "images": len(error),
            "speedup": times,
            "rounds": rounds,
            **stamp,
        }
        put(results / "islands.jsonl", [line], *KEY)
        print(name, *key, line["error"][1], {batch: each[1] for batch, each in times.items()}, flush=True)

    def whole() -> Iterator[tuple[str, str, str, ModelProto | Path]]:
        yield "none", "as the bundle is", "all", own
        yield "hint", "hint", "all", fp32
        yield "tuned", "tuned", "all", own
        yield from graphs.changes()

    for change, kind, layer, model in whole():
        if (name, change, kind, layer) in there:
            continue
        how = {"hint": "bf16" if change == "hint" else "f32", "tuned": change == "tuned"}
        used = range(len(calls)) if layer == "all" else range(len(calls))[-1:]
        made = {i: request(model, calls[i], **how) for i in used}
        error = errors(made[used[-1]].infer(calls[-1])[0], reference)
        times = {str(BATCHES[name][i]): quartiles(ratios(bases[i], made[i], calls[i], rounds)) for i in used}
        keep(error, now, times, change, kind, layer)
    rounded = {"as the bundle is": graphs.own, "timesteps": graphs.norms, "group norms": graphs.sines}
    if not all((name, "rounded", kind, "all") in there for kind in rounded):
        found = {kind: ReferenceEvaluator(graphs.made(islands)) for kind, islands in rounded.items()}
        off = {kind: errors(evaluator.run(None, calls[-1])[0], reference) for kind, evaluator in found.items()}
        for kind, error in off.items():
            keep(error, off["as the bundle is"], {}, "rounded", kind, "all")


def _subject(name: str, work: Path) -> Subject:
    return of_bundle("shipped", Bundle.load("digits").path, work) if name == "shipped" else SUBJECTS[name](work, 1.0)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="keeps the models")
    parser.add_argument("--only", choices=BATCHES, help="one subject")
    parser.add_argument("--rounds", type=int, default=15, help="of the timing")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of islands.jsonl and islands.md")
    given = parser.parse_args(arguments)
    stamp = {"processor": processor(), "openvino": ov.__version__.split("-")[0], "commit": commit()}
    for name in BATCHES if given.only is None else (given.only,):
        measure(name, _subject(name, given.work), given.rounds, given.results, stamp)
    print(render.render("islands", given.results))


if __name__ == "__main__":
    main()
