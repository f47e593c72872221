"""Code discovery alone, without a diffusion model: the share that uniform top codes would give, rule by rule.

    python benchmarks/code_rules.py MNIST.npz --pairs 14 12 16 19

MNIST.npz as in `make_digits.py`. For each pair of digits, at 4:1 and at 1:4 (1,500 and 375 images), it prints the mean
over the top codes of the first digit's share (.5 is balance), with and without `codes.min_share`, and appends to a JSON
file.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from ddm_rt.config import CodesConfig, FeatureConfig
from ddm_rt.data import to_model
from ddm_rt.files import write_json
from ddm_rt.train.codes.contrastive import contrastive_features
from ddm_rt.train.codes.discover import discover

RULES = {"first rule (no min_share)": 0.0, "min_share .05": 0.05}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mnist", type=Path)
    parser.add_argument("--pairs", nargs="+", default=["14", "12", "16", "19"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "code_rules.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with np.load(arguments.mnist, allow_pickle=False) as file:
        x, y = file["x_train"], file["y_train"]
    done = json.loads(arguments.out.read_bytes()) if arguments.out.is_file() else {}
    for pair in arguments.pairs:
        for ratio, counts in (("4:1", (1500, 375)), ("1:4", (375, 1500))):
            name = f"{pair[0]}v{pair[1]} {ratio}"
            if name in done:
                continue
            # From the end of the training images: those that ship are from its beginning.
            index = np.concatenate([np.flatnonzero(y == int(d))[-n:] for d, n in zip(pair, counts, strict=True)])
            images = np.pad(x[index], ((0, 0), (2, 2), (2, 2)))[..., None]
            features = contrastive_features(to_model(images), FeatureConfig(), seed=0)
            first = y[index] == int(pair[0])
            done[name] = {}
            for rule, min_share in RULES.items():
                codes, assignment = discover(features, CodesConfig(bootstraps=0, min_share=min_share), seed=0)
                top = np.array(codes.top_of)[assignment]
                shares = [float(first[top == k].mean()) for k in range(codes.num_top_codes)]
                done[name][rule] = {"share": float(np.mean(shares)), "top_sizes": np.bincount(top).tolist()}
            print(name, {rule: round(found["share"], 3) for rule, found in done[name].items()}, flush=True)
            write_json(arguments.out, done)


if __name__ == "__main__":
    main()
