"""What the indicator's confidence is worth, and what labels the codes hold, on one trained run of the digits.

    python benchmarks/indicator.py --work DIR     # trains the preset digits-demo in DIR where it isn't there

C reads the UNet's prediction of a noised image (timesteps uniform, as in training) and names the image's code: with the
code given to the UNet, as C was trained, and with the null code, where the image alone has to tell. On the training
images, whose codes were discovered, and on generated ones, whose codes were asked for; each is noised twice. The UNet
has its averaged weights, C those of the last checkpoint (it has no average). Labels are read here alone: a
linear probe says how much of the digit is in the features that codes were found in, in the codes, and in the top codes.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import render
import torch
from bench_parts.probes import calibration_error, linear_probe
from measured_steps import commit
from numpy.typing import NDArray
from safetensors.torch import load_file
from store import RESULTS, save

from ddm_rt import data
from ddm_rt.bundle import Bundle
from ddm_rt.config import NULL_CODE, RunConfig, parse_json
from ddm_rt.model.assemble import load_weights
from ddm_rt.model.indicator import IndicatorHead
from ddm_rt.model.unet import DDM
from ddm_rt.presets import resolve
from ddm_rt.runtime import Codes, CodeTable
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.schedule import Schedule
from ddm_rt.train.codes.contrastive import contrastive_features
from ddm_rt.train.loss import training_target
from ddm_rt.train.run import train

DRAWS = 2  # noised versions of each image


def confidences(
    run: Path, config: RunConfig, codes: CodeTable, images: NDArray[np.float32], given: NDArray[np.int64]
) -> NDArray[np.float32]:
    """C's probabilities [N,K] for images [N,C,H,W] in [-1,1] at random timesteps, the UNet told the codes `given`."""
    latent_shape = config.model.latent_shape(config.data)
    model = DDM(config.model, latent_shape, codes.shared_of).eval().requires_grad_(False)
    load_weights(model, run / "weights.safetensors")
    newest = load_file(max((run / "checkpoints").glob("step_*.safetensors")))
    head = IndicatorHead(latent_shape, config.model.head_hidden, codes.num_codes).eval()
    head.load_state_dict({k.removeprefix("head."): v for k, v in newest.items() if k.startswith("head.")})
    generator = torch.Generator().manual_seed(0)
    alphas = torch.from_numpy(Schedule.from_config(config.schedule).alphas_cumprod.astype(np.float32))
    found = []
    with torch.inference_mode():
        for part, code in zip(torch.from_numpy(images).split(128), torch.from_numpy(given).split(128), strict=True):
            x0 = model.encode(part)
            t = torch.randint(len(alphas), (len(x0),), generator=generator)
            noise = torch.randn(x0.shape, generator=generator)
            x_t, _ = training_target(config.schedule.prediction_type, x0, noise, alphas[t])
            cond = model.condition(torch.zeros(len(x0), 1, model.context_dim), code, torch.ones(len(x0)))
            found.append(torch.softmax(head(model(x_t, t.float(), cond)), dim=1))
    return torch.cat(found).numpy()


def indicator(run: Path, bundle: Bundle, n: int) -> list[dict[str, Any]]:
    config = bundle.training.run
    training = data.load(config.data)
    assigned = np.array(_assignment(run), np.int64)
    generation = Pipeline.load(bundle, "onnxruntime", 1).generate(n=n, seed=0)
    grey = generation.images[..., : config.data.channels]
    sets = {
        "training images": (training.latent_input(), assigned),
        "generated images": (data.to_model(grey), np.array(generation.codes, np.int64)),
    }
    rows = []
    for name, (images, codes) in sets.items():
        images, truth = np.repeat(images, DRAWS, axis=0), np.repeat(codes, DRAWS)
        for told in (True, False):
            given = truth if told else np.full(len(truth), NULL_CODE)
            probabilities = confidences(run, config, bundle.codes, images, given)
            top_of = np.array(bundle.codes.top_of)
            right_top = top_of[probabilities.argmax(axis=1)] == top_of[truth]
            figures = calibration_error(probabilities, truth).model_dump(mode="json")
            rows.append({"images": name, "told": told, "top_accuracy": float(right_top.mean()), **figures})
    return rows


def _assignment(run: Path) -> list[int]:
    codes: list[int] = json.loads((run / "assignment.json").read_bytes())["code"]
    return codes


def probes(run: Path, bundle: Bundle) -> list[dict[str, Any]]:
    config = bundle.training.run
    training = data.load(config.data)
    assigned = np.array(_assignment(run))
    top = np.array(bundle.codes.top_of)[assigned]
    sets = {
        "features of code discovery": contrastive_features(training.latent_input(), config.features, config.train.seed),
        "pixels": training.latent_input().reshape(len(training), -1),
        f"{bundle.codes.num_codes} codes": np.eye(bundle.codes.num_codes)[assigned],
        f"{bundle.codes.num_top_codes} top codes": np.eye(bundle.codes.num_top_codes)[top],
    }
    labels = list(training.labels or ())
    return [{"of": name, **linear_probe(x, labels).model_dump(mode="json")} for name, x in sets.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="keeps the run; benchmarks/drift.py uses the same")
    parser.add_argument("-n", type=int, default=500, help="generated images")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of codes.jsonl and codes.md")
    arguments = parser.parse_args()
    run, place = arguments.work / "run", arguments.work / "trained"
    if not (run / "weights.safetensors").exists():
        train(resolve("digits-demo"), run)
    if not place.exists():
        from ddm_rt.export.run import export_run

        export_run(run, place)
    bundle = Bundle.load(place)
    codes = parse_json(Codes, (run / "codes.json").read_bytes(), run / "codes.json")
    assert codes.leaves == bundle.codes.leaves, "run and bundle in DIR belong together"
    torch.set_num_threads(1)
    result = {
        "command": "python benchmarks/indicator.py --work DIR",
        "commit": commit(),
        "bundle_id": bundle.bundle_id,
        "source": bundle.training.run.data.source,
        "indicator": indicator(run, bundle, arguments.n),
        "probes": probes(run, bundle),
    }
    save("indicator", result, arguments.results)
    print(render.render("codes", arguments.results))


if __name__ == "__main__":
    main()
