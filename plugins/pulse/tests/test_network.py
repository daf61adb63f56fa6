"""The networks and steps against upstream's golden files, names at full size, and the parts that no golden covers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from omlab import Message  # noqa: E402
from omlab.errors import InputError  # noqa: E402
from omlab_pulse import dialogue, finetuning, goldens  # noqa: E402
from omlab_pulse.bloom import Bloom, Step, slopes  # noqa: E402
from omlab_sdk.golden import Golden, seed_module, verify_file  # noqa: E402
from omlab_sdk.language import llama  # noqa: E402
from omlab_sdk.language.rope import ntk_theta, theta_for  # noqa: E402
from omlab_sdk.language.tokens import ByteTokenizer  # noqa: E402

GOLDENS = Path(__file__).parents[1] / "goldens"


@pytest.mark.parametrize("path", sorted(GOLDENS.glob("*.npz")), ids=lambda path: path.stem)
def test_golden(path: Path) -> None:
    rows = verify_file(path)
    assert rows and max(row.error for row in rows) < 1e-5, rows


def entries(name: str) -> dict[str, list[int]]:
    with gzip.open(GOLDENS / f"{name}.keys.json.gz") as file:
        return {key: value[0] for key, value in json.load(file).items()}


def shapes(network: Any) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in network.state_dict().items()}


def test_names_at_full_size() -> None:
    from importlib.resources import files
    from tomllib import loads

    variants = loads((files("omlab_pulse") / "omlab.toml").read_text("utf-8"))["model"][0]["variants"]
    large, small = ({k: v for k, v in variant["config"].items() if k != "layout"} for variant in variants)
    assert shapes(llama.empty(llama.configuration(**large))) == entries("pulse-20b")
    with torch.device("meta"):
        assert shapes(Bloom(**small)) == entries("pulse-7b")
    internlm = {
        "vocab_size": 103168, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "bias": True,
        "num_attention_heads": 32, "max_position_embeddings": 2048, "rotary": {"base": 10000, "type": "dynamic"},
    }  # fmt: skip
    config = goldens.llama_config(internlm)
    assert shapes(llama.empty(config)) == entries("pulse-internlm-7b-as-llama")
    assert theta_for(config, 4096) == pytest.approx(ntk_theta(10000, 128, 2.0))
    assert large["rope_theta"] == pytest.approx(ntk_theta(10000, 128, 8.0), rel=1e-12)


def test_slopes_of_heads_that_are_no_power_of_two() -> None:
    assert slopes(4) == [2**-2, 2**-4, 2**-6, 2**-8]
    assert slopes(6) == [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]


@pytest.mark.parametrize("heads", [4, 6])
def test_bloom_is_the_librarys_and_its_cache_changes_nothing(heads: int) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    arguments = {"vocab_size": 160, "hidden_size": 48, "n_layer": 3, "n_head": heads}
    network = Bloom(**arguments).eval()
    seed_module(network, ["lm_head.weight"])
    theirs = BloomForCausalLM(BloomConfig(**arguments, attn_implementation="eager")).eval()
    theirs.load_state_dict(network.state_dict())
    ids = torch.from_numpy(np.random.default_rng(0).integers(4, 160, (2, 12)))
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    with torch.no_grad():
        whole = network(ids, mask)["logits"]
        reference = theirs(input_ids=ids, attention_mask=mask).logits
        assert torch.allclose(whole[mask.bool()], reference[mask.bool()], atol=1e-5)
        step, none = Step(network), torch.zeros(1, 2, 3, heads, 48 // heads)
        hidden = torch.zeros(2, 1, dtype=torch.int64)
        _, keys, values = step(ids[:, :9], mask[:, :9], hidden, none, none)
        past = torch.cat([hidden, mask[:, :9]], dim=1)
        logits, _, _ = step(ids[:, 9:], mask[:, 9:], past, torch.cat([none, keys]), torch.cat([none, values]))
    assert torch.allclose(logits, whole[:, -1], atol=1e-5)


@pytest.mark.parametrize(("kind", "limit"), [(torch.bfloat16, 5e-2), (torch.float16, 5e-3)])
def test_bloom_that_is_cast_to_half_precision_says_the_same(kind: Any, limit: float) -> None:
    network = Bloom(vocab_size=160, hidden_size=48, n_layer=2, n_head=6).eval()
    seed_module(network, ["lm_head.weight"])
    ids = torch.from_numpy(np.random.default_rng(0).integers(4, 160, (1, 600)))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        whole = network(ids, mask)["logits"][:, -1]
        network.to(kind)
        none, hidden = torch.zeros(1, 1, 2, 6, 8, dtype=kind), torch.zeros(1, 1, dtype=torch.int64)
        logits, keys, _ = Step(network)(ids, mask, hidden, none, none)
    assert logits.dtype == keys.dtype == kind and network.slopes.dtype == torch.float32
    assert float((logits.float() - whole).norm() / whole.norm()) < limit


def test_training_checkpoints_of_internlm_become_llamas() -> None:
    config = llama.configuration(
        vocab_size=160, hidden_size=64, intermediate_size=176, num_hidden_layers=3, num_attention_heads=4,
        attention_bias=True, max_position_embeddings=32,
    )  # fmt: skip
    network = seed_module(llama.fresh(config))
    state = network.state_dict()

    def stage(layers: range, first: bool, last: bool) -> dict[str, Any]:
        found = {"model.embedding.weight": state["model.embed_tokens.weight"]} if first else {}
        for number, layer in enumerate(layers):
            at, to = f"model.layers.{layer}.", f"model.blocks.{number}."
            for kind in ("weight", "bias"):
                parts = [state[f"{at}self_attn.{part}_proj.{kind}"] for part in "qkv"]
                found[f"{to}mixer.Wqkv.{kind}"] = torch.cat(parts)
                found[f"{to}mixer.out_proj.{kind}"] = state[f"{at}self_attn.o_proj.{kind}"]
            for ours, part in (("w1", "gate"), ("w2", "up"), ("w3", "down")):
                found[f"{to}mlp.{ours}.weight"] = state[f"{at}mlp.{part}_proj.weight"]
            found[f"{to}norm1.weight"] = state[f"{at}input_layernorm.weight"]
            found[f"{to}norm2.weight"] = state[f"{at}post_attention_layernorm.weight"]
        if last:
            found |= {"model.norm.weight": state["model.norm.weight"], "model.head.weight": state["lm_head.weight"]}
        return found

    again = llama.from_training([stage(range(2), True, False), stage(range(2, 3), False, True)])
    assert set(again) == set(state)
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_other_arguments_of_golden_files() -> None:
    """Files that are not here may have them: InternLM's own names, an alpha, other numbers of BLOOM and sampling."""
    own = {"hidden_size": 64, "num_attention_heads": 4, "bias": True, "rotary": {"base": 5000, "type": "dynamic"}}
    config = goldens.llama_config({**own, "vocab_size": 160, "intermediate_size": 64, "num_hidden_layers": 1})
    assert config.attention_bias and config.rope_parameters["rope_theta"] == 5000
    assert config.rope_parameters["rope_type"] == "dynamic" and config.rope_parameters["factor"] == 1.0
    scaled = goldens.llama_config({"hidden_size": 64, "num_attention_heads": 4, "rope_alpha": 8, "vocab_size": 9})
    assert scaled.rope_parameters["rope_theta"] == pytest.approx(107672.01541058847)
    network = goldens.bloom_network({"vocab_size": 99, "n_embed": 32, "num_hidden_layers": 1, "num_attention_heads": 2})
    assert network.heads == 2 and network.size == 16
    meta = {
        "model": "pulse", "inputs": {"logits": {"shape": [2, 9], "scale": 2.0, "then": "logits[1, 4] = -3.5"}},
        "kwargs": {"temperature": 1.0, "top_k": 3, "top_p": 1.0, "eos": [1, 2], "other": {"temperature": 2.0}},
    }  # fmt: skip
    found = goldens.compute(Golden.make(meta, {"probs_demo": np.zeros(1), "probs_other": np.zeros(1)}))
    assert (found["probs_demo"] > 0).sum() == 6 and found["probs_demo"][1, 4] == 0
    assert (found["probs_other"] > 0).all()


