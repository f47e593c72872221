"""What later commits changed on purpose, each with the reason.

A change to anything else that the goldens hold is a mistake. One that is meant gets an entry here, in the commit that
makes the golden again.
"""

# Step tables, as "beta schedule/prediction type/sampler/spacing", with * for any -> the column that isn't compared with
# the golden, and why. The other columns are.
TABLES: dict[str, tuple[str, str]] = {
    "squaredcos_cap_v2/*/dpm++2m/karras": (
        "t",
        "the timestep of the noisiest level was 999, where the rule of this schedule, which cuts, gives 998",
    ),
}

# Other goldens that were made again: a pattern of paths below `files/` -> why.
REMADE: dict[str, str] = {}
