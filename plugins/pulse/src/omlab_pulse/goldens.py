"""How golden files of PULSE map onto the networks and steps of this package."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from omlab.cases import Message
from omlab_pulse import dialogue
from omlab_pulse.bloom import Bloom
from omlab_sdk.golden import Golden, GoldenError, seed_module
from omlab_sdk.language import llama
from omlab_sdk.language.sampling import Sampling, probabilities
from omlab_sdk.language.tokens import ByteTokenizer

GOLDENS = ("pulse",)
#: Names that configurations of the library and of InternLM have for the same thing.
_ALIASES = {"n_embed": "hidden_size", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
_BLOOM = {
    "vocab_size", "hidden_size", "n_layer", "n_head", "layer_norm_epsilon", "apply_residual_connection_post_layernorm",
}  # fmt: skip
_LLAMA = {
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling", "attention_bias",
    "mlp_bias", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "hidden_act", "head_dim",
}  # fmt: skip
_KINDS = ("20b", "7b")


def compute(golden: Golden) -> Mapping[str, np.ndarray]:
    """Every output that the file may ask for. Raises :class:`GoldenError` for a step that this package has not."""
    entry = str(golden.meta.get("entry", ""))
    with torch.no_grad():
        if "dialogue" in golden.meta:
            return _dialogue(golden)
        if "top_k" in golden.kwargs or "temperature" in golden.kwargs:
            return _sampling(golden)
        if "Bloom" in entry:
            return _bloom(golden)
        if "Llama" in entry or "InternLM" in entry:
            return _llama(golden)
    raise GoldenError(f"{golden.path}: is of '{entry}', pulse has Llama, InternLM, BLOOM, sampling and prompts")


def llama_config(kwargs: Mapping[str, Any]) -> Any:
    """Configuration from arguments of ``LlamaConfig`` or of InternLM's own class."""
    values = {key: value for key, value in kwargs.items() if key in _LLAMA}
    if "bias" in kwargs:
        values.setdefault("attention_bias", kwargs["bias"])
    rotary = kwargs.get("rotary")
    if rotary:
        values.setdefault("rope_theta", rotary.get("base", 10000.0))
        if rotary.get("type") == "dynamic":
            values.setdefault("rope_scaling", {"type": "dynamic", "factor": rotary.get("scaling_factor", 1.0)})
    if "rope_alpha" in kwargs:
        from omlab_sdk.language.rope import ntk_theta

        head = values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"]
        values["rope_theta"] = ntk_theta(values.get("rope_theta", 10000.0), head, kwargs["rope_alpha"])
    return llama.configuration(**values)


def bloom_network(kwargs: Mapping[str, Any]) -> Bloom:
    """Network from arguments of ``BloomConfig``."""
    renamed = {_ALIASES.get(key, key): value for key, value in kwargs.items()}
    return Bloom(**{key: value for key, value in renamed.items() if key in _BLOOM}).eval()


def _seed(network: torch.nn.Module, golden: Golden, *, tied: bool) -> None:
    """By the rule; a tied head is the table of embeddings and has no numbers of its own."""
    seed_module(network, [*golden.kept, "lm_head.weight"] if tied else golden.kept)


def _ids(golden: Golden) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.from_numpy(golden.input("input_ids").astype(np.int64))
    mask = golden.literal.get("attention_mask")
    return ids, torch.ones_like(ids) if mask is None else torch.from_numpy(mask.astype(np.int64))


