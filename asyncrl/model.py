"""The policy: a small decoder, its weights as a safetensors file.

The names and the arithmetic are Llama's, so that other engines read the same file: Hugging Face's
`LlamaForCausalLM` computes the same logits from it.
"""
# mypy: disable-error-code="no-untyped-call, no-any-return"
# ruff: noqa: N803, N806 (tensor names end with their shape)

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from asyncrl.model_config import ModelConfig

__all__ = [
    "Decoder",
    "KeyValueCache",
    "ModelConfig",
    "causal_mask",
    "load_policy",
    "load_weights",
    "read_weights",
    "save_weights",
    "weights_bytes",
]

_CONFIG_KEY = "model_config"


class KeyValueCache:
    """Keys and values of what was computed, layer by layer: [layers][batch, heads, time, head]."""

    def __init__(self, layer_count: int) -> None:
        self._layers: list[tuple[Tensor, Tensor] | None] = [None] * layer_count

    def extend(self, layer: int, key_BHTD: Tensor, value_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        held = self._layers[layer]
        if held is not None:
            key_BHTD = torch.cat([held[0], key_BHTD], dim=2)
            value_BHTD = torch.cat([held[1], value_BHTD], dim=2)
        self._layers[layer] = (key_BHTD, value_BHTD)
        return key_BHTD, value_BHTD

    def keep(self, rows: Tensor) -> None:
        """Forget all but these rows of the batch."""
        self._layers = [held and (held[0][rows], held[1][rows]) for held in self._layers]


class _RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class _Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_count = config.head_count
        self.q_proj = nn.Linear(config.width, config.width, bias=False)
        self.k_proj = nn.Linear(config.width, config.width, bias=False)
        self.v_proj = nn.Linear(config.width, config.width, bias=False)
        self.o_proj = nn.Linear(config.width, config.width, bias=False)

    def forward(
        self,
        x_BTC: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor,
        cache: KeyValueCache | None,
    ) -> Tensor:
        batch, time, width = x_BTC.shape

        def heads(projection: nn.Linear) -> Tensor:
            return projection(x_BTC).view(batch, time, self.head_count, -1).transpose(1, 2)

        query = _rotate(heads(self.q_proj), rotation)
        key = _rotate(heads(self.k_proj), rotation)
        value = heads(self.v_proj)
        if cache is not None:
            key, value = cache.extend(self.layer, key, value)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, time, width))


