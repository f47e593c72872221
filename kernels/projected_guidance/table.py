"""How projected_guidance is compiled and launched: what the builders of kernel packs and the launchers agree on."""

PROJECTED_GUIDANCE_BLOCK = 2048  # elements of an image that its one program takes at a time
PROJECTED_GUIDANCE_WARPS = 8

# The kernel's pointers in its order, all to fp32; n_elements (int32) stands before the last.
POINTERS = ("out0", "out1", "out2", "settings", "combined")

BRANCHES = (2, 3)  # that are compiled
