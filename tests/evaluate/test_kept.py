"""Verdicts on quality and diversity: figures of known changes, in features that are drawn from known distributions."""

import numpy as np
import pytest
from tolerances import STATISTIC_ABS

from ddm_rt.evaluate.comparison import kept
from ddm_rt.evaluate.comparison.kept import BLOCKS, Ratio, blocks_of, decision, ranks_of, ratios
from ddm_rt.evaluate.judge import Verdicts
from ddm_rt.evaluate.quality import frechet, prdc, vendi
from ddm_rt.evaluate.report.comparison_page import kept_sentences

N, D = 3000, 6
REAL = 1.5  # how far the real images are from those of A: without it Frechet distances are noise
GROUPS = ("3", "8")


def drawn(seed: int, n: int, scale: float = 1.0, shift: float = 0.0, paired_with: int | None = None) -> Verdicts:
    """Two groups, Gaussian around centres of their own; `scale` narrows each, `shift` moves it. Images of the same
    request are alike, as those of two precisions are: half of the variance is that of `paired_with`.
    """
    own = np.random.default_rng(seed).normal(size=(n, D))
    if paired_with is not None:
        own = (own + np.random.default_rng(paired_with).normal(size=(n, D))) / 2**0.5
    labels = np.array(GROUPS)[np.arange(n) % 2]
    centres = np.where(labels[:, None] == "3", 3.0, -3.0) * np.eye(D)[0]
    features = centres + shift * np.eye(D)[1] + scale * own
    return Verdicts(labels, np.zeros((n, 2), np.float32), features.astype(np.float32))


def found(b: Verdicts, a: Verdicts | None = None, n_real: int = 1000, shift: float = REAL) -> tuple[Ratio, ...]:
    real = drawn(9, n_real, shift=shift)
    return ratios((a or drawn(0, len(b.labels)), b), codes(len(b.labels)), real.features, real.labels, GROUPS)


def codes(n: int) -> list[int]:
    """Two that take turns, as a quota lets them: each has one of the groups."""
    return [k % 2 for k in range(n)]


def by(figures: tuple[Ratio, ...], figure: str) -> list[Ratio]:
    return [ratio for ratio in figures if ratio.figure == figure]


def test_the_same_distribution_is_kept() -> None:
    figures = found(drawn(1, N, paired_with=0))
    assert {ratio.figure for ratio in figures} == {"Frechet distance", "precision", "recall", "Vendi score"}
    assert [ratio.group for ratio in by(figures, "Frechet distance")] == ["all", *GROUPS]
    assert decision(figures, "quality") == "equivalent"
    assert decision(found(drawn(1, N, paired_with=0), shift=0), "diversity") == "equivalent"
    assert all(ratio.interval[0] <= ratio.ratio <= ratio.interval[1] for ratio in figures)


def test_narrower_groups_lose_recall_and_nothing_else_hides_it() -> None:
    figures = found(drawn(1, N, scale=0.6))
    assert {ratio.decision for ratio in by(figures, "recall")} == {"changed"}
    assert {ratio.decision for ratio in by(figures, "precision")} == {"equivalent"}
    assert decision(figures, "diversity") == "changed"


def test_a_loss_of_variety_is_shown_beside_that_of_real_images() -> None:
    wide = drawn(0, N, scale=1.6)
    figures = found(drawn(1, N), a=wide, shift=0)
    real = drawn(9, 1000, shift=0)
    for ratio in by(figures, "Vendi score"):
        assert ratio.real == vendi(real.features[real.labels == ratio.group])
    assert all(ratio.real is None for ratio in figures if ratio.figure != "Vendi score")
    worst = min(by(figures, "Vendi score"), key=lambda ratio: ratio.ratio)
    assert worst.decision == "changed"
    said = next(line for line in kept_sentences([worst]) if line.startswith("Diversity"))
    scores = f" The score is {worst.a:.3f} for A, {worst.b:.3f} for B and {worst.real:.3f} for real images."
    assert said.endswith(scores)


def test_images_further_from_the_real_ones_lose_quality() -> None:
    figures = found(drawn(1, N, shift=-0.5))
    assert decision(figures, "quality") == "changed"
    assert min(ratio.ratio for ratio in by(figures, "Frechet distance")) > 1.5  # (2/1.5)² is 1.8


def test_few_images_leave_it_undecided_and_say_how_many_would_decide() -> None:
    few = found(drawn(1, 400))
    assert decision(few, "quality") == "undecided"
    needed = max(ratio.n_needed or 0 for ratio in few)
    assert needed > 400
    assert all((ratio.n_needed is None) == (ratio.decision != "undecided") for ratio in few)


def test_a_smaller_bound_is_harder_to_keep() -> None:
    a, b, real = drawn(0, N), drawn(1, N), drawn(9, 1000, shift=REAL)
    strict = ratios((a, b), codes(N), real.features, real.labels, GROUPS, frechet_ratio=1.0001)
    assert decision(strict, "quality") != "equivalent"


