"""The embedding library against the Python engine: the shipped digits bundle on ONNX Runtime.

    python benchmarks/embedding.py [--rounds 7] [--library BUILD]

- **throughput**: images a second of both at equal settings (the bundle's defaults), in one process, in turn; the C
  library is called through its header's functions.
- **joined**: 16 threads that ask for one image each, over and over: requests that share the denoiser's calls, and
  requests that don't (`ddm_rt_model_options_set_batching`), in turn. Beside other work the scheduler gives 16 threads
  more of the cores than the few that compute for all, so the processor's time for an image stands there too.
- **waiting**: milliseconds of a request of two steps alone, and while another thread's new image sizes are probed.
- **sessions**: resident memory of a process with one session, with two over one model, and with two models.
- **cold**: from the start of `ddm-cli sample -n 1` to its end, when the image is written; beside it `ddm-rt sample`.
- **memory**: peak resident memory of the same commands, for one image and for 64.

Medians of interleaved rounds; the machine should be quiet. Both sides open the ONNX Runtime of Python's package.
`--library` is a folder that CMake has built the library in; by default it is built, optimised, in a temporary one.
"""

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime
import render
from measured_steps import commit
from store import RESULTS, save

from ddm_rt.engine.machine import processor
from ddm_rt.errors import DdmError
from ddm_rt.files import asset
from ddm_rt.sample.pipeline import Pipeline

ROOT = Path(__file__).parents[1]
DIGITS = asset("digits")
COLD_S = 0.5  # bar: the first image of a cold process
RATIO = 1.0  # bar: throughput over the Python engine's
IMAGES = (1, 64)  # of a request whose throughput is measured
JOINED = 1.1  # bar: throughput of threads that share calls over that of threads that don't
THREADS, EACH = 16, 2  # that ask for an image at a time, and how many images each makes in a round


