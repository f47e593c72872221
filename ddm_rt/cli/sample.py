"""`ddm-rt sample`: balanced images from a bundle. It never loads torch for backends that need none."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from ddm_rt.cli import bulk, display, options
from ddm_rt.cli.app import errors, makes_images, say
from ddm_rt.errors import DdmError
from ddm_rt.progress import OnStep
from ddm_rt.sample.request import Request, told_fields
from ddm_rt.sample.shard_formats import ShardFormat

if TYPE_CHECKING:
    from ddm_rt.sample.generation import Generation
    from ddm_rt.sample.pipeline import Pipeline


_N = 16


@makes_images(Options="prompt num_steps", Replay="from_ index", Many_images="shards shard_size shard_format workers")
@options.asks(n=_N)
def sample(
    bundle: Annotated[str | None, Argument(help="A bundle directory, or digits, which comes with ddm-rt.")] = None,
    *,
    out: Annotated[Path | None, Option(help="Directory to write. It must not exist, or be empty.")] = None,
    request: Request,
    ledger: options.Ledger = None,
    fsync: options.Fsync = False,
    backend: options.BackendName = "auto",
    device: options.DeviceName = None,
    precision: options.PrecisionName = None,
    mode: options.ModeName = "throughput",
    threads: options.Threads = None,
    from_: Annotated[Path | None, Option("--from", help="Make the images of this manifest.json again.")] = None,
    index: Annotated[int | None, Option(help="Make only this image of the manifest, by its number.")] = None,
    shards: Annotated[
        str | None,
        Option(
            metavar="PATH",
            help="Directory or s3://BUCKET/PREFIX for many images. The same command resumes it. Not with --out.",
        ),
    ] = None,
    shard_size: Annotated[
        int | None, Option(help="Images in a shard, by default 1000. A run that is killed loses unfinished shards.")
    ] = None,
    shard_format: Annotated[
        ShardFormat | None, Option(help="webdataset writes tar files; parquet what the datasets library reads.")
    ] = None,
    workers: Annotated[int | None, Option(help="Processes that make shards. By default as many as fit.")] = None,
) -> None:
    """Make balanced images. It also writes a contact sheet and manifest.json; with --shards it writes shards.

    Examples:

        ddm-rt sample digits -n 64 --seed 0 --out out/
        ddm-rt sample digits -n 64 --target code:0=.3,code:1=.7 --out out30/
        ddm-rt sample digits -n 10 --scope campaign --ledger campaign.ledger --seed 7 --out out7/
        ddm-rt sample digits -n 64 --guidance-interval .2,.8 --apg 15 --out projected/
        ddm-rt sample digits --from out/manifest.json --index 5 --out again/
        ddm-rt sample digits -n 100000 --shards shards/
        ddm-rt sample digits -n 100000 --shards s3://bucket/prefix

    From a bundle whose codes are cells of the factors gender and hair:

        ddm-rt sample bundles/faces -n 64 --target gender:female=.5,gender:male=.5 --out even/

    From a Stable Diffusion bundle:

        ddm-rt sample bundles/sd --prompt "a photo of a doctor" --negative-prompt "blurry" -n 16 --out doctors/
        ddm-rt sample bundles/sd --prompt "a nurse" --guidance-scale 7.5 --indicator-guidance-scale 2 --out nurses/
        ddm-rt sample bundles/sd --prompt "a judge" --prompt "a female judge" --leave-alone woman,female --out judges/
    """
    from ddm_rt.files import check_free
    from ddm_rt.sample.balance.ledger import Ledger
    from ddm_rt.sample.pipeline import Pipeline

    if bundle is None:
        raise DdmError("bundle: name a bundle directory, or the shipped one: digits")
    if index is not None and from_ is None:
        raise DdmError("--index: names an image of a manifest; give that with --from")
    if from_ is not None and (request.scope is not None or ledger is not None):
        raise DdmError("--from: a replay draws nothing; leave out --scope and --ledger")
    for name, field in told_fields().items() if from_ is not None and shards is None else ():
        if getattr(request, name) != (_N if name == "n" else field.default):
            what = "prompts" if name in ("prompt", "negative_prompt", "leave_alone") else "settings"
            option = options.flag(field.told.name or name, field.default)
            raise DdmError(f"--from: a replay has the manifest's own {what}; leave out {option}")
    n, texts = request.n, request.prompt or ()
    if texts and len(texts) > n:
        raise DdmError(f"--prompt: {len(texts)} texts for {n} image{'s' * (n != 1)}; expected -n to be no fewer")
    if request.scope is None:
        options.refuse({"--ledger": ledger}, "keeps the counts of scopes; name one with --scope")
    if ledger is None:
        options.refuse({"--fsync": fsync}, "is about the file of --ledger, which is not given")
    of_shards = {"--shard-size": shard_size, "--shard-format": shard_format, "--workers": workers}
    if shards is None:
        options.refuse(of_shards, "this option needs --shards, the directory of the shards")
    else:
        options.refuse({"--out": out, "--from": from_}, "this option can't go with --shards")
        options.refuse(
            {"--scope": request.scope}, "this option can't go with --shards, which can't resume a scope's counts"
        )
        own = {"--device": device, "--precision": precision, "--mode": mode != "throughput"}
        options.refuse(
            own, "this option can't go with --shards; each worker takes what Ray gives it and the bundle says"
        )
        how = {"shard_size": shard_size, "shard_format": shard_format, "workers": workers}
        bulk.write_shards(bundle, shards, {**how, "backend": backend, "threads": threads}, request)
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
            generation = _generate_into(out, pipeline, request, on_step)
    if request.scope is not None and ledger is None:
        say("scope: its counts end with this command; --ledger keeps them")
    say(f"{len(generation.images)} images: {out}\nlook at: {out / 'contact_sheet.png'}")


def _generate_into(out: Path, pipeline: "Pipeline", request: Request, on_step: OnStep) -> "Generation":
    """The images, written; where the ledger then can't record them, they are taken away again."""
    written = False

    def deliver(generation: "Generation") -> None:
        nonlocal written
        generation.save(out)
        written = True

    try:
        return pipeline.generate(request, on_step=on_step, deliver=deliver)
    except BaseException:
        if written:
            shutil.rmtree(out)
        raise
