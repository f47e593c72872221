"""Commands that use what was made: sample, measure, look. Each imports its rooms on use: `sample` never loads torch."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddm_rt.cli import bulk, display
from ddm_rt.cli.app import (
    BackendName,
    DeviceName,
    Guidance,
    IndicatorGuidance,
    ModeName,
    NegativePrompt,
    Pixels,
    PrecisionName,
    Prompt,
    Sampler,
    Threads,
    app,
    errors,
    say,
)
from ddm_rt.config import Balance
from ddm_rt.errors import DdmError
from ddm_rt.sample.shard_formats import ShardFormat

if TYPE_CHECKING:
    from ddm_rt.sample.generation import Generation
    from ddm_rt.sample.pipeline import Pipeline


@app.command()
def sample(
    bundle: Annotated[str | None, typer.Argument(help="A bundle directory, or the shipped one: digits.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Directory to write; must not exist, or be empty."),
    ] = None,
    n: Annotated[int, typer.Option("-n", help="Number of images.")] = 16,
    seed: Annotated[int, typer.Option(help="Image i has the seed derive(seed, i).")] = 0,
    prompt: Prompt = None,
    negative_prompt: NegativePrompt = None,
    guidance_scale: Guidance = None,
    target: Annotated[
        str,
        typer.Option(help="uniform, shares of top codes: code:0=.3,code:1=.7, or, calibrated, of groups: a=.5,b=.5."),
    ] = "uniform",
    allow_stale: Annotated[
        bool, typer.Option("--allow-stale", help="Use a calibration that was made for other settings.")
    ] = False,
    balance: Annotated[Balance, typer.Option(help="on: codes by quota. off: the null code.")] = Balance.AUTO,
    leave_alone: Annotated[
        str | None,
        typer.Option(help="woman,man: prompts with one of these words get the null code. Or a .json: scope -> words."),
    ] = None,
    scope: Annotated[
        str | None,
        typer.Option(help="Go on with the codes where the last request of this scope stopped; vary --seed."),
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(help="File that keeps the counts of scopes; made where there is none."),
    ] = None,
    fsync: Annotated[bool, typer.Option("--fsync", help="The ledger also survives a power loss; slower.")] = False,
    shuffle: Annotated[
        bool, typer.Option("--shuffle", help="Permute the codes by the seed: balance then holds at the request's end.")
    ] = False,
    steps: Annotated[int | None, typer.Option(help="Sampling steps.")] = None,
    sampler: Sampler = None,
    indicator_guidance_scale: IndicatorGuidance = None,
    height: Pixels = None,
    width: Pixels = None,
    backend: BackendName = "auto",
    device: DeviceName = None,
    precision: PrecisionName = None,
    mode: ModeName = "throughput",
    threads: Threads = None,
    from_: Annotated[Path | None, typer.Option("--from", help="Replay this manifest.json.")] = None,
    index: Annotated[int | None, typer.Option(help="With --from: this image alone.")] = None,
    shards: Annotated[
        Path | None,
        typer.Option(
            help="In place of --out: a directory for many images, in shards. The same command again resumes it. "
            "Not with --scope, whose counts can't be resumed."
        ),
    ] = None,
    shard_size: Annotated[
        int | None,
        typer.Option(help="Images of a shard; by default 1000. A run that is killed loses the shards under way."),
    ] = None,
    shard_format: Annotated[
        ShardFormat | None,
        typer.Option(help="webdataset: tar files, the default. parquet: as the datasets library has images."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that make shards; by default as cores and memory allow, or one for each GPU."),
    ] = None,
) -> None:
    """Write balanced images, a contact sheet and manifest.json; or, with --shards, many images in shards.

    Examples:

        ddm-rt sample digits -n 64 --seed 0 --out out/

        ddm-rt sample digits -n 64 --target code:0=.3,code:1=.7 --out out30/

        ddm-rt sample digits -n 10 --scope campaign --ledger campaign.ledger --seed 7 --out out7/

        ddm-rt sample digits --from out/manifest.json --index 5 --out again/

        ddm-rt sample digits -n 100000 --shards shards/

    From a Stable Diffusion bundle:

        ddm-rt sample bundles/sd --prompt "a photo of a doctor" --negative-prompt "blurry" -n 16 --out doctors/

        ddm-rt sample bundles/sd --prompt "a nurse" --guidance-scale 7.5 --indicator-guidance-scale 2 --out nurses/

        ddm-rt sample bundles/sd --prompt "a judge" --prompt "a female judge" --leave-alone woman,female --out judges/
    """
    from ddm_rt.files import check_free
    from ddm_rt.sample.balance.leave_alone import parse_words
    from ddm_rt.sample.balance.ledger import Ledger
    from ddm_rt.sample.pipeline import Pipeline

    if bundle is None:
        raise DdmError("bundle: name a bundle directory, or the shipped one: digits")
    if index is not None and from_ is None:
        raise DdmError("--index: names an image of a manifest; give that with --from")
    if from_ is not None and (scope is not None or ledger is not None):
        raise DdmError("--from: a replay draws nothing; leave out --scope and --ledger")
    texts = {"--prompt": prompt, "--negative-prompt": negative_prompt, "--leave-alone": leave_alone}
    for option in [name for name, value in texts.items() if from_ is not None and value is not None]:
        raise DdmError(f"--from: a replay has the manifest's own prompts; leave out {option}")
    if prompt is not None and len(prompt) > n:
        raise DdmError(f"--prompt: {len(prompt)} texts for {n} image{'s' * (n != 1)}; expected -n to be no fewer")
    if ledger is not None and scope is None:
        raise DdmError("--ledger: keeps the counts of scopes; name one with --scope")
    if fsync and ledger is None:
        raise DdmError("--fsync: is about the file of --ledger, which is not given")
    bulk.check_options(
        shards,
        alone={"--out": out, "--from": from_, "--scope": scope, "--ledger": ledger, "--fsync": fsync},
        with_shards={"--shard-size": shard_size, "--shard-format": shard_format, "--workers": workers},
    )
    request: dict[str, Any] = {
        "n": n,
        "seed": seed,
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "guidance_scale": guidance_scale,
        "target": target,
        "balance": balance,
        "leave_alone": None if leave_alone is None else parse_words(leave_alone),
        "scope": scope,
        "shuffle": shuffle,
        "allow_stale": allow_stale,
        "num_steps": steps,
        "sampler": sampler,
        "indicator_guidance_scale": indicator_guidance_scale,
        "height": height,
        "width": width,
    }
    if shards is not None:
        for option, value in (("--device", device), ("--precision", precision), ("--mode", mode)):
            if value not in (None, "throughput"):
                raise DdmError(f"{option}: not with --shards; each worker takes what Ray gives it and the bundle says")
        options = {"shard_size": shard_size, "shard_format": shard_format, "workers": workers}
        bulk.write_shards(bundle, shards, options | {"backend": backend, "threads": threads}, request)
        return
    if out is None:
        raise DdmError("--out: name a directory for the images, or one for shards with --shards")
    check_free(out)
    with Ledger(ledger, fsync=fsync) as counts, display.progress(errors) as bars:
        loading: dict[str, Any] = {"backend": backend, "threads": threads, "device": device}
        loading |= {"precision": precision, "mode": mode}
        pipeline = Pipeline.load(bundle, ledger=counts, **loading)
        on_step = display.step_callback(bars, "sampling")
        if from_ is not None:
            generation = pipeline.replay(from_, index=index, on_step=on_step)
            generation.save(out)
        else:
            generation = _generate_into(out, pipeline, on_step=on_step, **request)
    if scope is not None and ledger is None:
        say("scope: its counts end with this command; --ledger keeps them")
    say(f"{len(generation.images)} images: {out}\nlook at: {out / 'contact_sheet.png'}")


def _generate_into(out: Path, pipeline: "Pipeline", **request: Any) -> "Generation":
    """The images, written; where the ledger then can't record them, they are taken away again."""
    written = False

    def deliver(generation: "Generation") -> None:
        nonlocal written
        generation.save(out)
        written = True

    try:
        return pipeline.generate(deliver=deliver, **request)
    except BaseException:
        if written:
            shutil.rmtree(out)
        raise
