"""The one tolerance table. A number here never grows to make a test pass."""

# Step tables against diffusers' schedulers: per step, and over a trajectory relative to max|x|.
STEP_ABS = 1e-5
TRAJECTORY_REL = 5e-5

# Exported graphs against torch, fp32, max absolute error.
EXPORT_FP32_ABS = 1e-4

# Attention reference (fp32) against torch's scaled_dot_product_attention.
ATTENTION_FP32_ABS = 1e-5

# Attention reference in float64 against the formula number by number.
ATTENTION_FP64_ABS = 1e-12

# Images of one bundle, one machine kind, across thread counts or backends: grey levels.
IMAGE_GREY_LEVELS = 1

# Noise levels of a schedule against those that diffusers holds in float32, relative.
SCHEDULE_REL = 1e-6

# Fractional timesteps, which diffusers computes in float32.
TIMESTEP_ABS = 1e-3

# Identities that a float64 step table keeps.
TABLE_ABS = 1e-9

# Noise of an independent implementation: float32 units in the last place.
NOISE_ULP = 1

# Closed-form statistics (intervals, distances) against a library or a hand calculation.
STATISTIC_ABS = 1e-9

# Frechet distance by symmetric eigenvalues against a general matrix square root, relative.
FRECHET_REL = 1e-6

# Shares from constrained least squares against a closed form or another solver.
SIMPLEX_ABS = 1e-7

# The loss in float32 against the formula in Python's floats, relative.
LOSS_REL = 1e-5

# Length of float32 unit vectors.
UNIT_ABS = 1e-5

# Shares that add up to one in float64.
SHARE_ABS = 1e-12
