"""Everything about a GPU that only a GPU can show, in sections of at most eight minutes.

    python benchmarks/gpu.py --fetch WHEELS [--python 3.12]       # where there is a network
    python benchmarks/gpu.py --out DIR --wheels WHEELS            # where there is a GPU
    python benchmarks/gpu.py --out DIR --sections numerics,attention
    python benchmarks/gpu.py --out DIR --dry-run                  # all of the code on a CPU, nothing measured

Needs a CUDA device, torch, triton and numpy, and this checkout or an installed ddm_rt. `gpu_parts/wheels.py` names what
else it needs; that comes from WHEELS, and what is missing is listed. Each section runs in a process of its own within
its time, so that one that crashes or hangs takes nothing with it. The command can be given again: a section that is
complete for this commit, machine and versions is skipped, one that was cut off goes on after its last row, and what
Inductor compiled lies in DIR. DIR gets gpu.json (after every section), gpu.md, gpu.svg and one JSON file per section.

Exit code 0: every bar that was measured is met. 1: one is not, or a section failed. 2: nothing could run, and nothing
is written.
"""

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from gpu_parts import checkout, machine, picture, summary, wheels
from gpu_parts.record import Record, read, write, write_json

LIMIT_S = 480.0  # of one section's process
START_S = 40.0  # of it beyond the budget: imports, the CUDA context, the last row
_ON_PARENTS_DEATH = 1  # PR_SET_PDEATHSIG
IN_A_PROCESS = "numerics"  # the only section of a dry run that is: starting one takes seconds


@dataclass(frozen=True)
class Section:
    """A function `(record, rig, *arguments) -> None` and the seconds that it may take."""

    where: str  # "module:function"
    budget_s: float
    shows: str
    arguments: tuple[Any, ...] = ()


def _images(model: str, batch: int) -> dict[str, Section]:
    """What compiles for one model and batch, and the images themselves."""
    place, title = "gpu_parts.trajectories", f"{model}, batch {batch}"
    found = {}
    for indicator, ending, words in ((False, "", "without"), (True, "_indicator", "with")):
        found[f"{model}_{batch}_compile{ending}"] = Section(
            f"{place}:section_compile", 440, f"{title}: torch.compile, {words} indicator", (model, batch, indicator)
        )
        found[f"{model}_{batch}{ending}"] = Section(
            f"{place}:section_images", 440, f"{title}: whole images, {words} indicator", (model, batch, indicator)
        )
    return found


# In the order of what matters most if the run is cut short.
SECTIONS: dict[str, Section] = {
    "numerics": Section("gpu_parts.numerics:section_numerics", 300, "both kernels against float64; batch invariance"),
    "races": Section("gpu_parts.numerics:section_races", 60, "50 repeats beside other work, bit by bit"),
    "attention": Section(
        "gpu_parts.attention_speed:section_attention", 240, "fused, unfused, flash, copy: SD 1.5's layers"
    ),
    **_images("sd15", 1),
    **_images("sd15", 8),
    **_images("sd15", 16),
    "identity": Section("gpu_parts.identity:section_identity", 300, "SD 1.5's bytes over batch mixes"),
    **_images("sdxl", 1),
    **_images("sdxl", 4),
    "training": Section("gpu_parts.training:section_training", 440, "a training step of SD 1.5"),
    "engines": Section("gpu_parts.engines:section_engines", 60, "TensorRT and ONNX Runtime on the digits"),
    "tactics": Section("gpu_parts.attention_speed:section_tactics", 120, "every tile of the table for this card"),
}


def rig_of(dry: bool) -> Any:
    from gpu_parts import rig  # and with it torch

    return rig.fake() if dry else rig.real()


