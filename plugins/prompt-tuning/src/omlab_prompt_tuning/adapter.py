"""Tokens learn; they and the head are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from omlab.errors import UsageError
from omlab_sdk.adapting.trained import TrainedAdapter

if TYPE_CHECKING:
    from torch import Tensor, nn

    from omlab.loading import LoadedModel


class PromptTuning(TrainedAdapter):
    """The adapter ``prompt-tuning``."""

    sources: ClassVar[tuple[str, ...]] = ("omlab_sdk.adapting.networks", "omlab_prompt_tuning.network")

    def plan(self, network: nn.Module, base: LoadedModel, options: Mapping[str, Any]) -> dict[str, Any]:
        """How many tokens, and where. Raises :class:`omlab.errors.UsageError` for values out of range, and for a
        network that is no vision transformer or whose blocks do not take more tokens."""
        from omlab_prompt_tuning.network import check

        if options["prompts"] < 1 or not 0 <= options["dropout"] < 1:
            raise UsageError(
                f"at least one prompt is needed and dropout lies within 0 to 1, found {options['prompts']}, "
                f"{options['dropout']}"
            )
        check(network, base)
        return {key: options[key] for key in ("prompts", "depth", "dropout")}

    def assemble(self, network: nn.Module, plan: Mapping[str, Any]) -> nn.Module:
        """With tokens drawn at random, and a head."""
        from omlab_prompt_tuning.network import add_prompts

        add_prompts(network, plan["prompts"], deep=plan["depth"] == "deep", dropout=plan["dropout"])
        return super().assemble(network, plan)

    def learn(self, network: nn.Module, options: Mapping[str, Any]) -> None:
        """The tokens and the head."""
        own = self.stored(network)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in own)

    def stored(self, network: nn.Module) -> dict[str, Tensor]:
        """The tokens and the head."""
        from omlab_prompt_tuning.network import prompt_names
        from omlab_sdk.adapting.networks import head_names

        names = {*prompt_names(network), *head_names(network)}
        return {name: p.detach() for name, p in network.named_parameters() if name in names}
