"""Kernels ahead of time: compiles the shipped configurations for named GPU architectures into a pack, without a GPU.

    python -m ddm_rt.kernels.aot --arch sm_80,sm_90 --out kernel-pack

Importing this needs neither torch nor triton; compiling needs both.
"""

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from operator import call
from pathlib import Path

from ddm_rt.kernels.compiled import (
    AotError,
    Compiled,
    check_compiler,
    check_target,
    compile_guided_step,
    compile_indicator_attention,
    compile_projected_guidance,
)
from ddm_rt.kernels.guided_step.table import variants
from ddm_rt.kernels.indicator_attention.table import ARCHITECTURES, DTYPES, HEAD_DIMS
from ddm_rt.kernels.pack import MANIFEST, SCHEMA, STEP_OPS, parse_manifest
from ddm_rt.kernels.projected_guidance.table import BRANCHES

OPS = ("indicator_attention", *STEP_OPS)

Progress = Callable[[int, int, str], None]  # kernels done, kernels in all, the last one's name
Job = Callable[[], Compiled]


def write_pack(
    out: Path | str,
    architectures: Sequence[str],
    ops: Sequence[str] = OPS,
    progress: Progress | None = None,
    *,
    jobs: int = 1,
    ptx_version: int | None = None,
    head_dims: Sequence[int] = HEAD_DIMS,
    dtypes: Sequence[str] = DTYPES,
) -> Path:
    """Compile the shipped kernels of `ops` for `architectures` into the new folder `out`, and return it.

    The folder appears whole or not at all; equal input gives equal bytes with one version of triton. `jobs` processes
    share the work. Raises ValueError for a choice that isn't shipped and for an `out` that is neither new nor an empty
    folder; AotError where nothing can be compiled here.
    """
    out = Path(out)
    work = _work(architectures, ops, ptx_version, head_dims, dtypes)
    check_compiler()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out} exists; expected a new or empty folder for the pack")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        entries = []
        for compiled in _compile_all(work, jobs):
            kernel = compiled.kernel
            _write(temporary / kernel.ptx.file, compiled.ptx.encode())
            _write(temporary / kernel.cubin.file, compiled.cubin)
            entries.append(kernel.model_dump(mode="json"))
            if progress is not None:
                progress(len(entries), len(work), kernel.name)
        manifest = {"schema": SCHEMA, "triton": importlib.metadata.version("triton"), "kernels": entries}
        content = json.dumps(manifest, indent=1, allow_nan=False).encode() + b"\n"
        parse_manifest(content)
        _write(temporary / MANIFEST, content)
        temporary.chmod(0o755)
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        # A full disk shows in a write to an open file, without a name.
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(out)
        raise
    return out


def _work(
    architectures: Sequence[str],
    ops: Sequence[str],
    ptx_version: int | None,
    head_dims: Sequence[int],
    dtypes: Sequence[str],
) -> list[Job]:
    """Every compilation of a pack, in the manifest's order, with the choices checked."""
    for name, found, choices in (
        ("op", ops, OPS),
        ("architecture", architectures, ARCHITECTURES),
        ("head_dim", head_dims, HEAD_DIMS),
        ("dtype", dtypes, DTYPES),
    ):
        unknown = [str(value) for value in found if value not in choices]
        if unknown or not found:
            listed = ", ".join(map(str, choices))
            raise ValueError(f"{name} {unknown[0] if unknown else 'is empty'}: not shipped; choices: {listed}")
    work: list[Job] = []
    for architecture in dict.fromkeys(architectures):
        check_target(architecture, ptx_version)
        if "indicator_attention" in ops:
            work += [
                partial(compile_indicator_attention, head_dim, dtype, architecture, None, ptx_version)
                for head_dim in head_dims
                for dtype in dtypes
            ]
        if "guided_step" in ops:
            work += [partial(compile_guided_step, *variant, architecture, ptx_version) for variant in variants()]
        if "projected_guidance" in ops:
            work += [partial(compile_projected_guidance, count, architecture, ptx_version) for count in BRANCHES]
    return work


def _compile_all(work: Sequence[Job], jobs: int) -> Iterator[Compiled]:
    if jobs == 1:
        yield from map(call, work)
        return
    # A fresh process each: forking one in which torch has started threads can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(work)), mp_context=context) as pool:
        try:
            yield from pool.map(call, work)
        except BrokenProcessPool:
            raise AotError("a compiling process died; try --jobs 1, or more memory") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _show(done: int, total: int, name: str) -> None:
    """One line that rewrites itself on a terminal, and every tenth kernel elsewhere."""
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r\033[K{done}/{total} {name}", end=end, file=sys.stderr, flush=True)
    elif done % 10 == 0 or done == total:
        print(f"{done}/{total} {name}", file=sys.stderr, flush=True)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 upwards")
    return int(text)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 0, or 2 for bad input after one line on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m ddm_rt.kernels.aot",
        description="Compile the shipped kernels for named GPU architectures into a pack of cubins, PTX and a "
        "manifest. Needs triton and torch, and no GPU.",
        epilog="example: python -m ddm_rt.kernels.aot --arch sm_80,sm_90 --out kernel-pack --jobs 2",
    )
    parser.add_argument("--arch", required=True, type=_names, help=f"comma-separated: {','.join(ARCHITECTURES)}")
    parser.add_argument("--out", required=True, type=Path, help="folder to make; it must be new or empty")
    parser.add_argument("--ops", type=_names, default=OPS, help=f"comma-separated; all by default: {','.join(OPS)}")
    parser.add_argument("--jobs", type=_positive, default=1, help="compiling processes (default 1)")
    parser.add_argument(
        "--ptx-version", type=_positive, help="write this PTX version, 90 for 9.0, so that an older driver takes it"
    )
    options = parser.parse_args(arguments)
    try:
        out = write_pack(
            options.out, options.arch, options.ops, _show, jobs=options.jobs, ptx_version=options.ptx_version
        )
    except (ValueError, AotError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
