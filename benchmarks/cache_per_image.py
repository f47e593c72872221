"""Would a cache be better if each image had its own number of calls? An upper bound, and a predictor.

    python benchmarks/cache_per_image.py [BUNDLE] [-n 128]

Caches of every number of calls are fitted on images of one seed, and walked on images of another. Then each image may
choose among them, and the whole walk. "Oracle" knows every image's error beforehand, which nobody does. "Predictor"
knows what the first call changed, |x0 - x| and |out| by their root mean squares, and the errors of the fitted images
that were like it in that. Both choose by one price for an error, the one that takes the fewest calls for the mean
squared error that a fixed number of calls has. That error is the tried images', so the predictor's figures flatter it.
"""

import argparse

import numpy as np
from numpy.typing import NDArray

from ddm_rt.errors import DdmError
from ddm_rt.sample.cache.fit import Fitter
from ddm_rt.sample.cache.reuse import LEAST, Reuse
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.sample.request import Request

SHOWN = (4, 5, 6, 8, 10)
NEAREST = 16  # fitted images that the predictor asks
Floats = NDArray[np.float64]


def errors(fitter: Fitter, reuse: Reuse) -> Floats:
    """Mean squared error of each image's last state, by image."""
    x = fitter.walk.x[0]
    before = np.zeros_like(x)
    for step, row in zip(reuse.steps, reuse.rows, strict=True):
        out, x0 = fitter.call(step, x)
        made = sum(np.float32(factor) * column for factor, column in zip(row, (x, x0, before, out), strict=True))
        x, before = np.asarray(made, np.float32), x0
    return ((x - fitter.walk.x[-1]).astype(np.float64) ** 2).reshape(len(x), -1).mean(1)


def seen(fitter: Fitter) -> Floats:
    """[N, 2]: what the first call says of an image, in logarithms."""
    walk = fitter.walk
    change, out = (np.sqrt((a**2).reshape(len(a), -1).mean(1)) for a in (walk.x0[0] - walk.x[0], walk.out[0]))
    return np.log(np.stack([change, out], 1).astype(np.float64))


def fewest(calls: Floats, chosen_by: Floats, counted: Floats, bound: float) -> float:
    """The mean of `calls` [C] where each image takes the least calls + price·error by `chosen_by`, for the price that
    holds the mean of `counted` below the bound with the fewest calls. Both are [C, images].
    """
    places = np.arange(counted.shape[1])
    best = np.inf
    for price in np.logspace(-1, 9, 4000):
        picked = (calls[:, None] + price * chosen_by).argmin(0)
        if counted[picked, places].mean() <= bound:
            best = min(best, float(calls[picked].mean()))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", default="digits")
    parser.add_argument("-n", type=int, default=128)
    arguments = parser.parse_args()
    pipeline = Pipeline.load(arguments.bundle, "onnxruntime", threads=1)
    with (
        pipeline.prepare(Request(n=arguments.n, seed=0)) as fitted_on,
        pipeline.prepare(Request(n=arguments.n, seed=1)) as tried_on,
    ):
        fitter, trial = Fitter(pipeline, fitted_on), Fitter(pipeline, tried_on)
        caches = {}
        for count in range(LEAST, fitted_on.table.num_steps):
            try:
                caches[count] = fitter.fit(count).reuse
            except DdmError as error:  # with two calls a walk may run away
                print(f"{count} calls are left out: {error}")
        whole = np.zeros(arguments.n)
        known = np.stack([*(errors(fitter, cache) for cache in caches.values()), whole])
        real = np.stack([*(errors(trial, cache) for cache in caches.values()), whole])
        calls = np.array([*caches, fitted_on.table.num_steps], np.float64)
    those, these = seen(fitter), seen(trial)
    apart = (((these[:, None] - those[None]) / those.std(0)) ** 2).sum(2)
    predicted = known[:, np.argsort(apart, axis=1)[:, :NEAREST]].mean(2)
    print("| calls | error, RMS | oracle's calls | fewer by | predictor's calls | fewer by |")
    print(f"{'| --- ' * 6}|")
    for count in SHOWN:
        bound = real[list(caches).index(count)].mean()
        found = fewest(calls, real, real, bound), fewest(calls, predicted, real, bound)
        cells = [f"{best:.2f} | {1 - best / count:.0%}" for best in found]
        print(f"| {count} | {np.sqrt(bound):.4f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
