"""PULSE-7B: the BLOOM layout, with positions by ALiBi. Names are those of upstream's state dict. Needs torch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


def slopes(heads: int) -> list[float]:
    """Slope of every head: powers of one ratio for a power of two, odd powers of the finer ratio for the others."""
    whole = 2 ** math.floor(math.log2(heads))

    def ratio(count: int) -> float:
        return float(2 ** -(2 ** -(math.log2(count) - 3)))

    found = [ratio(whole) ** power for power in range(1, whole + 1)]
    return found + [ratio(2 * whole) ** power for power in range(1, 2 * (heads - whole), 2)]


def gelu(x: Tensor) -> Tensor:
    """The tanh form with the constants of BLOOM."""
    return 0.5 * x * (1 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x)))


class Attention(nn.Module):
    """Heads with one fused projection whose output axis is (head, 3, size)."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(hidden, 3 * hidden)
        self.dense = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, bias: Tensor, past: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """``x`` [batch, length, hidden]; ``bias`` [batch, heads, length, past + length], which holds mask and ALiBi;
        ``past`` keys and values [batch, heads, past, size]. Gives the output, and the new keys and values
        [batch, heads, length, size]."""
        batch, length, hidden = x.shape
        size = hidden // self.heads
        parts = self.query_key_value(x).view(batch, length, self.heads, 3, size).permute(3, 0, 2, 1, 4)
        query, key, value = parts[0], parts[1], parts[2]
        keys, values = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        scores = query @ keys.transpose(2, 3) * (size**-0.5) + bias  # float32 from here, also in a network that is cast
        mixed = torch.softmax(scores, dim=-1).to(values.dtype) @ values
        return self.dense(mixed.transpose(1, 2).reshape(batch, length, hidden)), key, value


class MLP(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(hidden, 4 * hidden)
        self.dense_4h_to_h = nn.Linear(4 * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dense_4h_to_h(gelu(self.dense_h_to_4h(x)))
        return out


class Block(nn.Module):
    def __init__(self, hidden: int, heads: int, eps: float, after_norm: bool) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(hidden, eps)
        self.self_attention = Attention(hidden, heads)
        self.post_attention_layernorm = nn.LayerNorm(hidden, eps)
        self.mlp = MLP(hidden)
        self._after_norm = after_norm

    def forward(self, x: Tensor, bias: Tensor, past: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        a = self.input_layernorm(x)
        mixed, key, value = self.self_attention(a, bias, past)
        x = (a if self._after_norm else x) + mixed
        m = self.post_attention_layernorm(x)
        return (m if self._after_norm else x) + self.mlp(m), key, value


class Transformer(nn.Module):
    def __init__(self, vocabulary: int, hidden: int, layers: int, heads: int, eps: float, after_norm: bool) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocabulary, hidden)
        self.word_embeddings_layernorm = nn.LayerNorm(hidden, eps)
        self.h = nn.ModuleList(Block(hidden, heads, eps, after_norm) for _ in range(layers))
        self.ln_f = nn.LayerNorm(hidden, eps)


class Bloom(nn.Module):
    """The network. The head is the table of embeddings. Positions and softmax are in float32, whatever it is cast to.

    Parameters
    ----------
    apply_residual_connection_post_layernorm : residuals are the normalised values; no PULSE has it.
    """

    slopes: Tensor

    def __init__(
        self,
        *,
        vocab_size: int,
        hidden_size: int,
        n_layer: int,
        n_head: int,
        layer_norm_epsilon: float = 1e-5,
        apply_residual_connection_post_layernorm: bool = False,
    ) -> None:
        super().__init__()
        after = apply_residual_connection_post_layernorm
        self.heads, self.size = n_head, hidden_size // n_head
        self.transformer = Transformer(vocab_size, hidden_size, n_layer, n_head, layer_norm_epsilon, after)
        self.lm_head = nn.Linear(hidden_size, vocab_size, bias=False)
        self.lm_head.weight = self.transformer.word_embeddings.weight
        self.register_buffer("slopes", torch.tensor(slopes(n_head)), persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Bloom:
        before = self.slopes
        super()._apply(fn, recurse)
        if self.slopes.dtype != before.dtype:  # a far position needs all digits, also in a network that is cast
            self.slopes = before.to(self.slopes.device)
        return self

    def alibi(self, mask: Tensor) -> Tensor:
        """[batch, heads, keys] what every key adds to its scores, of ``mask`` [batch, keys] (1 where attended)."""
        position = (mask.cumsum(dim=1) - 1) * mask
        return self.slopes[None, :, None] * position[:, None].float()

    def embed(self, ids: Tensor) -> Tensor:
        """[batch, length, hidden]."""
        out: Tensor = self.transformer.word_embeddings_layernorm(self.transformer.word_embeddings(ids))
        return out

    def bias(self, past_mask: Tensor, mask: Tensor) -> Tensor:
        """[batch, heads, length, past + length]: ALiBi where a query may look, the least number where not."""
        whole = torch.cat([past_mask, mask], dim=1)
        past, total = past_mask.shape[1], whole.shape[1]
        before = torch.arange(total, device=mask.device)[None] <= torch.arange(past, total, device=mask.device)[:, None]
        may = before[None, None] & (whole[:, None, None] > 0)
        least = torch.finfo(torch.float32).min
        return torch.where(may, self.alibi(whole)[:, :, None], least)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Any]:
        """Everything of whole texts: ``embeddings``, ``layers`` (one a block), ``final``, ``logits``."""
        batch = ids.shape[0]
        bias = self.bias(mask[:, :0], mask)
        x = self.embed(ids)
        none = x.new_zeros(batch, self.heads, 0, self.size)
        found: dict[str, Any] = {"embeddings": x, "layers": []}
        for block in self.transformer.h:
            x, _, _ = block(x, bias, (none, none))
            found["layers"].append(x)
        found["final"] = self.transformer.ln_f(x)
        found["logits"] = self.lm_head(found["final"])
        return found


class Step(nn.Module):
    """The network with its cache as one graph that reads a prompt (many tokens) and continues it (one token).

    The past comes as [past, batch, layers, heads, size], so that a growing cache is the beginning of one array and
    nothing is copied for a step. A past has at least one slot: before the first step it is one that the mask hides.
    """

    def __init__(self, network: Bloom) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, input_ids: Tensor, mask: Tensor, past_mask: Tensor, past_keys: Tensor, past_values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``input_ids`` and ``mask`` [batch, length], ``past_mask`` [batch, past] int64. Gives logits of the token
        after the last column [batch, vocabulary], and keys and values of the new tokens
        [length, batch, layers, heads, size]."""
        network = self.network
        bias = network.bias(past_mask, mask)
        keys, values = past_keys.permute(2, 1, 3, 0, 4), past_values.permute(2, 1, 3, 0, 4)
        x = network.embed(input_ids)
        new_keys, new_values = [], []
        for number, block in enumerate(network.transformer.h):
            x, key, value = block(x, bias, (keys[number], values[number]))
            new_keys.append(key)
            new_values.append(value)
        logits = network.lm_head(network.transformer.ln_f(x[:, -1]))
        return logits, torch.stack(new_keys).permute(3, 1, 0, 2, 4), torch.stack(new_values).permute(3, 1, 0, 2, 4)