class _FeedForward(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.feed_forward_width, bias=False)
        self.up_proj = nn.Linear(config.width, config.feed_forward_width, bias=False)
        self.down_proj = nn.Linear(config.feed_forward_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class _Layer(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = _RMSNorm(config.width)
        self.self_attn = _Attention(config, layer)
        self.post_attention_layernorm = _RMSNorm(config.width)
        self.mlp = _FeedForward(config)

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor, cache: KeyValueCache | None
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotation, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class _Trunk(nn.Module):
    """All but the output head; its own level, so that the weights have Llama's names."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocabulary_count, config.width)
        self.layers = nn.ModuleList(_Layer(config, layer) for layer in range(config.layer_count))
        self.norm = _RMSNorm(config.width)


class Decoder(nn.Module):
    """A causal transformer.

    Source: rotary positions, Su et al. 2021; RMSNorm, Zhang and Sennrich 2019; SwiGLU, Shazeer
    2020.
    """

    def __init__(self, config: ModelConfig, *, seed: int = 0) -> None:
        """Weights are drawn from `seed` alone, normal with 0.02, residual outputs smaller."""
        super().__init__()
        self.config = config
        self.model = _Trunk(config)
        self.lm_head = nn.Linear(config.width, config.vocabulary_count, bias=False)
        half = config.width // config.head_count // 2
        frequency = config.rope_base ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.arange(config.context_max, dtype=torch.float64)[:, None] * frequency
        self.cosine: Tensor
        self.sine: Tensor
        self.register_buffer("cosine", angle.cos().float(), persistent=False)
        self.register_buffer("sine", angle.sin().float(), persistent=False)
        random = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                is_output = name.endswith(("o_proj.weight", "down_proj.weight"))
                deviation = 0.02 / (2 * config.layer_count) ** 0.5 if is_output else 0.02
                nn.init.normal_(parameter, 0.0, deviation, generator=random)

    @property
    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def device(self) -> torch.device:
        return self.lm_head.weight.device

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        mask_BTS: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits [batch, time, vocabulary] and last hidden states [batch, time, width], float32.

        The hidden states are those after the final norm: what the head multiplies.

        Args:
            tokens_BT: int64, each below `vocabulary_count`.
            positions_BT: int64, each below `context_max`. None: 0, 1, 2, ...
            mask_BTS: bool, true where time T may look at S of cache and call. None: causal.
            cache: is extended by this call.

        Raises:
            ValueError: more than `context_max` tokens.
        """
        batch, time = tokens_BT.shape
        if time > self.config.context_max:
            raise ValueError(
                f"forward: at most {self.config.context_max} tokens of context, got {time}"
            )
        if positions_BT is None:
            positions_BT = torch.arange(time, device=tokens_BT.device).expand(batch, time)
        if mask_BTS is None:
            mask_BTS = causal_mask(time, tokens_BT.device).expand(batch, time, time)
        rotation = (self.cosine[positions_BT][:, None], self.sine[positions_BT][:, None])
        x = self.model.embed_tokens(tokens_BT)
        for layer in self.model.layers:
            x = layer(x, rotation, mask_BTS[:, None], cache)
        hidden = self.model.norm(x)
        return self.lm_head(hidden), hidden


def causal_mask(time: int, device: torch.device | None = None) -> Tensor:
    """bool [time, time], true where a token may look."""
    return torch.ones(time, time, dtype=torch.bool, device=device).tril()


def _rotate(x_BHTD: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cosine, sine = rotation  # [batch, 1, time, head / 2]
    first, second = x_BHTD.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def weights_bytes(model: Decoder) -> bytes:
    """The weights as the bytes of a safetensors file, with the model's config in its header.

    Equal weights give equal bytes.
    """
    tensors = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    return safetensors.torch.save(tensors, metadata={_CONFIG_KEY: model.config.json})


def save_weights(model: Decoder, path: Path) -> None:
    """Write the file under its final name only when it is whole."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(weights_bytes(model))
    part.replace(path)


def read_weights(path: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The config and the tensors of a file of save_weights().

    Raises:
        ValueError: it is not such a file.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_CONFIG_KEY, "")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
            return ModelConfig.from_json(text), tensors
    except safetensors.SafetensorError as error:
        raise ValueError(f"weights {path}: {error}") from None


def load_weights(model: Decoder, tensors: Mapping[str, Tensor]) -> None:
    """Copy `tensors` into the model.

    Raises:
        ValueError: a name or shape differs, or a number is not finite; the model is unchanged.
    """
    held = model.state_dict()
    if set(held) != set(tensors):
        differing = sorted(set(held) ^ set(tensors))
        raise ValueError(f"load_weights: names differ: {differing[:3]}")
    for name, value in tensors.items():
        if value.shape != held[name].shape or value.dtype != held[name].dtype:
            raise ValueError(
                f"load_weights: {name}: expected {held[name].dtype} {list(held[name].shape)}, got "
                f"{value.dtype} {list(value.shape)}"
            )
        if not torch.isfinite(value).all():
            raise ValueError(f"load_weights: {name} holds NaN or Inf")
    model.load_state_dict(dict(tensors))


def load_policy(path: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    """The decoder whose weights a file holds, to be asked in `dtype`.

    Raises:
        ValueError: it is no such file, or holds NaN or Inf.
    """
    config, tensors = read_weights(path)
    model = Decoder(config)
    load_weights(model, tensors)
    return model.to(dtype)
