"""Thin matrices beside attention projections learn; they and the head are kept, and merged when the network is run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from omlab.errors import UsageError
from omlab_sdk.adapting.trained import TrainedAdapter

if TYPE_CHECKING:
    from torch import Tensor, nn

    from omlab.loading import LoadedModel


class Lora(TrainedAdapter):
    """The adapter ``lora``."""

    sources: ClassVar[tuple[str, ...]] = (
        "omlab_sdk.adapting.networks", "omlab_sdk.networks.low_rank", "omlab_lora.adapter",
    )  # fmt: skip

    def plan(self, network: nn.Module, base: LoadedModel, options: Mapping[str, Any]) -> dict[str, Any]:
        """Rank, alpha, and which layers. Raises :class:`omlab.errors.UsageError` for values out of range."""
        if options["rank"] < 1 or options["alpha"] <= 0 or not 0 <= options["dropout"] < 1:
            raise UsageError(
                f"rank must be at least 1, alpha greater than 0 and dropout within 0 to 1, found {options['rank']}, "
                f"{options['alpha']}, {options['dropout']}"
            )
        return {key: options[key] for key in ("rank", "alpha", "dropout", "targets")}

    def assemble(self, network: nn.Module, plan: Mapping[str, Any]) -> nn.Module:
        """With thin matrices at nothing, and a head. Raises :class:`omlab.errors.UsageError` where no layer fits."""
        from omlab_sdk.networks.low_rank import add_low_rank

        add_low_rank(network, plan["targets"], rank=plan["rank"], alpha=plan["alpha"], dropout=plan["dropout"])
        return super().assemble(network, plan)

    def learn(self, network: nn.Module, options: Mapping[str, Any]) -> None:
        """The thin matrices and the head."""
        own = self.stored(network)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in own)

    def stored(self, network: nn.Module) -> dict[str, Tensor]:
        """The thin matrices and the head."""
        from omlab_sdk.adapting.networks import head_names
        from omlab_sdk.networks.low_rank import low_rank_names

        names = {*low_rank_names(network), *head_names(network)}
        return {name: p.detach() for name, p in network.named_parameters() if name in names}

    def finish(self, network: nn.Module) -> nn.Module:
        """With the products added to the layers: a plain network again."""
        from omlab_sdk.networks.low_rank import merge_low_rank

        merge_low_rank(network)
        return network
