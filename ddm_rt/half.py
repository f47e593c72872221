"""What stays float32 where a model computes in half precision: one table, for graphs that are converted and for torch.

torch's own norms and softmax take half tensors and compute in float32 within; graphs must say so with casts.
"""

# ONNX operator -> torch's. Sines of frequency x timestep: at t = 999 the spacing of fp16 is a half, of bf16 four,
# against a period of 2π. With them stays everything that they are computed from.
TRIGONOMETRY = {"Sin": "sin", "Cos": "cos"}
# Means and variances over thousands of values, which ONNX defines in the type of the input. (LayerNormalization says
# in `stash_type` that its own are float32; Softmax is left in half, where engines fuse it into attention.)
STATISTICS = {
    "InstanceNormalization": "native_batch_norm",
    "GroupNormalization": "native_group_norm",
    "ReduceMean": "mean",
    "ReduceSum": "sum",
    "ReduceL2": "linalg_vector_norm",
}
# Inputs of a model's parts: timesteps and sizes, which sines are taken of, and the code's scale, which attention
# multiplies its sum in float32 with.
INPUTS = frozenset({"t", "time_ids", "sizes", "indicator_scale", "code_scale"})
