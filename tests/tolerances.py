"""The one tolerance table. A number here never grows to make a test pass."""

# Step tables against diffusers' schedulers: per step, and over a trajectory relative to max|x|.
STEP_ABS = 1e-5
# A step from the noisiest timestep divides by α = 1/37: of the terms whose difference is x0, four roundings in float32
# on the two sides together, where they are more than STEP_ABS.
STEP_ROUNDINGS = 2
TRAJECTORY_REL = 5e-5

# Exported graphs against torch, fp32, max absolute error.
EXPORT_FP32_ABS = 1e-4

# Attention reference (fp32) against torch's scaled_dot_product_attention.
ATTENTION_FP32_ABS = 1e-5

# Attention reference in float64 against the formula number by number.
ATTENTION_FP64_ABS = 1e-12

# Gradients by torch's attention in float32 against the reference's in float64, relative to the largest.
ATTENTION_GRADIENT_REL = 1e-5

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

# The fused attention kernel in fp32 and fp16 against its reference in float64 of the same inputs.
KERNEL_FP32_ABS = 1e-5
KERNEL_FP16_ABS = 3e-3

# A gradient's length against the slope of the fp32 kernel along it, by central differences.
DIRECTIONAL_REL = 1e-3

# Noise whose Box-Muller runs in float32 (the fused step) against the float64 definition, relative to each number.
NOISE_FLOAT32_REL = 1e-6

# The fused step, which may fuse multiply-adds, against the reference: relative to the sum of its terms' sizes.
GUIDED_STEP_FP32_REL = 1e-6

# The model in float32 on a CUDA device against the CPU, max absolute error.
DEVICE_FP32_ABS = 1e-4

# Losses of the first training steps on a CUDA device against the CPU, relative; convolutions there may use TF32.
DEVICE_LOSS_REL = 1e-2

# One denoiser call of the tiny model (random weights) against fp32: RMS of the difference over RMS of the output. The
# first of each on ONNX Runtime, which rounds less often than the graph says; the second on onnx's reference evaluator.
# A denoiser of torch in bf16 or fp16 against float32: relative, root mean square. Weights of a test are random.
HALF_REL = 1.2e-2

PRECISION_REL = {"fp16": (2e-3, 4e-3), "bf16": (None, 3e-2), "int8": (8e-2, 8e-2), "fp8": (0.15, 0.15)}
PRECISION_REL |= {"int8-weights": (2e-2, 2e-2)}
# Grey levels, in the mean, between images by weights alone in int8 and those by fp32: 25 steps of random weights.
# All layers are rounded, the first and the last too. On the shipped digits it is .55.
WEIGHTS_GREY_LEVELS = 3

# Bounds of an interval found by a root search against the defining equation, in standard deviations and in shares.
SOLVER_ABS = 1e-4

# Group shares that calibrated weights are solved for.
SOLVED_SHARE_ABS = 1e-8

# A run opened in diffusers, without this package, against our torch model: one UNet call, and latents after some steps.
DIFFUSERS_OUTPUT_ABS = 1e-5
DIFFUSERS_LATENTS_ABS = 1e-4

# A merged adapter against peft's layers beside the base's own: one UNet call, text embeddings, latents after 20 steps.
ADAPTER_ABS = 1e-4

# Stable Diffusion bundles against diffusers' own pipelines, fp32: latents after 20 guided steps, and text embeddings.
PIPELINE_LATENTS_ABS = 1e-3
TEXT_EMBEDDINGS_ABS = 1e-4

# Losses of training in half precision against fp32, relative, over a few steps.
HALF_LOSS_REL = 2e-3

# Losses of a step in one piece against the same step accumulated, recomputed or shared out over processes, relative.
CHECKPOINTING_REL = 1e-5

# Weights that two processes train in five steps of 1e-2 against those of one, max absolute error: Adam divides by a
# gradient's size, so that rounding shows where that is near zero.
PROCESSES_ABS = 1e-4

# Figures under fairlearn's names against fairlearn's own functions.
FAIRLEARN_ABS = 1e-12

# An image as a judge takes it against transformers' processors on Pillow, in units of the normalised image.
PROCESSOR_ABS = 1e-6

# Probabilities of an exported judge against transformers' own pipelines, which round to the file's float32 elsewhere.
JUDGE_PROBABILITY_ABS = 1e-5