def build(folder: Path) -> Path:
    """The library with the compiler's usual optimisation."""
    (runtime,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "DDM_RT_LINK_ONNXRUNTIME": "OFF",
        "DDM_RT_ONNXRUNTIME_LIBRARY": str(runtime),
    }
    configure = ["cmake", "-S", ROOT, "-B", folder, *(f"-D{name}={value}" for name, value in options.items())]
    for command in (configure, ["cmake", "--build", folder, "--parallel", "2"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise DdmError(f"the library can't be built: {done.stderr.strip()[-500:]}")
    return folder


class CEngine:
    """The few functions of ddm_rt.h that are measured: a model with one session, or a session more over `shared`."""

    def __init__(self, library: Path, threads: int, *, batching: bool = True, shared: "CEngine | None" = None) -> None:
        self._c: Any = ctypes.CDLL(str(library))
        self._c.ddm_rt_error_message.restype = ctypes.c_char_p
        self.model = self._opened(threads, batching) if shared is None else shared.model
        self._session = self._made("session_open", self.model, None)

    def _opened(self, threads: int, batching: bool) -> ctypes.c_void_p:
        options = self._made("model_options_create")
        self._call("model_options_set_threads", options, threads)
        self._call("model_options_set_batching", options, int(batching))
        model = self._made("model_open_abi", 1, str(DIGITS).encode(), ctypes.c_int64(-1), options)
        self._c.ddm_rt_model_options_destroy(options)
        return model

    def generate(self, n: int, seed: int, *, side: int | None = None, steps: int | None = None) -> None:
        request = self._made("request_create")
        self._call("request_set_n", request, ctypes.c_int64(n))
        self._call("request_set_seed", request, ctypes.c_uint64(seed))
        for name, value in (("height", side), ("width", side), ("num_steps", steps)):
            if value is not None:
                self._call(f"request_set_{name}", request, ctypes.c_int64(value))
        self._c.ddm_rt_images_destroy(self._made("generate", self._session, request))
        self._c.ddm_rt_request_destroy(request)

    def _made(self, function: str, *arguments: Any) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        self._call(function, *arguments, ctypes.byref(handle))
        return handle

    def _call(self, function: str, *arguments: Any) -> None:
        call = getattr(self._c, f"ddm_rt_{function}")
        call.restype = ctypes.c_void_p
        if error := ctypes.c_void_p(call(*arguments)):
            raise DdmError(f"{function}: {self._c.ddm_rt_error_message(error).decode()}")


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def throughput(library: Path, threads: int, rounds: int) -> list[dict[str, Any]]:
    c, python = CEngine(library, threads), Pipeline.load("digits", backend="onnxruntime", threads=threads)
    found: list[dict[str, Any]] = []
    for n in IMAGES:
        pairs = []
        for number in range(rounds + 1):
            in_c = seconds(lambda: c.generate(n, number))  # noqa: B023  (called at once)
            in_python = seconds(lambda: python.generate(n=n, seed=number))  # noqa: B023
            pairs.append((in_c, in_python))
        pairs = pairs[1:]  # the first one warms both
        ratios = sorted(there / here for here, there in pairs)
        found.append(
            {
                "part": "throughput",
                "case": f"{n} image{'s' * (n > 1)}, {threads} thread{'s' * (threads > 1)}",
                "c_images_per_s": round(n / statistics.median(here for here, _ in pairs), 1),
                "python_images_per_s": round(n / statistics.median(there for _, there in pairs), 1),
                "c_over_python": round(statistics.median(ratios), 3),
                "c_over_python_range": [round(ratios[0], 3), round(ratios[-1], 3)],
            }
        )
    return found


def at_once(jobs: Iterable[Callable[[], object]]) -> float:
    """Seconds until threads of their own have done all of them."""
    threads = [threading.Thread(target=job) for job in jobs]

    def run() -> None:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return seconds(run)


def joined(library: Path, threads: int, rounds: int) -> dict[str, Any]:
    sharing, apart = (CEngine(library, threads, batching=batching) for batching in (True, False))

    def measured(engine: CEngine) -> tuple[float, float]:
        """Images a second, and the processor's milliseconds for one."""

        def ask(seed: int) -> None:
            for _ in range(EACH):
                engine.generate(1, seed)

        start = time.process_time()
        took = at_once(partial(ask, seed) for seed in range(THREADS))
        return THREADS * EACH / took, 1000 * (time.process_time() - start) / (THREADS * EACH)

    pairs = [(measured(sharing), measured(apart)) for _ in range(rounds + 1)][1:]  # the first one warms both
    ratios = sorted(shared[0] / alone[0] for shared, alone in pairs)
    return {
        "part": "joined",
        "case": f"{THREADS} requests at a time, {threads} thread{'s' * (threads > 1)} a call",
        "joined_images_per_s": round(statistics.median(shared[0] for shared, _ in pairs), 1),
        "apart_images_per_s": round(statistics.median(alone[0] for _, alone in pairs), 1),
        "joined_over_apart": round(statistics.median(ratios), 3),
        "joined_over_apart_range": [round(ratios[0], 3), round(ratios[-1], 3)],
        "joined_cpu_ms": round(statistics.median(shared[1] for shared, _ in pairs), 1),
        "apart_cpu_ms": round(statistics.median(alone[1] for _, alone in pairs), 1),
    }


def waiting(library: Path, rounds: int) -> dict[str, Any]:
    engine = CEngine(library, 1)
    engine.generate(1, 0, steps=2)
    alone, beside = [], []
    for number in range(rounds):
        alone.append(seconds(lambda: engine.generate(1, 0, steps=2)))
        other = threading.Thread(target=engine.generate, args=(1, 0), kwargs={"side": 40 + 8 * number, "steps": 1})
        other.start()
        while other.is_alive():
            beside.append(seconds(lambda: engine.generate(1, 0, steps=2)))
    return {
        "part": "waiting",
        "case": "a request of a size that is known",
        "alone_p50_ms": round(1000 * statistics.median(alone), 1),
        "beside_p50_ms": round(1000 * statistics.median(beside), 1),
        "beside_worst_ms": round(1000 * max(beside), 1),
    }


def sessions(library: Path) -> list[dict[str, Any]]:
    """Each in a process of its own."""
    cases = {
        "one session": "",
        "two sessions over one model": "b = CEngine(library, 1, shared=a); b.generate(1, 0)",
        "two models": "b = CEngine(library, 1); b.generate(1, 0)",
    }
    found = []
    for case, more in cases.items():
        program = (
            f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from pathlib import Path\n"
            f"from embedding import CEngine; library = Path({str(library)!r})\n"
            f"a = CEngine(library, 1); a.generate(1, 0); {more}\n"
            "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmRSS:')))"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        found.append({"part": "sessions", "case": case, "resident_mib": round(int(done.stdout) / 1024, 1)})
    return found


def started(program: list[str], n: int, folder: str) -> subprocess.Popen[bytes]:
    line = [*program, "sample", str(DIGITS), "-n", str(n), "--threads", "1", "--out", f"{folder}/out"]
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def command(program: list[str], n: int, work: Path) -> float:
    """Wall seconds of one process that writes `n` images."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        start = time.perf_counter()
        process = started(program, n, folder)
        code = process.wait()
        took = time.perf_counter() - start
    if code != 0:
        raise DdmError(f"{program[0]}: exit code {code}")
    return took


def peak_mib(program: list[str], n: int, work: Path) -> float:
    """Resident at most, of a process that isn't timed. What `wait4` says begins with the size of this process."""
    found = 0.0
    with tempfile.TemporaryDirectory(dir=work) as folder:
        process = started(program, n, folder)
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            lines = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
            found = float(lines[0].split()[1]) / 1024 if lines else found  # the last one: a process ends without any
            time.sleep(0.002)
    if process.returncode != 0:
        raise DdmError(f"{program[0]}: exit code {process.returncode}")
    return found


def commands(cli: Path, rounds: int, work: Path) -> list[dict[str, Any]]:
    programs = {"ddm-cli": [str(cli)], "ddm-rt": [sys.executable, "-m", "ddm_rt.cli"]}
    found: list[dict[str, Any]] = []
    for n in IMAGES:
        measured: dict[str, list[float]] = {name: [] for name in programs}
        for _ in range(rounds):
            for name, program in programs.items():
                measured[name].append(command(program, n, work))
        found += [
            {
                "part": "commands",
                "case": f"{name}, {n} image{'s' * (n > 1)}",
                "wall_p50_s": round(statistics.median(runs), 3),
                "wall_range_s": [round(min(runs), 3), round(max(runs), 3)],
                "peak_rss_mib": round(peak_mib(programs[name], n, work), 1),
            }
            for name, runs in measured.items()
        ]
    return found


def bars(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every bar beside its figure."""
    worst = min(row["c_over_python"] for row in rows if row["part"] == "throughput")
    cold = next(row["wall_p50_s"] for row in rows if row["case"] == "ddm-cli, 1 image")
    shared = min(row["joined_over_apart"] for row in rows if row["part"] == "joined")
    return [
        {
            "bar": f"throughput of threads that share calls, at least {JOINED:g} of others",
            "value": shared,
            "met": shared >= JOINED,
        },
        {"bar": f"throughput over the Python engine's, at least {RATIO:g}", "value": worst, "met": worst >= RATIO},
        {"bar": f"first image of a cold process, at most {COLD_S:g} s", "value": cold, "met": cold <= COLD_S},
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--library", type=Path, help="folder that CMake has built the library in")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of speed.jsonl and speed.md")
    options = parser.parse_args(arguments)
    stamp = {
        "command": "python benchmarks/embedding.py",
        "commit": commit(),
        "rounds": options.rounds,
        "processor": processor(),
        "cpus": len(os.sched_getaffinity(0)),
        "load_before": round(os.getloadavg()[0], 2),
        "onnxruntime": version("onnxruntime"),
        "python": platform.python_version(),
    }
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        built = build(work / "build") if options.library is None else options.library
        library = built / "ddm_rt" / "csrc" / "libddm_rt.so"
        rows = [row for threads in (1, 2) for row in throughput(library, threads, options.rounds)]
        rows += [joined(library, threads, options.rounds) for threads in (1, 2)]
        rows += [waiting(library, options.rounds), *sessions(library)]
        rows += commands(library.with_name("ddm-cli"), options.rounds, work)
    save("embedding", stamp | {"bars": bars(rows), "rows": rows}, options.results)
    print(json.dumps(bars(rows), indent=1))
    render.render("speed", options.results)


if __name__ == "__main__":
    main()
