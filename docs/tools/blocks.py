"""Run the code blocks of README and the documentation, and refresh the output that the pages show.

    python docs/tools/blocks.py                                # every page, each in an empty folder of its own
    python docs/tools/blocks.py docs/pages/guides/sample.md    # one page
    python docs/tools/blocks.py --refresh README.md            # write what the commands print now into the page
    python docs/tools/blocks.py --list                         # blocks that are not run, with the reason

A page runs from top to bottom. Blocks of `bash` and `python` run, and no others. A comment on the line before a block
says how:

    <!-- output -->           the text block shows what the block above it prints; `...` stands for lines left out
    <!-- output, varies -->   the same, but times or machines differ, so that a run does not compare it
    <!-- continues -->        this Python sees the names of the page's earlier Python
    <!-- run: COMMAND -->     runs in the block's place: the page's own command takes too long for a test
    <!-- not run: REASON -->  it needs what no test has
    <!-- background: URL -->  a server: it runs until the page ends, or until the next server with this address

`<!-- before: COMMAND -->` stands anywhere: it runs at that place, and no reader sees it. `<!-- slow: REASON -->` marks
a page that takes over a minute.
"""

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
PORT = 8000  # what the pages say; each run takes a free one
START_S = 120.0  # until a server answers
_COMMENT = re.compile(r"<!--\s*(.*?)\s*-->", re.DOTALL)


class BlockFailed(Exception):
    """A block ended with an error, or printed something else than the page shows."""


@dataclass(frozen=True)
class Block:
    page: Path
    first: int  # its first and last line in the page, from 0, the fences among them
    last: int
    kind: str  # the fence's language, or "before"
    code: str
    note: str = ""  # the comment on the line before the fence

    @property
    def where(self) -> str:
        page = self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page
        return f"{page}:{self.first + 1}"

    def told(self, word: str) -> str | None:
        """What the comment says after `word:`."""
        head, colon, rest = self.note.partition(":")
        return rest.strip() if colon and head == word else None

    @property
    def runs(self) -> bool:
        return self.kind in ("bash", "python", "before") and self.told("not run") is None

    @property
    def shows_output(self) -> bool:
        return self.kind == "text" and self.note.startswith("output")


