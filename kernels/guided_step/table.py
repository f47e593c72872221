"""How guided_step is compiled and launched: what the builders of kernel packs and the launchers agree on."""

GUIDED_STEP_BLOCK = 1024  # elements of one image per program: whole Philox blocks of four, whole vectors per thread
GUIDED_STEP_WARPS = 4  # 8 elements per thread: none has two owners

# What each pointer points at, in the kernel's order; n_elements (int32) stands between counters and x_next.
POINTEES = {
    **dict.fromkeys(("out0", "out1", "out2", "scales", "rows", "x", "x0_prev"), "fp32"),
    "seeds": "i64",  # bit patterns of the unsigned 64-bit seeds
    "counters": "i64",  # the step's row number, 0 to 2**32 - 1
    **dict.fromkeys(("x_next", "x0"), "fp32"),
}


def variants() -> tuple[tuple[int, bool], ...]:
    """Every (branches, noise) that is compiled."""
    return tuple((branches, noise) for branches in (1, 2, 3) for noise in (False, True))
