"""Files in upstream's layout to answers: both layouts, by the way that a user goes, at a small size."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

torch = pytest.importorskip("torch")
for library in ("transformers", "onnxruntime_genai", "sentencepiece", "tokenizers"):
    pytest.importorskip(library)

from safetensors.torch import save_file  # noqa: E402

from omlab import Message, Text  # noqa: E402
from omlab.errors import InputError, UsageError, WeightsError  # noqa: E402
from omlab.loading import EngineChoice, LoadedModel  # noqa: E402
from omlab.plugins import Registry  # noqa: E402
from omlab.running import run  # noqa: E402
from omlab.settings import Settings  # noqa: E402
from omlab.vocabulary import Kind  # noqa: E402
from omlab.weights import fetch  # noqa: E402
from omlab_pulse.bloom import Bloom  # noqa: E402
from omlab_pulse.model import SMALL  # noqa: E402
from omlab_sdk.golden import seed_module  # noqa: E402
from omlab_sdk.language import llama  # noqa: E402

QUESTIONS = ("头疼怎么办？", "What is COPD, in short?")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def pieces() -> bytes:
    """A sentencepiece model of 288 pieces, the last ones unused."""
    import sentencepiece

    model = io.BytesIO()
    texts = ["Helper: User: 头疼"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=280, model_type="bpe", byte_fallback=True,
        unk_id=0, bos_id=1, eos_id=2, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def word_parts() -> str:
    import tokenizers

    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=288, special_tokens=["<unk>", "<s>", "</s>", "<pad>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    inner.train_from_iterator(["Helper: User: Instructions"], trainer)
    return str(inner.to_str())


def shards(state: dict[str, Any], count: int) -> list[dict[str, Any]]:
    names = sorted(state)
    return [{name: state[name].bfloat16() for name in names[part::count]} for part in range(count)]


def publish(folder: Path, parts: list[dict[str, Any]], stem: str) -> None:
    """A folder as hubs hold them: shards and the index that names them, in either container."""
    folder.mkdir(exist_ok=True)
    held = {}
    for number, part in enumerate(parts, 1):
        name = f"{stem}-{number:05}-of-{len(parts):05}" + (".bin" if stem == "pytorch_model" else ".safetensors")
        if stem == "pytorch_model":
            torch.save(part, folder / name)
        else:
            save_file({key: tensor.contiguous() for key, tensor in part.items()}, folder / name)
        held |= dict.fromkeys(part, name)
    index = f"{stem}.bin.index.json" if stem == "pytorch_model" else f"{stem}.safetensors.index.json"
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": held}), "utf-8")


def prepared(home: Path, which: str, change: Callable[[dict[str, Any]], Any] = lambda state: None) -> LoadedModel:
    """The model of a small variant whose files lie where ``omlab pull`` would put them."""
    registry = Registry.discover()
    model = registry.load(Kind.MODEL, "pulse")
    published = model.card.variant(which)
    layout = published.config["layout"]
    config = dict(published.config) | SMALL[layout]
    settings = Settings(home=home)
    names = {key: value for key, value in config.items() if key != "layout"}
    network = llama.fresh(llama.configuration(**names)) if layout == "llama" else Bloom(**names)
    seed_module(network, ["lm_head.weight"] if layout == "bloom" else [])
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    change(state)
    # Files of the hub are known by repository and name; a folder of its own keeps the small ones apart.
    weights = tuple(attrs.evolve(asset, repo=f"test/{which}-{home.name}") for asset in published.weights)
    folder = home / f"published-{which}"
    publish(folder, shards(state, 3), "model" if which == "20b" else "pytorch_model")
    for asset in weights:
        file = folder
        if asset.id == "tokenizer":
            file = home / f"{which}-{asset.filename}"
            file.write_bytes(pieces() if layout == "llama" else word_parts().encode())
        fetch.adopt(asset, file, settings)
    variant = attrs.evolve(published, name=f"small-{which}", config=config, weights=weights)
    precision = "float32" if layout == "llama" else "auto"
    choice = EngineChoice(engine="auto" if layout == "llama" else "onnxruntime", precision=precision, threads=1)
    return LoadedModel(model, variant, registry=registry, settings=settings, choice=choice)


def asked(*questions: str) -> list[Text]:
    return [Text(name=f"q{n}", messages=[Message(role="user", content=q)]) for n, q in enumerate(questions)]


@pytest.fixture(scope="module", params=["20b", "7b"])
def loaded(request: pytest.FixtureRequest, home: Path) -> LoadedModel:
    return prepared(home, request.param)


def test_greedy_answers_are_those_of_the_network(loaded: LoadedModel) -> None:
    """Prefill and decode with the cache give what the network computes anew at every step."""
    (case,) = asked(QUESTIONS[0])
    _, context = loaded._context(case, {"temperature": 0.0, "max_new_tokens": 12}, None, None)
    result = loaded.model.predict(case, context)
    model: Any = loaded.model
    tokenizer, prompt, _ = model._prepared(case, context)
    (graph,) = loaded.graphs
    network: Any = model.network(graph, loaded.variant, loaded.files)
    ids, chosen = list(prompt.ids), []
    with torch.no_grad():
        for step in range(12):
            text = torch.tensor([ids])
            if graph.name == "language":
                scores = network.model(text).logits[0, -1]
            else:
                scores = network.network(text, torch.ones_like(text))["logits"][0, -1]
            if step == 0:
                scores[2] = -torch.inf
            chosen.append(int(scores.argmax()))
            if chosen[-1] == 2:
                break
            ids.append(chosen[-1])
    expected = tokenizer.decode([*prompt.begun, *[c for c in chosen if c != 2]])
    assert result.text == expected.removeprefix("Helper: ").strip()
    assert result.prompt_tokens == len(prompt.ids) and result.completion_tokens == len([c for c in chosen if c != 2])


def test_side_by_side_is_one_by_one(loaded: LoadedModel) -> None:
    cases = asked(*QUESTIONS)
    _, context = loaded._context(cases[0], {"seed": 3, "max_new_tokens": 10, "top_k": 50, "top_p": 0.95}, None, None)
    model: Any = loaded.model
    together = [answer.text for answer in model.predict_many(cases, context)]
    assert together == [model.predict(case, context).text for case in cases]


def test_a_run_answers_several_prompts_together(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers are those of a run one by one, bad records are told, and one that is too long harms no other."""
    lines = [
        json.dumps({"prompt": text, "id": f"q{n}"}) for n, text in enumerate((*QUESTIONS, "word " * 2500, "x", "z"))
    ]
    lines[2:2] = ["{", '{"prompt": " "}']
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(lines), "utf-8")
    sizes: list[int] = []
    engine: Any = loaded.model.decoder(loaded._context(asked("x")[0], {}, None, None)[1])  # type: ignore[attr-defined]
    opened = type(engine).open

    def spy(self: Any, prompts: Any, *more: Any, **rest: Any) -> Any:
        sizes.append(len(prompts))
        return opened(self, prompts, *more, **rest)

    monkeypatch.setattr(type(engine), "open", spy)
    texts = {}
    options = {"seed": 3, "max_new_tokens": 10, "top_k": 50, "top_p": 0.95, "context": 100_000}
    for batch in (1, 4):
        sizes.clear()
        out = tmp_path / str(batch)
        rows = list(run(loaded, [path], out, options=options | {"batch": batch}))
        failed = {row.name: row.cause for row in rows if row.status == "failed"}
        assert len(rows) == len(lines) and len(failed) == 3
        assert "the text has" in failed[f"q{len(QUESTIONS)}"] and "JSON" in failed["p-0003"]
        texts[batch] = {r.name: (r.folder / "generation.txt").read_text("utf-8") for r in rows if r.folder}
        assert (set(sizes) == {1}) if batch == 1 else sizes == [3, 1], sizes
    assert texts[1] == texts[4] and len(texts[4]) == len(QUESTIONS) + 2


