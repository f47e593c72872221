"""Make ddm_rt/assets/digits.xz from MNIST: `python benchmarks/make_digits.py MNIST.npz`.

MNIST.npz has x_train, y_train, x_test, y_test (uint8, the original 60,000 + 10,000 images). The first 1,500 images of
each class in x_train go to the generators, the next 1,000 to judges, and the first 900 of each class in x_test to
references.
"""

import lzma
import sys
from pathlib import Path

import numpy as np

from ddm_rt.data import DIGITS

TRAIN, JUDGE, REFERENCE = 1500, 1000, 900


def main(source: Path, out: Path) -> None:
    with np.load(source, allow_pickle=False) as file:
        x_train, y_train, x_test, y_test = (file[k] for k in ("x_train", "y_train", "x_test", "y_test"))
    parts = []
    for x, y, start, stop in (
        (x_train, y_train, 0, TRAIN),
        (x_train, y_train, TRAIN, TRAIN + JUDGE),
        (x_test, y_test, 0, REFERENCE),
    ):
        index = np.concatenate([np.flatnonzero(y == int(name))[start:stop] for name in DIGITS])
        rows = np.concatenate([y[index, None].astype(np.uint8), x[index].reshape(len(index), 784)], axis=1)
        parts.append(rows)
    sizes = np.array([len(part) for part in parts], "<u4").tobytes()
    raw = sizes + b"".join(part.tobytes() for part in parts)
    out.write_bytes(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))
    print(f"{out}: {[len(part) for part in parts]} images, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parents[1] / "ddm_rt" / "assets" / "digits.xz")