def run_section(name: str, out: Path, rig: Any) -> None:
    """One section here, in this process."""
    import torch

    checkout.provide()
    section = SECTIONS[name]
    torch.manual_seed(0)
    key, stamp = machine.key(rig), machine.stamp(rig)
    record = Record(name, out / f"{name}.json", section.budget_s, key=key, stamp=stamp)
    record.facts |= rig.notes
    module, function = section.where.split(":")
    if (absent := machine.needed_for(module)) is not None:
        record.leave_out(f"everything: {absent}")
    else:
        getattr(import_module(module), function)(record, rig, *section.arguments)
    record.finish()


def supervise(name: str, out: Path, rig: Any, limit_s: float = LIMIT_S) -> dict[str, Any]:
    """One section in a process of its own; what it wrote, with `error` where it didn't end well."""
    path, log = out / f"{name}.json", out / f"{name}.log"
    command = [sys.executable, str(Path(__file__)), "--out", str(out), "--run-section", name]
    command += ["--dry-run"] if rig.dry else []
    error = None
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stderr=stderr, env=environment(out), start_new_session=True)
        try:
            code = process.wait(limit_s)
            if code != 0:
                last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
                error = f"exit code {code}: {last[0]}"
        except subprocess.TimeoutExpired:
            error = f"stopped after {limit_s:.0f} s; the command goes on with it when it is given again"
        finally:
            if process.poll() is None:  # with those that it started to compile
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return _ended(name, path, error)


def here(name: str, out: Path, rig: Any) -> dict[str, Any]:
    """As `supervise`, in this process and without a limit: for dry runs."""
    error = None
    try:
        run_section(name, out, rig)
    except Exception as raised:  # noqa: BLE001  (whatever it is, the other sections still run)
        error = f"{type(raised).__name__}: {raised}"
    return _ended(name, out / f"{name}.json", error)


def _ended(name: str, path: Path, error: str | None) -> dict[str, Any]:
    """What a section wrote, with its error."""
    tree = read(path) or {"section": name, "rows": []}
    tree.pop("error", None)
    if error is None:
        path.with_suffix(".log").unlink(missing_ok=True)
    else:
        tree |= {"error": error, "complete": False}
        write_json(path, tree)
    return tree


