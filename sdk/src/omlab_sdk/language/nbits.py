"""The engine ``onnxruntime-nbits``: plain ONNX graphs of language models with weights of 4 and 8 bits."""

from __future__ import annotations

import contextlib
import io
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omlab.engines.base import Refusal, Target
from omlab.engines.onnxruntime import CPU, OnnxRuntime
from omlab.errors import require
from omlab.graphs import Graph
from omlab.vocabulary import Precision

if TYPE_CHECKING:
    from omlab.engines.onnxruntime import Session

MODEL = "model.onnx"
BITS = {Precision.INT4: 4, Precision.INT8: 8}
#: Larger than this, tensors are kept beside the file: a protobuf cannot hold 2 GiB.
_EXTERNAL_BYTES = 1_500_000_000


class OnnxRuntimeNbits(OnnxRuntime):
    """Every product with a constant matrix gets weights in blocks of 32 with a zero point; all else stays float32."""

    general = False

    def version(self) -> str:
        return super().version()

    def targets(self, graph: Graph) -> tuple[Target, ...]:
        return (Target(Precision.INT4, "cpu", CPU, rank=40), Target(Precision.INT8, "cpu", CPU, rank=50))

    def refusals(self, graph: Graph) -> tuple[Refusal, ...]:
        return ()

    def needs_onnx(self, folder: Path) -> bool:
        return False

    def build(self, graph: Graph, onnx: Path, folder: Path, target: Target, **settings: Any) -> None:
        library = require("onnx", needed_for="weights of few bits", install="omlab-sdk[torch]")
        require("onnx_ir", needed_for="weights of few bits", install="omlab-sdk[language]")
        from onnxruntime.quantization import QuantFormat
        from onnxruntime.quantization.matmul_nbits_quantizer import (
            DefaultWeightOnlyQuantConfig,
            MatMulNBitsQuantizer,
        )

        config = DefaultWeightOnlyQuantConfig(
            block_size=32, is_symmetric=False, accuracy_level=4, quant_format=QuantFormat.QOperator,
            op_types_to_quantize=("MatMul",), bits=BITS[target.precision],
        )  # fmt: skip
        model = library.load(str(onnx))
        logging.getLogger("onnxruntime.quantization").setLevel(logging.ERROR)
        with contextlib.redirect_stdout(io.StringIO()):
            quantizer = MatMulNBitsQuantizer(model, algo_config=config)
            quantizer.process()
        made = quantizer.model.model
        large = made.ByteSize() > _EXTERNAL_BYTES
        library.save(
            made, str(folder / MODEL), save_as_external_data=large, location=f"{MODEL}.data" if large else None
        )

    def load(self, graph: Graph, onnx: Path, folder: Path, target: Target, *, threads: int | None = None) -> Session:
        return super().load(graph, folder / MODEL, folder, target, threads=threads)
