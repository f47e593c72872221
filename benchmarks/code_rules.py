"""Code discovery alone, without a diffusion model: the share that uniform top codes would give, rule by rule.

    python benchmarks/code_rules.py MNIST.npz --pairs 14 12 16 19

MNIST.npz as in `make_digits.py`. For each pair of digits, at 4:1 and at 1:4 (1,500 and 375 images), it records the
mean over the top codes of the first digit's share (.5 is balance), with and without `codes.min_share`. What is there is
kept.
"""

import argparse
from pathlib import Path

import numpy as np
import render
import torch
from measured_steps import commit
from store import RESULTS, load, save

from ddm_rt.config import CodesConfig, FeatureConfig
from ddm_rt.data import to_model
from ddm_rt.train.codes.contrastive import contrastive_features
from ddm_rt.train.codes.discover import discover

RULES = {"first rule (no min_share)": 0.0, "min_share .05": 0.05}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mnist", type=Path)
    parser.add_argument("--pairs", nargs="+", default=["14", "12", "16", "19"])
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with np.load(arguments.mnist, allow_pickle=False) as file:
        x, y = file["x_train"], file["y_train"]
    record = load("code rules", arguments.results) or {"rows": []}
    record["command"] = "python benchmarks/code_rules.py MNIST.npz"
    for pair in arguments.pairs:
        for ratio, counts in (("4:1", (1500, 375)), ("1:4", (375, 1500))):
            name = f"{pair[0]}v{pair[1]} {ratio}"
            if any(row["set"] == name for row in record["rows"]):
                continue
            # From the end of the training images: those that ship are from its beginning.
            index = np.concatenate([np.flatnonzero(y == int(d))[-n:] for d, n in zip(pair, counts, strict=True)])
            images = np.pad(x[index], ((0, 0), (2, 2), (2, 2)))[..., None]
            features = contrastive_features(to_model(images), FeatureConfig(), seed=0)
            first = y[index] == int(pair[0])
            for rule, min_share in RULES.items():
                codes, assignment = discover(features, CodesConfig(bootstraps=0, min_share=min_share), seed=0)
                top = np.array(codes.top_of)[assignment]
                shares = [float(first[top == k].mean()) for k in range(codes.num_top_codes)]
                found = {"share": float(np.mean(shares)), "top_sizes": np.bincount(top).tolist()}
                record["rows"].append({"set": name, "rule": rule, **found, "commit": commit()})
                print(name, rule, round(found["share"], 3), flush=True)
            save("code rules", record, arguments.results)
    print(render.render("codes", arguments.results))


if __name__ == "__main__":
    main()
