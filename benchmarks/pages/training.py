"""The page of training: a step of ours beside that of diffusers' own script."""

from pathlib import Path

from bench_parts import rows
from measured_steps import bar_lines
from store import table

MOST = 1.0  # of the script's step
# As `registry.py` names them, which imports more than a page needs.
SCRIPT, CACHED = "diffusers' LoRA script", "diffusers' LoRA script, latents and texts ready"
OURS, CODES = "ours, no indicator", "ours, codes"

_WHAT = """# Training

One optimizer step of LoRA: the same layers (`to_q`, `to_k`, `to_v`, `to_out.0`) at rank 4 on the same checkpoint with
random weights, one image a step, fp32. Beside ours stands the body of the loop of diffusers' own script,
`examples/text_to_image/train_text_to_image_lora.py` at commit 58eb52c, made again in `benchmarks/peers/training.py`.
Reading and tokenizing images, the progress bar and checkpoints are left out on both sides.

What differs in a step:

- The script encodes its image by the VAE and its prompt by the text encoder in every step. We do so once, before the
  first step. The second line is the script without these two, which is no option that it has.
- We keep an average of the weights, and clip gradients. In the script the clipping has no effect: the list of its
  parameters is used up when it gets there.
- With codes we train more: attention to the code in 16 layers, and the indicator head with its loss.

"""


def page(results: Path) -> str:
    """What differs, the bar, steps per second, and the rows."""
    found = {row.configuration: row for row in rows.read(results / "train.jsonl")}
    ratios = {name: 1 / row.speedup for name, row in found.items()}
    bars = [
        {
            "bar": f"{name}, over the script's step, median: at most {MOST}",
            "value": round(value, 3),
            "met": value <= MOST,
        }
        for name, value in ratios.items()
        if name in (OURS, CODES)
    ]
    paired = [own / other for own, other in zip(found[OURS].samples_ms, found[CACHED].samples_ms, strict=True)]
    low, middle, high = rows.quartiles(paired)
    lines = [
        (name, f"{1000 / found[name].latency_p50_ms:.3g}", _ratio(found[name]))
        for name in (SCRIPT, CACHED, OURS, CODES)
        if name in found
    ]
    machine = found[SCRIPT].machine
    return (
        _WHAT
        + "\n".join(bar_lines(bars))
        + "\n\n"
        + table(("configuration", "steps/s", "of the script's step [quartiles]"), lines)
        + f"\nThe same work on both sides, ours over the script with latents and texts ready: {middle:.2f} "
        f"[{low:.2f}, {high:.2f}], paired by round. Codes were timed in later rounds, beside the script alone: their "
        "ratio compares with the others, their steps/s don't.\n\n"
        f"The load average was {machine.load_average:.1f} on {machine.cpus} CPUs. Above {machine.cpus}, others shared "
        "them: times are then long and spread, and what counts is the ratio within a round.\n\n"
        + rows.markdown(list(found.values()))
    )


def _ratio(row: rows.Row) -> str:
    slow, fast = row.speedup_range
    return f"{1 / row.speedup:.2f} [{1 / fast:.2f}, {1 / slow:.2f}]"