def test_prompts_that_have_no_room_side_by_side_are_answered_in_turn(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from omlab_sdk.language import model as pipeline

    monkeypatch.setattr(pipeline, "available_bytes", lambda: 0)
    found = loaded.run_many(asked(*QUESTIONS), options={"max_new_tokens": 2, "seed": 1})
    assert [outcome.result.measurements["together"] for outcome in found] == [1] * len(QUESTIONS)  # type: ignore[union-attr]


def test_streaming_gives_the_answer_in_pieces(loaded: LoadedModel) -> None:
    (case,) = asked(QUESTIONS[1])
    pieces = loaded.stream(case, options={"seed": 1, "max_new_tokens": 16})
    heard = []
    while True:
        try:
            heard.append(next(pieces))
        except StopIteration as end:
            result = end.value
            break
    assert "".join(heard).strip() == result.text
    stopped = loaded.stream(case, options={"seed": 1, "max_new_tokens": 16})
    next(stopped)
    stopped.close()


def test_a_run_over_a_file_with_bad_records(loaded: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "one", "prompt": "头疼"}\n{"prompt": 3}\n{"question": "x", "id": "two"}\n', "utf-8")
    rows = list(run(loaded, [path], tmp_path / "out", options={"max_new_tokens": 4, "seed": 0}))
    assert [row.status for row in rows] == ["done", "failed", "done"], rows
    record = json.loads((tmp_path / "out" / "one" / "result.json").read_text("utf-8"))
    (used,) = record["engines"].values()
    assert used["engine"]["precision"] == "float32"
    assert used["parity"]["outputs"][0]["perplexity"] < 1.0001
    assert (tmp_path / "out" / "two" / "generation.txt").is_file()


def test_long_texts(loaded: LoadedModel, tmp_path: Path) -> None:
    (case,) = asked("word " * 2500)
    cut = loaded(case, max_new_tokens=2)  # type: ignore[call-overload]
    assert cut.prompt_tokens == 1536
    path, words = tmp_path / "p.jsonl", "word " * 2500
    path.write_text(json.dumps({"id": "long", "prompt": words}) + "\n" + json.dumps({"id": "short", "prompt": "x"}))
    rows = {row.name: row for row in run(loaded, [path], tmp_path / "out", options={"max_new_tokens": 2})}
    assert not rows["short"].warnings
    (note,) = rows["long"].warnings
    assert re.fullmatch(r"the first \d+ of \d+ tokens were not read: --context is 1536", note)
    assert json.loads((tmp_path / "out/long/result.json").read_text("utf-8"))["result"]["notes"] == [note]
    with pytest.raises(InputError, match="the text has .* tokens and room for 2 more, the model reads 4096"):
        loaded(case, max_new_tokens=2, context=100_000)
    if loaded.graphs[0].name == "language":
        assert loaded(case, max_new_tokens=2, context=100_000, stretch=True).prompt_tokens > 4096


def test_bad_questions_and_options(loaded: LoadedModel) -> None:
    with pytest.raises(InputError, match="asks nothing"):
        loaded(Text(name="x", messages=[Message(role="user", content=" ")]))
    with pytest.raises(InputError, match="holds half of a character at place 3, so it was no UTF-8"):
        loaded(Text(name="x", messages=[Message(role="user", content="caf\udce9")]))
    with pytest.raises(InputError, match="holds half of a character at place 0"):
        loaded(asked("x")[0], system="\udcff")  # type: ignore[call-overload]
    with pytest.raises(InputError, match="ends with a turn of the assistant"):
        loaded(Text(name="x", messages=[*asked("a")[0].messages, Message(role="assistant", content="b")]))
    for options in ({"batch": 0}, {"top_p": 0.0}, {"context": 3}, {"role": "nurse"}, {"temperature": "hot"}):
        with pytest.raises(UsageError):
            loaded.asked(None, loaded.options(options))


def test_the_role_and_the_preset_change_the_prompt_and_the_draw(loaded: LoadedModel) -> None:
    (case,) = asked("x")
    model: Any = loaded.model
    lengths = {}
    for role in ("qa", "consultation", "base"):
        _, context = loaded._context(case, {"role": role}, None, None)
        lengths[role] = len(model._prepared(case, context)[1].ids)
    assert lengths["base"] < lengths["qa"] < lengths["consultation"]
    drawn = model.sampling(loaded.options({"preset": "command-line"}), loaded.variant)
    assert (drawn.top_k, drawn.top_p, drawn.temperature, drawn.ends) == (6, 0.1, 0.7, (2, 3))
    assert model.sampling(loaded.options({"top_k": 0}), loaded.variant).top_k == 0


def test_wrong_files_are_told(tmp_path: Path) -> None:
    def lose(state: dict[str, Any]) -> None:
        del state["model.norm.weight"]

    with pytest.raises(WeightsError, match="1 entry missing, first 'model.norm.weight'"):
        broken = prepared(tmp_path, "20b", lose)
        broken.model.network(broken.graphs[0], broken.variant, broken.files)

    def part(state: dict[str, Any]) -> None:
        state["lm_head.weight"] = state["lm_head.weight"] + 1

    with pytest.raises(WeightsError, match="its head is not its table of embeddings"):
        broken = prepared(tmp_path, "7b", part)
        broken.model.network(broken.graphs[0], broken.variant, broken.files)


def test_weights_in_sixteen_bits_compute_in_float32(loaded: LoadedModel) -> None:
    if loaded.graphs[0].name != "language":
        pytest.skip("the smaller model is read in float32")
    network: Any = loaded.model.network(loaded.graphs[0], loaded.variant, loaded.files)
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 288, (1, 8)))
    with torch.no_grad():
        found = network(ids)
        wide = llama.filled(network.config, {n: t.float() for n, t in network.model.state_dict().items()}, "copy")
        expected = wide(ids).logits[:, 3:]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_conversation_goes_on_in_its_cache(loaded: LoadedModel) -> None:
    """The next turn gives what reading everything anew gives, and the same question twice the same answer."""
    (case,) = asked(QUESTIONS[1])
    options = {"temperature": 0.0, "max_new_tokens": 6}
    first = loaded(case, **options)
    again = loaded(case, **options)
    assert first.text == again.text  # type: ignore[attr-defined]
    turns = [*case.messages, Message(role="assistant", content="yes"), Message(role="user", content="头疼")]
    engine: Any = loaded.engines[loaded.graphs[0].name]
    kept = getattr(engine, "_kept", None)
    following = loaded(Text(name="x", messages=turns), **options)
    assert getattr(engine, "_kept", None) is kept  # one cache for both turns, where the engine keeps one
    loaded(asked("another")[0], **options)
    assert kept is None or engine._kept is not kept
    assert loaded(Text(name="x", messages=turns), **options).text == following.text  # type: ignore[attr-defined]
