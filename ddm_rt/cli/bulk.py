"""`ddm-rt sample --shards`: many images, with what the terminal shows meanwhile."""

import time
from collections.abc import Callable
from typing import Any

from rich.progress import Progress, TaskID

from ddm_rt.cli import display, options
from ddm_rt.cli.app import errors, say
from ddm_rt.sample.request import Request

_LINE_EVERY_S = 60.0  # where no terminal shows a bar


def write_shards(bundle: str, directory: str, how: dict[str, Any], request: Request) -> None:
    """Write the images of a request into shards; `how` has the options of `generate_shards`, None for its defaults."""
    from ddm_rt.serve.bulk import generate_shards

    with display.progress(errors) as bars:
        made = generate_shards(bundle, directory, on_images=_teller(bars), request=request, **options.given(how))
    manifest = made.manifest
    there = f" ({made.found} were there)" if made.found else ""
    say(f"{manifest.request.n} images{there} in {len(manifest.shards)} shards: {directory}")


def _teller(bars: Progress) -> Callable[[int, int, int], None]:
    """A bar, or a line a minute, with images, their rate and the time left."""
    task: TaskID | None = None
    began: tuple[float, int] | None = None  # when images began to come, which workers take a while to, and how many
    told = time.monotonic()

    def tell(done: int, found: int, total: int) -> None:
        nonlocal task, began, told
        now, figures = time.monotonic(), "starting workers"
        if task is None:
            task = bars.add_task("images", total=total, figures=figures)
            if found:
                errors.print(f"{found} of {total} images are there already", soft_wrap=True, highlight=False)
        elif began is None:
            began = now, done
        elif done > began[1]:
            rate = (done - began[1]) / max(now - began[0], 1e-9)
            figures = f"{rate:.1f} images/s, {_span((total - done) / rate)} left"
        bars.update(task, completed=done, figures=figures)
        if bars.disable and now - told >= _LINE_EVERY_S:
            told = now
            errors.print(f"images {done} of {total}, {figures}", soft_wrap=True, highlight=False)

    return tell


def _span(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
