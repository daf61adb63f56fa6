"""What tests across packages share besides fixtures."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"

MODEL_TABLE = """
[[model]]
name = "{name}"
summary = "A model for tests"
modality = ["mr"]
task = ["segmentation"]
inputs = ["volume"]
outputs = ["segmentation"]
licence-code = {{ spdx = "Apache-2.0" }}
licence-weights = {{ spdx = "MIT" }}
intended-use = "Tests"
limits = "Not for use"
variants = [{{ name = "default" }}]
"""

#: A model that needs no weights: label map by a threshold in the network, volumes in, on a cube of fixed size.
SEGMENTER = """
from collections.abc import Mapping
import numpy as np
from omlab import Context, Graph, Judge, Label, Model, Segmentation, TensorSpec, hookimpl

class Thresholder(Model):
    def graphs(self, variant):
        shape = (1, 1, "i", "j", "k")
        ranges = {axis: (4, 16, 512) for axis in "ijk"}
        return (Graph(name="net", inputs=(TensorSpec("image", "float32", shape, ranges=ranges),),
                      outputs=(TensorSpec("logits", "float32", shape, ranges=ranges),), judge=Judge.LABELS,
                      sources=(__name__,)),)

    def network(self, graph, variant, files):
        import torch
        class Net(torch.nn.Module):
            def forward(self, image):
                return torch.nn.functional.avg_pool3d(image, 3, 1, 1) - 0.5
        return Net().eval()

    untrained = lambda self, graph, variant: self.network(graph, variant, {})

    def predict(self, case, context):
        if case.name.startswith("crash"):
            raise ZeroDivisionError("a defect of the plugin")
        with context.stage("prepare"):
            turn = case.geometry.canonical()
            image = turn.apply(case.voxels).astype(np.float32)
            image = np.ascontiguousarray((image > context.options["level"]).astype(np.float32)[None, None])
        with context.stage("network"):
            logits = context.engines["net"]({"image": image})["logits"][0, 0]
        with context.stage("restore"):
            labels = np.ascontiguousarray(turn.undo((logits > 0).astype(np.uint8)))
        return Segmentation(labels=labels, structures=tuple(map(Label.of, self.card.labels)), geometry=case.geometry)

@hookimpl
def omlab_model(card):
    return Thresholder(card)
"""

SEGMENTER_MANIFEST = (
    "api = 1\n"
    + MODEL_TABLE.format(name="thresholder")
    + 'labels = [{ value = 1, name = "bright", colour = "#d55e00", code = ["12738006", "SCT", "Brain"] }]\n'
    + 'options = [{ name = "level", type = "float", default = 100.0, help = "Cut." }]\n'
)

#: An embedder that needs no weights: mean colours of a grid of patches.
EMBEDDER = """
import numpy as np
from PIL import Image as Picture
from omlab import Embedding, Graph, Judge, Model, TensorSpec, hookimpl

BATCH = {"batch": (1, 1, 8)}

class Embedder(Model):
    def graphs(self, variant):
        return (Graph(name="encoder", inputs=(TensorSpec("image", "float32", ("batch", 3, 32, 32), ranges=BATCH),),
                      outputs=(TensorSpec("feature", "float32", ("batch", 48), ranges=BATCH),),
                      judge=Judge.EMBEDDING, sources=(__name__,)),)

    def network(self, graph, variant, files):
        import torch
        class Net(torch.nn.Module):
            def forward(self, image):
                return torch.nn.functional.avg_pool2d(image, 8).flatten(1)
        return Net().eval()

    untrained = lambda self, graph, variant: self.network(graph, variant, {})

    def predict(self, case, context):
        picture = Picture.fromarray(case.rgb8()).resize((32, 32))
        image = (np.asarray(picture, np.float32) / 255).transpose(2, 0, 1)[None]
        return Embedding(vector=context.engines["encoder"]({"image": np.ascontiguousarray(image)})["feature"][0])

@hookimpl
def omlab_model(card):
    return Embedder(card)
"""

EMBEDDER_MANIFEST = (
    ("api = 1\n" + MODEL_TABLE.format(name="meancolour"))
    .replace('task = ["segmentation"]', 'task = ["embedding"]')
    .replace('inputs = ["volume"]', 'inputs = ["image"]')
    .replace('outputs = ["segmentation"]', 'outputs = ["embedding"]')
)
