"""Counts the functions of ddm_rt that a request passes: from `ddm-rt sample` to `Slots.admit`, and on to the PNG.

    python tests/request_hops.py [BUNDLE] [--list]

A function counts once, however often it is called; comprehensions count with the function that they stand in, and
class bodies, which run when a module is imported, don't count. "for the request" are those passed since the bundle, its
engine and its ledger are open, but for the probe of batch sizes, which a process makes once. "stack" is how deep the
call lies: the functions that are open when the place is reached.
"""

import argparse
import inspect
import sys
import tempfile
from pathlib import Path
from types import CodeType, FrameType
from typing import Any


class Walk:
    """What `sys.setprofile` is told of the functions in ddm_rt, up to two places."""

    def __init__(self) -> None:
        self.passed: dict[CodeType, None] = {}
        self.for_request: dict[CodeType, None] = {}
        self.opened = False
        self.places: dict[str, tuple[list[CodeType], ...]] = {}

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or not ours(code):
            return
        self.passed.setdefault(code)
        if code.co_qualname == "Pipeline.generate":
            self.opened = True
        if self.opened and not any(each.co_name == "probe" for each in stack(frame)):
            self.for_request.setdefault(code)
        place = {"admit": "Slots.admit", "save": "the PNG"}.get(code.co_name)
        if place and place not in self.places and "/sample/" in code.co_filename:
            self.places[place] = list(self.passed), list(self.for_request), stack(frame)


def ours(code: CodeType) -> bool:
    function = bool(code.co_flags & inspect.CO_OPTIMIZED)
    return function and "/ddm_rt/" in code.co_filename and not code.co_name.startswith("<")


def stack(frame: FrameType | None) -> list[CodeType]:
    found = []
    while frame is not None:
        if ours(frame.f_code):
            found.append(frame.f_code)
        frame = frame.f_back
    return found[::-1]


def walk(arguments: list[str]) -> dict[str, tuple[list[CodeType], ...]]:
    """For each place, the functions passed on the way from the command to it, those for the request, and those open
    there.
    """
    from ddm_rt.cli import main

    walked = Walk()
    argv, sys.argv = sys.argv, ["ddm-rt", *arguments]
    sys.setprofile(walked)
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
    finally:
        sys.setprofile(None)
        sys.argv = argv
    return walked.places


def told(code: CodeType) -> str:
    return f"{code.co_filename.rpartition('/ddm_rt/')[2]}:{code.co_firstlineno} {code.co_qualname}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", default="digits")
    parser.add_argument("--list", action="store_true", help="name the functions")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        places = walk(["sample", given.bundle, "-n", "2", "--steps", "2", "--out", str(Path(folder) / "out")])
    for place, (passed, for_request, open_there) in places.items():
        print(
            f"{place}: {len(passed)} functions passed, {len(for_request)} for the request, stack of {len(open_there)}"
        )
        for code in passed if given.list else ():
            mark = "*" if code in open_there else "+" if code in for_request else " "
            print(f"    {mark} {told(code)}")


if __name__ == "__main__":
    main()
