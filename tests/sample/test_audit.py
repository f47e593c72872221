"""Audit sets: which codes they show, and their contact sheets. Reading them is in cli/test_calibrate.py."""

import numpy as np

from ddm_rt.sample.calibration.audit import numbered_sheet, stratified


def test_audits_are_drawn_in_rounds_and_heavier_codes_get_what_is_left() -> None:
    assert stratified(np.array([0.2, 0.5, 0.0, 0.3]), 7) == [1, 3, 0, 1, 3, 0, 1]


def test_contact_sheets_enlarge_small_images_and_shrink_large_ones() -> None:
    small = numbered_sheet(np.zeros((5, 16, 16, 3), np.uint8), list("abcde"))
    large = numbered_sheet(np.zeros((5, 512, 256, 3), np.uint8), list("abcde"))
    assert small.shape == (2 * (64 + 18), 3 * 68, 3)
    assert large.shape == (2 * (192 + 18), 3 * (96 + 4), 3)
    assert (small < 128).any(axis=2).sum() > 5 * 64 * 64, "numbers are printed below the images"
