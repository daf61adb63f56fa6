"""PRIME's networks: the encoder of ESM-2 with a head for masked residues and one for temperatures.

Generation C is what the authors publish since July 2024; generation B ("legacy") came before. Names of parameters are
those of the published files.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omlab_prime.vocabulary import MASK, PAD

#: Published size.
BASE: dict[str, Any] = {
    "hidden_size": 1280, "num_hidden_layers": 33, "num_attention_heads": 20, "intermediate_size": 5120,
}  # fmt: skip
#: Share of residues that pre-training hid from the network: 15 % chosen, of them 80 % replaced by the mask token.
HIDDEN = 0.15 * 0.8


class Rotary(nn.Module):
    """Rotary positions, half-split: pairs (j, j + width / 2) turn by position * 10000^(-2 j / width).

    The angles stay in float32 also where the network is cast: a far position needs all of their digits.
    """

    inv_freq: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float32) / width))

    def _apply(self, fn: Any, recurse: bool = True) -> Rotary:
        before = self.inv_freq
        super()._apply(fn, recurse)
        if self.inv_freq.dtype != before.dtype:
            self.inv_freq = before.to(self.inv_freq.device)
        return self

    def forward(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines, each [tokens, width] float32."""
        angles = torch.arange(length, dtype=torch.float32, device=self.inv_freq.device)[:, None] * self.inv_freq
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()


def _turn(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    one, other = x.chunk(2, dim=-1)
    return x * cosines + torch.cat([-other, one], dim=-1) * sines


class SelfAttention(nn.Module):
    """Queries, keys and values; the query is scaled before it is turned."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.rotary_embeddings = Rotary(width // heads)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """[batch, tokens, width] to the same; ``hidden`` [batch, 1, 1, tokens] is added to the logits."""
        batch, length, width = x.shape
        query, key, value = (
            layer(x).view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        cosines, sines = (table.to(x.dtype) for table in self.rotary_embeddings(length))
        query = _turn(query * (width // self.heads) ** -0.5, cosines, sines)
        found = F.scaled_dot_product_attention(query, _turn(key, cosines, sines), value, hidden, scale=1.0)
        return found.transpose(1, 2).reshape(batch, length, width)


class _Dense(nn.Module):
    """A linear layer under the name ``dense``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Attention with the norm before it."""

    def __init__(self, width: int, heads: int, epsilon: float) -> None:
        super().__init__()
        self.add_module("self", SelfAttention(width, heads))
        self.output = _Dense(width, width)
        self.LayerNorm = nn.LayerNorm(width, epsilon)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        return x + self.output(self.get_submodule("self")(self.LayerNorm(x), hidden))


class Layer(nn.Module):
    """Attention, then a perceptron, each with its norm before it."""

    def __init__(self, width: int, heads: int, inner: int, epsilon: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, epsilon)
        self.intermediate = _Dense(width, inner)
        self.output = _Dense(inner, width)
        self.LayerNorm = nn.LayerNorm(width, epsilon)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        x = self.attention(x, hidden)
        return x + self.output(F.gelu(self.intermediate(self.LayerNorm(x))))


class Embeddings(nn.Module):
    """Residues as vectors, scaled by the share of hidden residues."""

    def __init__(self, vocabulary: int, width: int, token_dropout: bool | float) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocabulary, width, padding_idx=PAD)
        #: ``True``: by the share that is masked now; a number: always by this.
        self.token_dropout = token_dropout

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[batch, tokens, width]; masked residues and padding are zero."""
        x = self.word_embeddings(ids)
        if self.token_dropout is True:
            masked = ids == MASK
            x = x.masked_fill(masked[..., None], 0.0)
            share = masked.sum(-1).float() / mask.sum(-1).float()
            x = x * ((1 - HIDDEN) / (1 - share)).to(x.dtype)[:, None, None]
        elif self.token_dropout is not False:
            x = x * self.token_dropout
        return x * mask[..., None].to(x.dtype)


class Layers(nn.Module):
    """The layers and the norm behind them."""

    def __init__(self, width: int, depth: int, heads: int, inner: int, epsilon: float) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(width, heads, inner, epsilon) for _ in range(depth))
        self.emb_layer_norm_after = nn.LayerNorm(width, epsilon)


class Encoder(nn.Module):
    """ESM-2's encoder."""

    def __init__(
        self,
        hidden_size: int,
        num_hidden_layers: int,
        num_attention_heads: int,
        intermediate_size: int,
        *,
        vocab_size: int = 33,
        layer_norm_eps: float = 1e-5,
        token_dropout: bool | float = True,
    ) -> None:
        super().__init__()
        self.embeddings = Embeddings(vocab_size, hidden_size, token_dropout)
        self.encoder = Layers(hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, layer_norm_eps)

    def steps(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """Embeddings, the output of every layer, and the last one normalised; each [batch, tokens, width]."""
        found = [self.embeddings(ids, mask)]
        kind = found[0].dtype
        hidden = (1.0 - mask[:, None, None, :].to(kind)) * torch.finfo(kind).min
        for layer in self.encoder.layer:
            found.append(layer(found[-1], hidden))
        return [*found, self.encoder.emb_layer_norm_after(found[-1])]

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """int64 [batch, tokens] twice to float32 [batch, tokens, width]."""
        return self.steps(ids, mask)[-1]


class MaskedHead(nn.Module):
    """Residues from hidden states; tied to a table of embeddings, or with a decoder of its own."""

    def __init__(
        self, width: int, classes: int, *, epsilon: float = 1e-5, bias: bool = True, decoder: bool = False
    ) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width, bias=bias)
        self.layer_norm = nn.LayerNorm(width, epsilon)
        self.bias = nn.Parameter(torch.zeros(classes))
        self.decoder = nn.Linear(width, classes, bias=False) if decoder else None

    def forward(self, hidden: Tensor, table: Tensor | None = None) -> Tensor:
        """[batch, tokens, width] to [batch, tokens, classes]."""
        x = self.layer_norm(F.gelu(self.dense(hidden)))
        return F.linear(x, self.decoder.weight if self.decoder is not None else table, self.bias)  # type: ignore[arg-type]


