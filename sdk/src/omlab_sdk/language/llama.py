"""Networks of the Llama layout through the transformers library. Needs torch; used when an engine is made."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omlab.errors import require
from omlab_sdk.checkpoints import load_into

#: Older files carry a table that follows from the configuration.
LEFT_OVER = (r".*rotary_emb\.inv_freq",)


class CausalLM(nn.Module):
    """A language network as a function of ids, as the parity gate wants it.

    Parameters
    ----------
    model : a causal language model of the transformers library, in eval mode.
    padding : id of a token that no text holds; it fills up shorter rows of a batch.
    """

    def __init__(self, model: Any, padding: int) -> None:
        super().__init__()
        self.model = model
        self.padding = padding
        if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
            compute_in_float32(model)

    @property
    def config(self) -> Any:
        """Configuration of the transformers library."""
        return self.model.config

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits [batch, length - length // 2 + 1, vocabulary] float32 of the token after the first half of
        ``input_ids`` [batch, length] and after each later one: an engine reads the first half at once and the rest
        one by one."""
        hidden = self.model.model(input_ids, use_cache=False).last_hidden_state
        logits: Tensor = self.model.lm_head(hidden[:, input_ids.shape[1] // 2 - 1 :])
        return logits.float()

    def save(self, folder: Path) -> None:
        """Write configuration and weights as the transformers library reads them."""
        self.model.save_pretrained(folder)


def compute_in_float32(model: nn.Module) -> None:
    """Let a model that is stored in 16 bits compute in float32, a layer at a time: the reference of 20 billion
    parameters would need 80 GB otherwise."""

    def widen(module: nn.Module, _: Any) -> None:
        module._stored = {name: p.data for name, p in module.named_parameters(recurse=False)}  # type: ignore[assignment]
        for _, parameter in module.named_parameters(recurse=False):
            parameter.data = parameter.data.float()

    def narrow(module: nn.Module, _: Any, __: Any) -> None:
        stored: Any = module._stored
        for name, parameter in module.named_parameters(recurse=False):
            parameter.data = stored[name]
        del module._stored

    for module in model.modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_pre_hook(widen)
            module.register_forward_hook(narrow)


def configuration(**values: Any) -> Any:
    """A ``LlamaConfig`` of keys as upstream's config.json writes them, of any version of the library."""
    transformers = require("transformers", needed_for="networks of the Llama layout", install="omlab-sdk[language]")
    values = {key: value for key, value in values.items() if value is not None}
    scaling = dict(values.pop("rope_scaling", None) or {})
    scaling.setdefault("rope_type", scaling.pop("type", "default"))
    scaling.pop("type", None)
    theta = values.pop("rope_theta", 10000.0)
    return transformers.LlamaConfig(
        **values, rope_parameters={**scaling, "rope_theta": theta}, architectures=["LlamaForCausalLM"],
        attn_implementation="eager",
    )  # fmt: skip


def empty(config: Any) -> Any:
    """The model of a configuration without memory for its weights (on the meta device)."""
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        return LlamaForCausalLM(config)


def fresh(config: Any) -> Any:
    """The model of a configuration with weights as constructed, in eval mode."""
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM(config).eval()


def filled(config: Any, state: Mapping[str, Tensor], name: str) -> Any:
    """The model of a configuration with the tensors of ``state`` themselves, not copied, in eval mode.

    Raises :class:`omlab.errors.WeightsError` where they do not fit.
    """
    model = empty(config)
    check = dict(state)
    if config.tie_word_embeddings:
        check.setdefault("lm_head.weight", check["model.embed_tokens.weight"])
    load_into(_Names(model), check, name=name, ignore=LEFT_OVER)
    own = set(model.state_dict())
    model.load_state_dict({k: v for k, v in check.items() if k in own}, strict=True, assign=True)
    if config.tie_word_embeddings:
        model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its table is no weight, and was on meta
    return model.eval()


class _Names(nn.Module):
    """Names and shapes of a model on the meta device, which can be compared with a file but not filled."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self._model.state_dict()

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return None


#: Names of InternLM's training repository -> those of its published form, which are Llama's.
_TRAINING: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"^embedding(\.word_embeddings)?\.weight$"), "model.embed_tokens.weight"),
    (re.compile(r"^norm\.weight$"), "model.norm.weight"),
    (re.compile(r"^head\.weight$"), "lm_head.weight"),
    (re.compile(r"^blocks\.(\d+)\.mixer\.out_proj\."), r"model.layers.\1.self_attn.o_proj."),
    (re.compile(r"^blocks\.(\d+)\.mlp\.w1\."), r"model.layers.\1.mlp.gate_proj."),
    (re.compile(r"^blocks\.(\d+)\.mlp\.w2\."), r"model.layers.\1.mlp.up_proj."),
    (re.compile(r"^blocks\.(\d+)\.mlp\.w3\."), r"model.layers.\1.mlp.down_proj."),
    (re.compile(r"^blocks\.(\d+)\.norm1\."), r"model.layers.\1.input_layernorm."),
    (re.compile(r"^blocks\.(\d+)\.norm2\."), r"model.layers.\1.post_attention_layernorm."),
)
_WQKV = re.compile(r"blocks\.(\d+)\.mixer\.Wqkv\.(weight|bias)")


def from_training(shards: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The state dict of checkpoints of InternLM's training repository, one a pipeline stage, in Llama's names.

    Layers are numbered from 0 in every stage; q, k and v lie stacked in three equal parts.
    """
    state: dict[str, Tensor] = {}
    first = 0
    for shard in shards:
        layers = 0
        for given, tensor in shard.items():
            name = given.removeprefix("model.")
            found = re.match(r"blocks\.(\d+)\.", name)
            if found:
                layers = max(layers, int(found[1]) + 1)
                name = f"blocks.{first + int(found[1])}." + name[found.end() :]
            stacked = _WQKV.fullmatch(name)
            if stacked:
                for part, piece in zip("qkv", tensor.chunk(3, dim=0), strict=True):
                    state[f"model.layers.{stacked[1]}.self_attn.{part}_proj.{stacked[2]}"] = piece.contiguous()
                continue
            state[functools.reduce(lambda text, rule: rule[0].sub(rule[1], text), _TRAINING, name)] = tensor
        first += layers
    return state
