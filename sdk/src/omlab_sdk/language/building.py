"""From a Llama-layout network to the folder that onnxruntime-genai runs, by that library's own model builder."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

from omlab.errors import EngineError, require
from omlab.vocabulary import Precision
from omlab_sdk.language.rope import LADDER, table, theta_for

INSTALL = "omlab-sdk[language]"
CONFIG = "genai_config.json"
MODEL = "model.onnx"
#: What the builder calls a precision.
WORDS = {Precision.FLOAT32: "fp32", Precision.INT8: "int8", Precision.INT4: "int4"}
#: int4 in blocks of 32 with a zero point; the head and the builder's mixed layers (into attention and out of the MLP,
#: in the first and last eighth and every third layer between) in 8 bits. On SmolLM2-135M perplexity grows 1.20 times;
#: 1.29 times with the head alone in 8 bits, 1.48 times by the builder's defaults. Its k-quant rounding is no better
#: there and takes ten times as long.
MIXED = "matmul_mixed_precision=last_matmul:int8,mixed_layers:int8"
OPTIONS: dict[Precision, tuple[str, ...]] = {
    Precision.FLOAT32: (),
    Precision.INT8: ("block_size=32", "accuracy_level=4"),
    Precision.INT4: ("block_size=32", "accuracy_level=4", "is_symmetric=false", "algo_config=rtn", MIXED),
}


def build(network: Any, folder: Path, precision: Precision) -> None:
    """Write what the engine loads: ``model.onnx`` with its data, ``genai_config.json``, and a graph for each longer
    context (:data:`omlab_sdk.language.rope.LADDER`) that shares the data.

    Parameters
    ----------
    network : a :class:`omlab_sdk.language.llama.CausalLM`.

    Raises
    ------
    MissingDependency
        A library of the extra is not installed.
    EngineError
        The builder cannot do it.
    """
    for module in ("onnxruntime_genai", "transformers", "onnx", "onnx_ir"):
        require(module, needed_for="making an engine of a language model", install=INSTALL)
    with tempfile.TemporaryDirectory(prefix=".checkpoint-", dir=folder.parent) as work:
        checkpoint, made = Path(work) / "checkpoint", Path(work) / "made"
        with _quiet() as said:
            network.save(checkpoint)
            _tokenizer(checkpoint)
            from onnxruntime_genai.models import builder

            cache = str(Path(work) / "cache")
            pairs = ["hf_token=false", "prune_lm_head=true", *OPTIONS[precision]]
            where = ("", str(checkpoint), str(made), WORDS[precision], "cpu", cache)
            try:
                options = builder.parse_extra_options(*where, pairs)
                builder.create_model(*where, **options)
            except Exception as error:  # the builder raises whatever it meets
                last = said.getvalue().strip().splitlines()[-1:] or [""]
                raise EngineError(
                    f"onnxruntime-genai cannot build the network: {type(error).__name__}: {error} ({last[0]})"
                ) from error
        config = json.loads((made / CONFIG).read_text("utf-8"))
        # Ends are ours to see: the library would stop a row at its own, and take it for padding within a text.
        config["model"]["pad_token_id"] = config["model"]["eos_token_id"] = network.padding
        config["model"]["bos_token_id"] = config["model"]["bos_token_id"] or 0
        config["search"] = {"do_sample": False, "max_length": config["model"]["context_length"]}
        (folder / CONFIG).write_text(json.dumps(config, indent=1), "utf-8")
        for path in made.iterdir():
            if path.name.startswith(MODEL):
                shutil.move(path, folder / path.name)
    _ladder(folder, network.config)


def _ladder(folder: Path, config: Any) -> None:
    """The graph again with the rotary tables of longer contexts; the weights stay in the one data file."""
    import onnx

    model = onnx.load(str(folder / MODEL), load_external_data=False)
    tables = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in ("cos_cache", "sin_cache")}
    if len(tables) != 2:
        raise EngineError("onnxruntime-genai built a network without rotary tables, which longer texts need")
    length, head = config.max_position_embeddings, config.head_dim
    for times in LADDER:
        theta = theta_for(config, times * length)
        cosine, sine = table(theta, head, times * length)
        for name, values in (("cos_cache", cosine), ("sin_cache", sine)):
            tensor = tables[name]
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))
        onnx.save(model, str(folder / f"model-x{times}.onnx"))


def _tokenizer(folder: Path) -> None:
    """The builder wants a tokenizer beside a checkpoint; ours is read from the model's own files, so any does."""
    import tokenizers

    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    inner.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")


@contextlib.contextmanager
def _quiet() -> Any:
    """The builder talks on standard output and to the logs."""
    said = io.StringIO()
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield said
        finally:
            logging.disable(before)
