"""One configuration in a process of its own: opened, warmed up, then one timed call for each line on stdin.

`benchmarks/run.py` starts it. The first argument is JSON: peer, options, subject, threads, kind ("step", "images" or
"train"), batch, side, warm_up and `output`, a file for what the first call gave. Each answer is one line of JSON.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

_START = time.perf_counter()
OTHERS_SPIN_S = 0.03  # threads of the configuration before may spin on after its call
SHORT_S = 0.2  # shorter calls are timed right after others, as in a sampling loop:
BEFORE_S = 0.02  # for so long, since a virtual machine's idle cores take milliseconds to wake


def answer(**fields: Any) -> None:
    print(json.dumps(fields), file=_ANSWERS, flush=True)


def peak_mem_mib() -> float:
    """Resident, at most so far. Not from `getrusage`, whose figure begins with that of the process that started us."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def main() -> None:
    spec = json.loads(sys.argv[1])
    import numpy as np
    import peers
    from bench_parts.feeds import feeds
    from subjects import Subject

    subject = Subject.model_validate(spec["subject"])
    inputs = feeds(subject, spec["batch"], spec["side"]) if spec["kind"] == "step" else None
    opening = time.perf_counter()
    peer = peers.load(spec["peer"], subject, spec["threads"], spec["options"])
    if spec["kind"] == "train":
        call = peer.train(spec["batch"], spec["side"])
    else:
        call = peer.images(spec["batch"]) if inputs is None else peer.step(inputs)
    first = call()
    cold = time.perf_counter() - opening
    if spec["output"]:
        np.save(spec["output"], first)
    for _ in range(spec["warm_up"]):
        call()
    answer(first_call_ms=1000 * cold, versions=peer.versions, process_ms=1000 * (time.perf_counter() - _START))
    took = cold
    for line in sys.stdin:
        if line.strip() != "go":
            break
        time.sleep(OTHERS_SPIN_S)
        start = time.perf_counter()
        while took < SHORT_S and time.perf_counter() - start < BEFORE_S:
            call()
        start = time.perf_counter()
        call()
        took = time.perf_counter() - start
        answer(ms=1000 * took)
    answer(peak_mem_mib=peak_mem_mib())


if __name__ == "__main__":
    # What libraries print goes to stderr: stdout is for answers alone, C code included.
    _ANSWERS = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    main()
