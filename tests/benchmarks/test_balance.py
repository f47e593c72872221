"""The balance table's own parts: pictures shown to the judge dark on the outside, and which group is the minority."""

import balance
import numpy as np
from numpy.typing import NDArray


class Recorded:
    """A judge that keeps what it was shown."""

    groups = ("3", "8")

    def predict(self, images: NDArray[np.uint8], batch_size: int) -> NDArray[np.uint8]:
        self.batch_size = batch_size
        return images


def test_pictures_that_are_bright_on_the_outside_are_inverted() -> None:
    dark = np.zeros((28, 28, 3), np.uint8)
    dark[10:18, 10:18] = 250
    framed = np.zeros((28, 28, 3), np.uint8)
    framed[2:26, 2:26] = 255  # bright on the whole, dark where it counts
    judge = balance.PolarityJudge(Recorded())
    shown = judge.predict(np.stack([dark, 255 - dark, framed, 255 - framed]), batch_size=7)
    np.testing.assert_array_equal(shown, np.stack([dark, dark, framed, framed]))
    assert judge.batch_size == 7
    assert judge.groups == ("3", "8")


def test_the_minority_is_the_smaller_side_of_the_ratio() -> None:
    assert [balance._minority(name) for name in ("3v8 4:1", "3v8 1:4", balance.STRESS)] == [1, 0, 1]