class TokenWeights(nn.Module):
    """A weight for every token, padding none; and, in generation C, a linear layer on the weighted sum."""

    def __init__(self, width: int, *, out: bool) -> None:
        super().__init__()
        self.layer = nn.Conv1d(width, 1, 1)
        self.out = nn.Linear(width, width) if out else None

    def weights(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """[batch, tokens], summing to one over what is no padding."""
        scores = self.layer(hidden.transpose(1, 2))[:, 0]
        return scores.masked_fill(mask == 0, float("-inf")).softmax(dim=-1)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """[batch, width]."""
        pooled = (self.weights(hidden, mask)[..., None] * hidden).sum(dim=1)
        return pooled if self.out is None else self.out(pooled)


class Perceptron(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class SequencePooling(nn.Module):
    """One vector a sequence."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.attention1d = TokenWeights(width, out=True)
        self.ffn = Perceptron(width, inner)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """[batch, width]."""
        pooled = self.attention1d(hidden, mask)
        return pooled + self.ffn(pooled)


class Prime(nn.Module):
    """Generation C.

    Parameters
    ----------
    structure_vocab_size : classes of the auxiliary structure head, which only pre-training used; 0 for none.
    residues, temperature : which of the two heads it has; Prime_690M and what was tuned from it have both.
    others : those of :class:`Encoder`.
    """

    def __init__(
        self, *, structure_vocab_size: int = 100, residues: bool = True, temperature: bool = True, **others: Any
    ) -> None:
        super().__init__()
        self._residues, self._temperature = residues, temperature
        width, inner = others["hidden_size"], others["intermediate_size"]
        epsilon = others.get("layer_norm_eps", 1e-5)
        self.pro_prime = Encoder(**others)
        if residues:
            self.lm_head = MaskedHead(width, others.get("vocab_size", 33), epsilon=epsilon)
        if temperature:
            self.sequence_pooling = SequencePooling(width, inner)
            self.value_projection = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
        if structure_vocab_size:
            self.structure_head = MaskedHead(width, structure_vocab_size, epsilon=epsilon, bias=False, decoder=True)

    def logits(self, hidden: Tensor) -> Tensor:
        """[batch, tokens, vocabulary] of the last hidden states."""
        return self.lm_head(hidden, self.pro_prime.embeddings.word_embeddings.weight)  # type: ignore[no-any-return]

    def temperature(self, pooled: Tensor) -> Tensor:
        """[batch] degrees Celsius of pooled sequences."""
        return self.value_projection(pooled)[:, 0]  # type: ignore[no-any-return]

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Logits [batch, tokens, vocabulary], hidden states [batch, tokens, width], sequences [batch, width] and
        temperatures [batch] in degrees Celsius; without those of heads that it has not."""
        hidden = self.pro_prime(ids, mask)
        found = [self.logits(hidden), hidden] if self._residues else [hidden]
        if self._temperature:
            pooled = self.sequence_pooling(hidden, mask)
            found += [pooled, self.temperature(pooled)]
        return tuple(found)


class Regression(nn.Module):
    """The head of a legacy temperature model."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention1d = TokenWeights(width, out=False)
        self.linear, self.final = nn.Linear(width, width), nn.Linear(width, 1)

    def pooled(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """[batch, width]."""
        return self.attention1d(hidden, mask)  # type: ignore[no-any-return]

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """[batch, 1] degrees Celsius."""
        return self.final(torch.tanh(self.linear(self.pooled(hidden, mask))))  # type: ignore[no-any-return]


class Legacy(nn.Module):
    """Generation B: 25 residues are known, the scale of the embeddings is constant and the decoder is its own.

    Parameters
    ----------
    regression : a temperature model; without it a masked language model.
    others : those of :class:`Encoder`.
    """

    def __init__(self, *, regression: bool = False, **others: Any) -> None:
        super().__init__()
        width = others["hidden_size"]
        self.model = Encoder(**{"vocab_size": 25, "token_dropout": 1 - HIDDEN} | others)
        self.lm_head = None if regression else MaskedHead(width, 33, decoder=True)
        self.regression = Regression(width) if regression else None

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Hidden states with logits, or (``regression``) with pooled sequences and temperatures [batch]."""
        hidden = self.model(ids, mask)
        if self.regression is None:
            assert self.lm_head is not None
            return self.lm_head(hidden), hidden
        return hidden, self.regression.pooled(hidden, mask), self.regression(hidden, mask)[:, 0]