def _llama(golden: Golden) -> dict[str, np.ndarray]:
    network = llama.fresh(llama_config(golden.kwargs))
    _seed(network, golden, tied=network.config.tie_word_embeddings)
    ids, mask = _ids(golden)
    # InternLM's own code numbers all columns; only differences of positions and the greatest of them matter.
    own = "InternLM" in str(golden.meta.get("entry", ""))
    positions = torch.arange(ids.shape[1])[None].expand_as(ids) if own else (mask.cumsum(1) - 1).clamp(min=0)

    def run(ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> Any:
        return network(
            input_ids=ids, attention_mask=mask, position_ids=positions, output_hidden_states=True, use_cache=False
        )

    found = run(ids, mask, positions)
    attended = mask.bool()
    outputs = {"embeddings": network.model.embed_tokens(ids), "final": found.hidden_states[-1][attended]}
    outputs["logits"] = found.logits[attended]
    for number, hidden in enumerate(found.hidden_states[1:-1]):
        outputs[f"layer{number}"] = hidden[attended]

    def following(text: torch.Tensor) -> int:
        logits = run(text[None], torch.ones_like(text)[None], torch.arange(len(text))[None]).logits
        return int(logits[0, -1].argmax())

    return _arrays(outputs) | _greedy(golden, ids[0][attended[0]], following)


def _bloom(golden: Golden) -> dict[str, np.ndarray]:
    network = bloom_network(golden.kwargs)
    _seed(network, golden, tied=True)
    ids, mask = _ids(golden)
    found = network(ids, mask)
    attended = mask.bool()
    outputs = {name: found[name][attended] for name in ("embeddings", "final", "logits")}
    outputs |= {f"layer{number}": hidden[attended] for number, hidden in enumerate(found["layers"])}
    outputs["alibi"] = network.alibi(mask)

    def following(text: torch.Tensor) -> int:
        return int(network(text[None], torch.ones_like(text)[None])["logits"][0, -1].argmax())

    return _arrays(outputs) | _greedy(golden, ids[0][attended[0]], following)


def _arrays(outputs: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in outputs.items()}


def _greedy(golden: Golden, text: torch.Tensor, following: Any) -> dict[str, np.ndarray]:
    """The most probable continuation, everything computed anew at every step."""
    mark = golden.outputs.get("greedy")
    if mark is None:
        return {}
    chosen: list[int] = []
    for _ in range(mark.shape[0]):
        chosen.append(following(text))
        text = torch.cat([text, torch.tensor(chosen[-1:])])
    return {"greedy": np.array(chosen)}


def _sampling(golden: Golden) -> dict[str, np.ndarray]:
    kwargs = golden.kwargs
    logits = np.array(golden.input("logits"), np.float32)
    for row, column, value in re.findall(
        r"logits\[(\d+),\s*(\d+)\]\s*=\s*(-?[\d.]+)", str(golden.meta.get("inputs", {}).get("logits", {}))
    ):
        logits[int(row), int(column)] = float(value)
    eos = kwargs.get("eos", dialogue.END)
    may_end = kwargs.get("current_length", 0) >= kwargs.get("min_length", 0)
    found = {}
    settings = {"demo": kwargs, **{key: value for key, value in kwargs.items() if isinstance(value, Mapping)}}
    for name, values in settings.items():
        sampling = Sampling(
            temperature=values.get("temperature", 1.0), top_k=values.get("top_k") or 0, top_p=values.get("top_p", 1.0),
            ends=tuple(eos) if isinstance(eos, list) else (eos,),
        )  # fmt: skip
        found[f"probs_{name}"] = probabilities(logits, sampling, may_end=may_end)
    return found


def _dialogue(golden: Golden) -> dict[str, np.ndarray]:
    talk = golden.meta["dialogue"]
    found: dict[str, np.ndarray] = {}
    for kind in _KINDS:
        tokenizer = ByteTokenizer(begin=1 if kind == "20b" else None)
        for number, ids in enumerate(_command_line(talk, tokenizer)):
            found[f"cli_{kind}_{number}"] = np.array(ids)
        for number, ids in enumerate(_web(talk, tokenizer)):
            found[f"web_{kind}_{number}"] = np.array(ids)
    return found


def _command_line(talk: Mapping[str, Any], tokenizer: ByteTokenizer) -> list[list[int]]:
    """Ids of every turn of upstream's command line, given what was typed and answered."""
    arguments = list(talk.get("argv", ()))
    shown = arguments[arguments.index("--model_type") + 1] if "--model_type" in arguments else "在线问诊"
    replies = iter(talk.get("replies", ()))
    turns: list[Message] = []
    prompts = []
    bare = True
    for line in (line.strip() for line in talk.get("lines", ())):
        if line == "stop":
            break
        if line == "clear":
            turns, bare = [], False
        elif line:
            turns.append(Message(role="user", content=line))
            prompt = dialogue.prompt_ids(turns, tokenizer, dialogue.SHOWN[shown], bare_start=bare)
            prompts.append(prompt.ids)
            turns.append(Message(role="assistant", content=next(replies)))
    return prompts


def _web(talk: Mapping[str, Any], tokenizer: ByteTokenizer) -> list[list[int]]:
    role = dialogue.SHOWN[talk.get("model_type", "医学知识QA")]
    turns: list[Message] = []
    prompts = []
    for text, reply in zip(talk.get("turns", ()), talk.get("wreplies", ()), strict=False):
        turns.append(Message(role="user", content=dialogue.web_text(text)))
        prompts.append(dialogue.prompt_ids(turns, tokenizer, role).ids)
        turns.append(Message(role="assistant", content=reply))
    return prompts