def pages() -> list[Path]:
    """README and the written pages."""
    return [ROOT / "README.md", *sorted((ROOT / "docs/pages").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """In the page's order, hidden commands among them."""
    found: list[Block] = []
    note, note_end = "", -1
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.map is None:
            continue
        first, last = token.map
        if token.type == "html_block":
            for text in _COMMENT.findall(token.content):
                if text.startswith("before:"):
                    code = text.removeprefix("before:").strip()
                    found.append(Block(page, first, last - 1, "before", code))
                else:
                    note, note_end = text, last
        elif token.type == "fence":
            own = note if note_end == first else ""
            found.append(Block(page, first, last - 1, token.info.strip(), token.content, own))
    return found


def slow_reason(page: Path) -> str | None:
    """Why the page says that its blocks take long; None where it doesn't."""
    found = re.search(r"<!--\s*slow:\s*(.*?)\s*-->", page.read_text(encoding="utf-8"), re.DOTALL)
    return found[1] if found else None


def not_run() -> list[tuple[Block, str]]:
    """Blocks of all pages that need what no test has, with the reason."""
    return [(block, why) for page in pages() for block in blocks(page) if (why := block.told("not run")) is not None]


@dataclass
class _Session:
    """One page's run: its folder, its port, its servers and what its Python has said so far."""

    folder: Path
    full: bool
    port: int = field(default_factory=lambda: _free_port())
    python: list[str] = field(default_factory=list)
    servers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def command(self, block: Block) -> list[str]:
        instead = None if self.full else block.told("run")
        if block.kind == "python" and instead is None:
            return [sys.executable, "-c", self._script(block)]
        text = block.code if instead is None else instead
        text = re.sub(r"\bddm-rt serve\b", f"ddm-rt serve --port {self.port}", text)
        return ["bash", "-euo", "pipefail", "-c", self._local(text)]

    def _local(self, text: str) -> str:
        return text.replace(f"127.0.0.1:{PORT}", f"127.0.0.1:{self.port}")

    def _script(self, block: Block) -> str:
        code, before = self._local(block.code), "\n".join(self.python)
        self.python.append(code)
        if block.note != "continues":
            return code
        quiet = f"with contextlib.redirect_stdout(io.StringIO()):\n    exec({before!r})"
        return f"import contextlib, io\n{quiet}\n{code}"

    def environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        own = {"PATH": path, "DOCS_TOOLS": str(ROOT / "docs/tools"), "COLUMNS": "80", "NO_COLOR": "1"}
        return os.environ | own

    def run(self, block: Block) -> str:
        """What it prints. Raises BlockFailed with its last lines."""
        command, url = self.command(block), block.told("background")
        if url is not None:
            self._serve(block, command, self._local(url))
            return ""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment(),
            stdout=-1,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BlockFailed(f"{block.where}: exit code {done.returncode}\n{done.stdout[-3000:]}")
        return done.stdout.replace(f":{self.port}", f":{PORT}")

    def _serve(self, block: Block, command: list[str], url: str) -> None:
        self._stop(url)
        log = self.folder / f"server-{block.first}.log"
        with log.open("wb") as file:
            server = subprocess.Popen(
                command, cwd=self.folder, env=self.environment(), stdout=file, stderr=file, start_new_session=True
            )
        self.servers[url] = server
        end = time.monotonic() + START_S
        while not _answers(url):
            if server.poll() is not None or time.monotonic() > end:
                raise BlockFailed(f"{block.where}: {url} doesn't answer\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.1)

    def _stop(self, url: str) -> None:
        server = self.servers.pop(url, None)
        if server is None:
            return
        with suppress(ProcessLookupError):  # it may have ended by itself
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(START_S)

    def close(self) -> None:
        for url in list(self.servers):
            self._stop(url)


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@contextmanager
def _session(folder: Path, full: bool) -> Iterator[_Session]:
    session = _Session(folder, full)
    try:
        yield session
    finally:
        session.close()


def run_page(page: Path, folder: Path, *, full: bool = False, compare: bool = True) -> list[tuple[Block, str]]:
    """Run a page's blocks in an empty folder: each block that shows output, with what was printed now.

    `full` runs the page's own commands where a shorter one stands for them. Raises BlockFailed where a block fails or,
    with `compare`, prints something else than the page shows.
    """
    found: list[tuple[Block, str]] = []
    printed: str | None = None  # by the block above; None where it did not run as it stands
    with _session(folder, full) as session:
        for block in blocks(page):
            if block.runs:
                output = session.run(block)
                if block.kind != "before":
                    printed = output if full or block.told("run") is None else None
            elif block.shows_output and printed is not None:
                found.append((block, printed))
                if compare and "varies" not in block.note and not shows(block.code, printed):
                    raise BlockFailed(f"{block.where}: the page shows\n{block.code}\nand the block prints\n{printed}")
            elif block.kind in ("bash", "python"):
                printed = None
    return found


def shows(page_text: str, printed: str) -> bool:
    """Whether the page's text is what was printed; a line `...` stands for any lines, spaces at line ends for none."""
    lines = [line.rstrip() for line in page_text.strip().splitlines()]
    pattern = "\n".join(r".*" if line == "..." else re.escape(line) for line in lines)
    clean = "\n".join(line.rstrip() for line in printed.strip().splitlines())
    return re.fullmatch(pattern, clean, re.DOTALL) is not None


def refresh(page: Path, outputs: list[tuple[Block, str]]) -> int:
    """Write outputs into the page, where it shows others; how many were written."""
    lines = page.read_text(encoding="utf-8").splitlines()
    changed = [(block, printed) for block, printed in outputs if not shows(block.code, printed)]
    for block, printed in reversed(changed):
        lines[block.first + 1 : block.last] = [line.rstrip() for line in printed.strip("\n").splitlines()]
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(changed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path, help="pages to run; by default README and all of docs/pages")
    parser.add_argument("--refresh", action="store_true", help="write what is printed now into the pages")
    parser.add_argument("--full", action="store_true", help="run the pages' own commands, which may train for minutes")
    parser.add_argument("--list", action="store_true", help="list the blocks that are not run, and run nothing")
    asked = parser.parse_args()
    if asked.list:
        for block, why in not_run():
            print(f"{block.where}: {why}")
        return 0
    failed = 0
    for page in [path.resolve() for path in asked.pages] or pages():
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="ddm-rt-docs-") as folder:
            try:
                outputs = run_page(page, Path(folder), full=asked.full, compare=not asked.refresh)
            except BlockFailed as error:
                failed += 1
                print(error, file=sys.stderr)
                continue
        told = f", {refresh(page, outputs)} outputs written" if asked.refresh else ""
        print(f"{page}: ran in {time.monotonic() - started:.0f} s{told}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
