"""Tokens that are learnt, put beside those of the image at the entrance of the blocks (Jia et al. 2022)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omlab.errors import UsageError
from omlab_sdk.adapting.capture import only_graph
from omlab_sdk.adapting.networks import transformer_of

if TYPE_CHECKING:
    from omlab.loading import LoadedModel


class Prompted(nn.Module):
    """A block with prompts: [batch, tokens, width] to the same.

    The prompts stand behind the other tokens. Upstream puts them after the class token; attention does not mind the
    order of tokens, and here what is behind can be cut off without knowing what is in front. They are taken away after
    the last block, so that the network pools as it always did.

    Parameters
    ----------
    count : prompts.
    own : the block brings prompts of its own, in place of those that come in.
    first, last : comes in without prompts; goes out without.
    """

    def __init__(
        self, block: nn.Module, width: int, count: int, spread: float, *, own: bool, first: bool, last: bool,
        dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.block, self.count, self.first, self.last = block, count, first, last
        self.dropout = nn.Dropout(dropout)
        self.prompts = nn.Parameter(torch.empty(1, count, width).uniform_(-spread, spread)) if own else None

    def forward(self, x: Tensor, *others: Any, **named: Any) -> Tensor:
        if self.prompts is not None:
            plain = x if self.first else x[:, : -self.count]
            x = torch.cat([plain, self.dropout(self.prompts.expand(x.shape[0], -1, -1))], dim=1)
        tokens = x.shape[1]
        others = tuple(_widened(value, tokens, self.count) for value in others)
        named = {name: _widened(value, tokens, self.count) for name, value in named.items()}
        out = cast(Tensor, self.block(x, *others, **named))
        return out[:, : -self.count] if self.last else out


def _widened(value: Any, tokens: int, count: int) -> Any:
    """A bias of attention [..., tokens, tokens] with nothing for the prompts; all else as it is."""
    if isinstance(value, Tensor) and value.ndim >= 2 and value.shape[-1] == value.shape[-2] == tokens - count:
        return F.pad(value, (0, count, 0, count))
    return value


def add_prompts(network: nn.Module, count: int, *, deep: bool, dropout: float = 0.0) -> int:
    """Put prompts to the blocks of the network's transformer: to the first, or to each; gives how many blocks have
    some. They are drawn evenly, as widely as the paper has it."""
    transformer = transformer_of(network, type(network).__name__)
    blocks = cast(nn.ModuleList, transformer.blocks)
    width, patch = _width(transformer), _patch(transformer)
    spread = math.sqrt(6.0 / (3 * patch + width))
    for place, block in enumerate(blocks):
        blocks[place] = Prompted(
            block, width, count, spread, own=deep or place == 0, first=place == 0, last=place + 1 == len(blocks),
            dropout=dropout,
        )  # fmt: skip
    return len(blocks) if deep else 1


def prompt_names(network: nn.Module) -> list[str]:
    """Parameters that are prompts."""
    inside = {name for name, module in network.named_modules() if isinstance(module, Prompted)}
    return [f"{name}.prompts" for name in sorted(inside) if f"{name}.prompts" in dict(network.named_parameters())]


def check(network: nn.Module, base: LoadedModel) -> None:
    """Raise :class:`omlab.errors.UsageError` for a network that prompts cannot be put to."""
    transformer = transformer_of(network, base.card.name)
    seen: list[Any] = []
    blocks = cast(nn.ModuleList, transformer.blocks)
    hook = blocks[0].register_forward_pre_hook(lambda _m, given, named: seen.append((given, named)), with_kwargs=True)
    graph = only_graph(base.model, base.variant)
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(graph.inputs[0].concrete()))
            given, named = seen[0]
            Prompted(blocks[0], _width(transformer), 2, 0.1, own=True, first=True, last=True, dropout=0.0)(
                *given, **named
            )
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise UsageError(
            f"the blocks of '{base.card.name}' do not take more tokens than those of the image: "
            f"{str(error).splitlines()[0]}",
            remedy="Use lora or fine-tune",
        ) from None
    finally:
        hook.remove()


def _width(transformer: nn.Module) -> int:
    for module in transformer.blocks.modules():  # type: ignore[union-attr]
        if isinstance(module, nn.LayerNorm):
            return int(module.normalized_shape[-1])
    raise UsageError("the blocks of the network have no LayerNorm, by which their width is known")


def _patch(transformer: nn.Module) -> int:
    """Pixels of a patch."""
    for module in transformer.patch_embed.modules():  # type: ignore[union-attr]
        if isinstance(module, nn.Conv2d):
            return math.prod(module.kernel_size)
    return 256