def test_a_prompt_keeps_its_end_and_its_roles() -> None:
    tokenizer = ByteTokenizer(begin=1)
    talk = [Message(role="user", content="头疼")]
    whole = dialogue.prompt_ids(talk, tokenizer, "base")
    assert tokenizer.decode(whole.ids) == dialogue.INSTRUCTION + "User: 头疼" and whole.begun == (1,)
    assert not whole.notes
    cut = dialogue.prompt_ids(talk, tokenizer, "base", context=10)
    assert cut.ids == whole.ids[-10:]
    assert cut.notes == (f"the first {len(whole.ids) - 10} of {len(whole.ids)} tokens were not read: --context is 10",)
    system = [Message(role="system", content=dialogue.XRAY), *talk]
    assert tokenizer.decode(dialogue.prompt_ids(system, tokenizer).ids).startswith(dialogue.XRAY)
    assert dialogue.web_text("a\n\n<b>\n```\n<c>\n```") == "a<br><b><pre><code><br>&lt;c&gt;</code></pre>"


def test_the_template_of_fine_tuning() -> None:
    tokenizer = ByteTokenizer(begin=1)
    talk = [
        Message(role="system", content="S"),
        Message(role="user", content="Q1"), Message(role="assistant", content="A1"),
        Message(role="user", content="Q2"), Message(role="assistant", content="A2"),
    ]  # fmt: skip
    ids, labels = finetuning.example(talk, tokenizer)
    assert len(ids) == len(labels)
    text = "".join("|" if token == 2 else tokenizer.decode([token]) for token in ids)
    assert text == (dialogue.INSTRUCTION + "|User: S\nQ1|Helper: xxxx|Helper: A1|User: Q2|Helper: xxxx|Helper: A2|")
    learnt = "".join("|" if token == 2 else tokenizer.decode([token]) for token in labels if token != -100)
    assert learnt == "Helper: A1|Helper: A2|"
    with pytest.raises(InputError, match="nothing is left to learn"):
        finetuning.example(talk, tokenizer, tokens=50)
    with pytest.raises(InputError, match="end with an answer"):
        finetuning.example(talk[:-1], tokenizer)
