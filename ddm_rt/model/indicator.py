"""The two halves of the indicator: the code embedding that conditions, and the head C that recognises."""

import torch
from torch import Tensor, nn


class Conditioner(nn.Module):
    """Makes `cond` from a context and a code: once per prompt x code, outside the sampling loop.

    A code's vector is the sum of its own and of its top code's, so that a small leaf leans on its branch.
    Code -1 is the null code: its scale is 0, so every cross-attention is plain, bit for bit.
    """

    top_of: Tensor  # int64 [codes]

    def __init__(self, top_of: tuple[int, ...], embed_dim: int, num_tokens: int, context_dim: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.code = nn.Embedding(len(top_of), embed_dim)
        self.top_code = nn.Embedding(max(top_of) + 1, embed_dim)
        self.tokens = nn.Linear(embed_dim, num_tokens * context_dim)
        self.norm = nn.LayerNorm(context_dim)
        self.register_buffer("top_of", torch.tensor(top_of, dtype=torch.int64))

    def forward(self, context: Tensor, code: Tensor, indicator_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """context [B,T,D], code int64 [B], scale [B] -> text and indicator tokens [B,M,D], s [B]."""
        real = code.clamp(min=0)  # -1 has no row; its tokens are multiplied by zero
        vector = self.code(real) + self.top_code(self.top_of[real])  # [B, E]
        tokens = self.norm(self.tokens(vector).unflatten(-1, (self.num_tokens, -1)))  # [B, M, D]
        return context, tokens, indicator_scale * (code >= 0).to(indicator_scale.dtype)


class IndicatorHead(nn.Module):
    """C of DDM (arXiv 2503.12536): reads the UNet's prediction, trained with it, dropped at export.

    Flatten -> Linear(C·H·W, 1024) -> ReLU -> Linear(1024, 512) -> ReLU -> Linear(512, classes).
    """

    def __init__(self, latent_shape: tuple[int, int, int], hidden: tuple[int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = latent_shape
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * height * width, hidden[0]),
            nn.ReLU(),
            nn.Linear(hidden[0], hidden[1]),
            nn.ReLU(),
            nn.Linear(hidden[1], classes),
        )

    def forward(self, prediction: Tensor) -> Tensor:
        """prediction [B,C,H,W] -> logits [B, classes]."""
        logits: Tensor = self.layers(prediction)
        return logits
