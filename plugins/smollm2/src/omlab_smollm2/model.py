"""SmolLM2 in the pipeline of language models."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.resources import files as package_files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omlab.cards import Variant
from omlab.cases import Message, Text
from omlab.errors import WeightsError
from omlab.graphs import Graph, Tolerance
from omlab.model import Context
from omlab.vocabulary import Precision
from omlab_sdk.language.model import LanguageModel, Prompt, language_graph
from omlab_sdk.language.sampling import Sampling
from omlab_sdk.language.tokens import ByteTokenizer, FastTokenizer, Tokenizer
from omlab_smollm2 import chat
from omlab_smollm2.gguf import Gguf, llama_names, rotary_order

if TYPE_CHECKING:
    import torch

ASSET = "net"
#: As the file says; checked against it when an engine is made.
CONFIG: dict[str, Any] = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
_FACTS = {
    "vocab_size": "llama.vocab_size", "hidden_size": "llama.embedding_length",
    "intermediate_size": "llama.feed_forward_length", "num_hidden_layers": "llama.block_count",
    "num_attention_heads": "llama.attention.head_count", "num_key_value_heads": "llama.attention.head_count_kv",
    "max_position_embeddings": "llama.context_length", "rope_theta": "llama.rope.freq_base",
}  # fmt: skip
#: ``<|endoftext|>``: in the vocabulary, and never within a conversation.
PADDING = 0


class SmolLM2(LanguageModel):
    """Text in, text out; see the card. A variant's ``config`` has what differs from :data:`CONFIG`."""

    def graphs(self, variant: Variant) -> tuple[Graph, ...]:
        # With 135 million parameters little is redundant: int8 is as good as float32, int4 there for who asks for it.
        graph = language_graph(
            {**CONFIG, **variant.config, "prefer": "int8"}, ("omlab_smollm2.gguf", __name__),
            longest=CONFIG["max_position_embeddings"], tolerances={Precision.INT4: Tolerance(perplexity=1.35)},
        )  # fmt: skip
        return (graph,)

    def network(self, graph: Graph, variant: Variant, files: Mapping[str, Path]) -> torch.nn.Module:
        from omlab_sdk.language import llama

        path = files[ASSET]
        config = llama.configuration(**CONFIG)
        return llama.CausalLM(llama.filled(config, state(path), str(path)), PADDING).eval()

    def untrained(self, graph: Graph, variant: Variant) -> torch.nn.Module:
        from omlab_sdk.language import llama

        return llama.CausalLM(llama.fresh(llama.configuration(**{**CONFIG, **variant.config})), PADDING).eval()

    def small(self, variant: Variant) -> Variant:
        """Two narrow layers in place of thirty, of the same vocabulary."""
        return variant.configured(
            hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
        )

    def examples(self, graph: Graph, variant: Variant) -> Iterator[dict[str, np.ndarray]]:
        """Conversations of this model, as ids: on anything else its predictions mean little."""
        text = (package_files("omlab_smollm2") / "examples.json").read_text("utf-8")
        for ids in json.loads(text):
            yield {"input_ids": np.array([ids], np.int64)}

    def tokenizer(self, context: Context) -> Tokenizer:
        return tokenizer(context.files[ASSET]) if context.variant.weights else ByteTokenizer()

    def prompt(self, case: Text, tokenizer: Tokenizer, context: Context) -> Prompt:
        messages = list(case.messages)
        system = context.options.get("system")
        if system and messages[0].role != "system":
            messages.insert(0, Message(role="system", content=system))
        return Prompt(chat.prompt_ids(messages, tokenizer))

    def sampling(self, options: Mapping[str, Any], variant: Variant) -> Sampling:
        names = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")
        return Sampling(**{name: options[name] for name in names}, ends=(chat.END, PADDING))


def state(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in the names of the Llama layout, float32.

    Raises :class:`omlab.errors.WeightsError` for a file of another network.
    """
    import torch

    file = Gguf(path)
    for name, fact in _FACTS.items():
        if file.facts.get(fact) != CONFIG[name]:
            raise WeightsError(
                f"{path}: {fact} is {file.facts.get(fact)}, expected {CONFIG[name]}", remedy="It is another model"
            )
    found = {}
    heads = {"attn_q": CONFIG["num_attention_heads"], "attn_k": CONFIG["num_key_value_heads"]}
    for theirs, ours in llama_names(CONFIG["num_hidden_layers"]).items():
        values = file.tensor(theirs)
        part = theirs.split(".")[-2]
        found[ours] = torch.from_numpy(rotary_order(values, heads[part]) if part in heads else values)
    return found


def tokenizer(path: Path) -> Tokenizer:
    """The vocabulary in the GGUF file: byte-level BPE, every digit by itself."""
    facts = Gguf(path).facts
    try:
        pieces, merges = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.merges"]
    except KeyError as error:
        raise WeightsError(f"{path}: lacks {error}", remedy="It is another model") from None
    return FastTokenizer.byte_pairs(pieces, merges, {}, single_digits=True)