def environment(out: Path) -> dict[str, str]:
    """Where what was compiled is kept, and the wheels' packages first: they fit each other."""
    out = out.resolve()
    path = [str(out / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    kept = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton", "DDM_RT_CACHE": "ddm_rt"}
    return os.environ | {name: str(out / folder) for name, folder in kept.items()} | {"PYTHONPATH": ":".join(path)}


def run(out: Path, names: list[str], rig: Any, again: list[str]) -> dict[str, Any]:
    """The sections one after another; gpu.json, gpu.md and gpu.svg are rewritten after each.

    Sections that aren't asked for are in them as well, where an earlier run left them.
    """
    out.mkdir(parents=True, exist_ok=True)
    start, key = time.monotonic(), machine.key(rig)
    tree: dict[str, Any] = {"command": f"python benchmarks/gpu.py --out DIR --sections {','.join(names)}"}
    tree |= {"dry": rig.dry, "notes": rig.notes, "machine": machine.facts(rig)}
    found: dict[str, Any] = {}
    for name in SECTIONS:
        earlier = read(out / f"{name}.json")
        if earlier.get("key") == key:
            found[name] = earlier
    for name in names:
        if name in again:
            (out / f"{name}.json").unlink(missing_ok=True)
        elif found.get(name, {}).get("complete"):
            print(f"{name}: complete for this commit, machine and versions; skipped (--again {name} does it again)")
            continue
        print(f"{name}: {SECTIONS[name].shows} (at most {LIMIT_S:.0f} s)", flush=True)
        found[name] = (here if rig.dry and name != IN_A_PROCESS else supervise)(name, out, rig)
        written(out, tree, found, time.monotonic() - start)
    return written(out, tree, found, time.monotonic() - start)


def written(out: Path, tree: dict[str, Any], found: dict[str, Any], wall_s: float) -> dict[str, Any]:
    """The files of the whole run."""
    tree["sections"] = {name: found[name] for name in SECTIONS if name in found}
    tree["wall_s"], tree["bars"] = round(wall_s, 1), summary.bars(tree["sections"])
    write_json(out / "gpu.json", tree)
    write(out / "gpu.md", summary.markdown(tree))
    if rows := summary.image_rows(tree["sections"]):
        title = f"{tree['machine']['gpu']}, bf16, commit {tree['machine']['commit']}"
        write(out / "gpu.svg", picture.svg(rows, f"DRY RUN, nothing measured. {title}" if tree["dry"] else title))
    return tree


def sections_of(text: str) -> list[str]:
    """Names from `a,b`, in the table's order."""
    asked = [name.strip() for name in text.split(",")]
    for name in asked:
        if name not in SECTIONS:
            raise argparse.ArgumentTypeError(f"section {name!r} is unknown; sections: {', '.join(SECTIONS)}")
    return [name for name in SECTIONS if name in asked]


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for the results; kept between runs")
    parser.add_argument("--sections", type=sections_of, default=list(SECTIONS), help="comma-separated; default: all")
    parser.add_argument("--again", type=sections_of, default=[], help="sections to do again from their first row")
    parser.add_argument("--fetch", type=Path, metavar="WHEELS", help="download what a bare machine lacks, and stop")
    parser.add_argument("--python", help="with --fetch: for this version on Linux x86-64; default: this interpreter")
    parser.add_argument("--wheels", type=Path, help="folder that --fetch filled; its packages come first")
    parser.add_argument("--dry-run", action="store_true", help="go through all of the code on the CPU, with fakes")
    parser.add_argument("--list", action="store_true", help="list the sections, and stop")
    parser.add_argument("--run-section", choices=SECTIONS, help=argparse.SUPPRESS)  # what `supervise` starts
    return parser


def without_a_run(a: argparse.Namespace) -> int | None:
    """The exit code where there is nothing to run or nothing can, and None elsewhere."""
    if a.list:
        for name, section in SECTIONS.items():
            print(f"{name:<26}{section.budget_s:>4.0f} s  {section.shows}")
        return 0
    if a.fetch is not None:
        names = wheels.fetch(a.fetch, a.python)
        print(f"{a.fetch}: {len(names)} wheels")
        return 0
    if a.dry_run:
        return None
    if (reason := machine.no_device()) is not None:
        print(f"not exercised: {reason}")
        for line in machine.missing():
            print(f"missing: {line}")
        return 2
    if os.environ.get("TRITON_INTERPRET"):
        print("not exercised: TRITON_INTERPRET is set, so no kernel would run on the device")
        return 2
    return None


def end_with_parent() -> None:
    """A section whose run is killed would hold the device. (Linux; elsewhere it stays.)"""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_ON_PARENTS_DEATH, signal.SIGKILL)


def main() -> int:
    parser = arguments()
    a = parser.parse_args()
    if a.out is None and not a.list and a.fetch is None:
        parser.error("--out DIR is required")
    try:
        if (code := without_a_run(a)) is not None:
            return code
        if a.wheels is not None:
            wheels.install(a.wheels, a.out / "site")
    except RuntimeError as error:
        print(error)
        return 2
    if (a.out / "site").is_dir():
        sys.path.insert(0, str((a.out / "site").resolve()))
    rig = rig_of(a.dry_run)
    if a.run_section:
        end_with_parent()
        run_section(a.run_section, a.out, rig)
        return 0
    tree = run(a.out, a.sections, rig, a.again)
    words = {True: "met", False: "NOT MET", None: "not measured"}
    for bar in tree["bars"]:
        print(f"{bar['bar']}: {'dry run' if rig.dry else words[bar['met']]} ({bar['figure']} {bar['worst']})")
    print(f"{a.out / 'gpu.md'}: {tree['wall_s']} s")
    asked = [tree["sections"][name] for name in a.sections]
    failed = any("error" in section or any("raised" in row for row in section["rows"]) for section in asked)
    return int(failed or (not rig.dry and any(bar["met"] is False for bar in tree["bars"])))


if __name__ == "__main__":
    sys.exit(main())