def test_figures_are_those_of_quality() -> None:
    a, b, real = drawn(0, 600), drawn(1, 600), drawn(9, 500)
    figures = ratios((a, b), codes(600), real.features, real.labels, GROUPS)
    own, truth = a.features[a.labels == "3"], real.features[real.labels == "3"]
    precision, recall, _ = prdc(own, truth)
    wanted = {"Frechet distance": frechet(own, truth), "precision": precision, "recall": recall}
    wanted["Vendi score"] = vendi(own)
    assert {r.figure: r.a for r in figures if r.group == "3"} == pytest.approx(wanted, abs=STATISTIC_ABS)


def test_recall_of_many_images_is_that_of_parts_and_its_interval_narrows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one large sample each real image would still be recalled by the few samples nearest to it, or not."""
    a, b, real = drawn(0, 4800), drawn(1, 4800), drawn(9, 1000)

    def recalls() -> list[Ratio]:
        return by(ratios((a, b), codes(4800), real.features, real.labels, GROUPS), "recall")

    def width(ratio: Ratio) -> float:
        return np.log(ratio.interval[1] / ratio.interval[0])

    whole = recalls()
    monkeypatch.setattr(kept, "RECALL_IMAGES", 240)
    in_parts = recalls()
    for one, ten, group in zip(whole, in_parts, GROUPS, strict=True):
        assert width(ten) < 0.7 * width(one)  # a third, if a part's recall varied no more than the whole's
        own, truth = a.labels == group, real.features[real.labels == group]
        part = np.argsort(np.argsort(ranks_of(codes(4800))[own])) // BLOCKS % 10
        each = [prdc(a.features[own][part == number], truth)[1] for number in range(10)]
        assert ten.a == pytest.approx(np.mean(each), abs=STATISTIC_ABS)


def test_the_images_that_would_decide_recall_count_in_whole_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to a part, more images make the recall of a group hardly more certain."""
    a, b, real = drawn(0, 400), drawn(1, 400, scale=0.93), drawn(9, 1000, shift=REAL)

    def needed() -> list[int | None]:
        return [
            ratio.n_needed for ratio in by(ratios((a, b), codes(400), real.features, real.labels, GROUPS), "recall")
        ]

    few = needed()
    monkeypatch.setattr(kept, "RECALL_IMAGES", 200)
    for in_large_parts, in_small_ones in zip(few, needed(), strict=True):
        assert in_large_parts is not None
        assert in_small_ones is not None
        times = 2500 / 200
        assert times * (in_small_ones - 1) < in_large_parts < times * in_small_ones + 1  # both are rounded up


def test_a_group_that_one_side_lacks_is_left_out() -> None:
    a, b = drawn(0, 600), drawn(1, 600)
    figures = found(b._replace(labels=np.full(600, "3")), a)
    assert {ratio.group for ratio in figures} == {"all", "3"}


def test_what_has_nothing_in_common_with_real_images_has_no_ratio_to_keep() -> None:
    figures = found(drawn(1, 600, shift=1000), drawn(0, 600))
    assert {(ratio.ratio, ratio.decision) for ratio in by(figures, "precision")} == {(0.0, "changed")}
    assert not by(found(drawn(1, 600), drawn(0, 600, shift=1000)), "precision")


def test_each_block_has_its_part_of_every_code() -> None:
    drawn_by = np.array([0, 1] * 400 + [2] * 41)
    block = blocks_of(drawn_by.tolist())
    for code, count in ((0, 20), (1, 20), (2, 2)):
        sizes = np.bincount(block[drawn_by == code], minlength=BLOCKS)
        assert (sizes.min(), sizes.max()) in ((count, count), (count, count + 1))


def test_each_block_has_its_part_of_every_prompt() -> None:
    strata = [(f"prompt {k % 4}", -1) for k in range(400)]
    block = blocks_of(strata)
    for prompt in {prompt for prompt, _ in strata}:
        assert set(np.bincount(block[[s[0] == prompt for s in strata]], minlength=BLOCKS)) == {5}


def test_leaving_a_block_out_moves_no_shares() -> None:
    """By position each block holds one group alone; where groups lie far apart, shares then move the distances."""

    def far(side: Verdicts) -> Verdicts:
        return side._replace(features=side.features * np.where(np.arange(D) == 0, 10, 1).astype(np.float32))

    a, b, real = (far(side) for side in (drawn(0, 1000), drawn(1, 1000, shift=2.0), drawn(9, 1000, shift=REAL)))
    widths = []
    for drawn_by in (codes(1000), [0] * 1000):
        (of_all,) = (
            ratio
            for ratio in ratios((a, b), drawn_by, real.features, real.labels, GROUPS)
            if (ratio.figure, ratio.group) == ("Frechet distance", "all")
        )
        widths.append(of_all.interval[1] / of_all.interval[0])
    assert np.log(widths[0]) < np.log(widths[1]) / 1.5


def test_intervals_cover_what_they_say() -> None:
    """Of 40 pairs of runs without a difference 90 % of the intervals hold 1, within binomial noise."""
    inside = [
        ratio.interval[0] <= 1 <= ratio.interval[1]
        for seed in range(40)
        for ratio in found(drawn(2 * seed + 100, 500), drawn(2 * seed + 101, 500), 300)
        if (ratio.figure, ratio.group) == ("Frechet distance", "all")
    ]
    assert sum(inside) >= 31  # of 40: fewer has a chance of .6 %
