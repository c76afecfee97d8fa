"""A Llama over bytes: RMSNorm, rotary positions, causal attention, SwiGLU. No tokenizer.

Names carry their shape: B sequences, T bytes each, C channels, H heads of D = C / H channels, V =
256 byte values.
"""
# Calling a module returns Any.
# mypy: disable-error-code="no-any-return"
# ruff: noqa: N803, N806, N812 (tensor names end with their shape)

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY = 256  # a byte is a token


@dataclass(frozen=True)
class ModelOptions:
    """The default has 467,584 parameters; a step of 8 x 128 bytes takes 55 ms on one core."""

    channels: int = 128  # C
    layers: int = 2
    heads: int = 4  # H
    hidden: int = 352  # width of the feed-forward, about 8/3 C
    context: int = 128  # T, at most


def rotate(x_BHTD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Turn each pair of channels by an angle that grows with the position (rotary embedding)."""
    first, second = x_BHTD.chunk(2, dim=-1)
    return x_BHTD * cos_TD + torch.cat((-second, first), dim=-1) * sin_TD


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        self.heads = options.heads
        self.qkv = nn.Linear(options.channels, 3 * options.channels, bias=False)  # [3C, C]
        self.output = nn.Linear(options.channels, options.channels, bias=False)  # [C, C]

    def forward(self, x_BTC: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        B, T, C = x_BTC.shape
        qkv_3BHTD = (
            self.qkv(x_BTC).view(B, T, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        )
        query, key, value = qkv_3BHTD.unbind(0)
        query, key = rotate(query, cos_TD, sin_TD), rotate(key, cos_TD, sin_TD)
        mixed_BHTD = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        mixed_BTC = mixed_BHTD.transpose(1, 2).reshape(B, T, C)
        return self.output(mixed_BTC)


class SwiGLU(nn.Module):
    """Feed-forward whose one half gates the other."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        self.gate = nn.Linear(options.channels, options.hidden, bias=False)  # [hidden, C]
        self.up = nn.Linear(options.channels, options.hidden, bias=False)  # [hidden, C]
        self.down = nn.Linear(options.hidden, options.channels, bias=False)  # [C, hidden]

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x_BTC)) * self.up(x_BTC))


class Block(nn.Module):
    """One layer: attention, then feed-forward, each on a normalized copy and added back."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(options.channels)  # [C]
        self.attention = Attention(options)
        self.feed_forward_norm = nn.RMSNorm(options.channels)  # [C]
        self.feed_forward = SwiGLU(options)

    def forward(self, x_BTC: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        x_BTC = x_BTC + self.attention(self.attention_norm(x_BTC), cos_TD, sin_TD)
        return x_BTC + self.feed_forward(self.feed_forward_norm(x_BTC))


class ByteLlama(nn.Module):
    """Predicts the next byte of a text."""

    cos: Tensor  # [context, D]
    sin: Tensor  # [context, D]

    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        self.options = options
        self.embedding = nn.Embedding(VOCABULARY, options.channels)  # [V, C]
        self.blocks = nn.ModuleList(Block(options) for _ in range(options.layers))
        self.norm = nn.RMSNorm(options.channels)  # [C]
        self.unembedding = nn.Linear(options.channels, VOCABULARY, bias=False)  # [V, C]
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
        head_channels = options.channels // options.heads  # D
        rate = 10000.0 ** (-torch.arange(0, head_channels, 2) / head_channels)  # [D/2]
        angle = torch.outer(torch.arange(options.context), rate).repeat(1, 2)  # [context, D]
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, bytes_BT: Tensor) -> Tensor:
        """Return the logits [B, T, V] of the byte that follows each position."""
        T = bytes_BT.shape[1]
        x_BTC = self.embedding(bytes_BT)
        for block in self.blocks:
            x_BTC = block(x_BTC, self.cos[:T], self.sin[:T])
        return self.unembedding(self.norm(x_BTC))

    @torch.no_grad()
    def write(
        self, prompt: bytes, length: int, *, seed: int = 0, temperature: float = 0.7
    ) -> bytes:
        """Continue `prompt` by `length` sampled bytes."""
        random = torch.Generator().manual_seed(seed)
        text = list(prompt)
        for _ in range(length):
            logits_V = self(torch.tensor([text[-self.options.context :]]))[0, -1]
            probabilities_V = torch.softmax(logits_V / temperature, dim=-1)
            text.append(int(torch.multinomial(probabilities_V, 1, generator=random)))
        return bytes(text)
