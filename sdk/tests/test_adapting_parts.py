"""Parts of adapters that train a network: tensors of a case, heads, augmentation."""

from __future__ import annotations

import numpy as np
import pytest

from omlab.cards import ModelCard, Variant
from omlab.cases import Image
from omlab.errors import UsageError
from omlab.graphs import Graph, Judge, TensorSpec
from omlab.model import Model
from omlab.results import Embedding
from omlab_sdk.adapting.capture import only_graph, tensor_of

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from omlab_sdk.adapting.augment import Augment  # noqa: E402
from omlab_sdk.adapting.networks import Head, head_names, head_of, plan_head, set_drop_path, with_head  # noqa: E402
from omlab_sdk.networks.vit import Block  # noqa: E402

BATCH = {"batch": (1, 1, 8)}
VARIANT = Variant(name="v")


def _graph(outputs=4, judge=Judge.EMBEDDING, batch="batch"):
    return Graph(
        name="net", inputs=(TensorSpec("image", "float32", (batch, 6), ranges=BATCH),),
        outputs=(TensorSpec("out", "float32", (batch, outputs), ranges=BATCH),), judge=judge,
    )  # fmt: skip


class _Model(Model):
    def __init__(self, looks=1, graphs=None):
        super().__init__(
            ModelCard(
                name="m", summary="s", modality=["any"], task=["embedding"], inputs=["image"], outputs=["embedding"],
                variants=[VARIANT], licence_code={"spdx": "MIT"}, licence_weights={"spdx": "MIT"}, intended_use="u",
                limits="l",
            )
        )  # fmt: skip
        self.looks, self.own = looks, graphs or (_graph(),)

    def graphs(self, variant):
        return self.own

    def predict(self, case, context):
        for _ in range(self.looks):
            out = context.engines["net"]({"image": case.pixels.reshape(1, 6).astype(np.float32)})["out"]
        return Embedding(vector=out[0] / np.linalg.norm(out[0]))  # what no engine that answers zeros would survive


def test_the_tensor_is_what_the_engine_is_given():
    case = Image(name="c", pixels=np.arange(6, dtype=np.uint8).reshape(2, 3))
    assert tensor_of(_Model(), VARIANT, case).tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(UsageError, match="looks 3 times at c"):
        tensor_of(_Model(looks=3), VARIANT, case)


def test_what_cannot_be_batched_is_told():
    with pytest.raises(UsageError, match="needs one graph with one input"):
        only_graph(_Model(graphs=(_graph(), _graph())), VARIANT)
    with pytest.raises(UsageError, match="is no batch"):
        only_graph(_Model(graphs=(_graph(batch=1),)), VARIANT)


def test_a_head_goes_behind_an_embedding_and_in_place_of_logits():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.fc = nn.Linear(6, 5), nn.Linear(5, 4)

        def forward(self, x):
            return self.fc(self.body(x).relu())

    plan = plan_head(nn.Linear(6, 4), _graph(), "m")
    assert plan == {"head": "", "features": 4}
    headed = with_head(nn.Linear(6, 4), plan | {"classes": 3})
    assert headed(torch.zeros(2, 6)).shape == (2, 3)
    assert head_names(headed) == ["head.weight", "head.bias"]
    classifier = Classifier()
    plan = plan_head(classifier, _graph(judge=Judge.LOGITS), "m")
    assert plan == {"head": "fc", "features": 5}
    replaced = with_head(classifier, plan | {"classes": 7})
    assert isinstance(head_of(replaced, plan), Head)
    assert replaced(torch.zeros(2, 6)).shape == (2, 7)
    with pytest.raises(UsageError, match="no linear layer of its network gives the logits"):
        plan_head(nn.Sequential(nn.Linear(6, 4), nn.ReLU()), _graph(judge=Judge.LOGITS), "m")
    with pytest.raises(UsageError, match=r"needs \[batch, features\]"):
        plan_head(nn.Unflatten(1, (2, 3)), _graph(), "m")


def test_drop_path_grows_with_depth():
    network = nn.ModuleDict({"blocks": nn.ModuleList(Block(8, 2) for _ in range(3))})
    wrapped = nn.Module()
    wrapped.blocks = network["blocks"]
    assert set_drop_path(wrapped, 0.2) == 3
    assert [block.drop_path.rate for block in wrapped.blocks] == [0, 0.1, 0.2]
    assert set_drop_path(nn.Linear(2, 2), 0.2) == 0


def test_augmentation_is_drawn_by_the_generator_and_moves_pixels():
    images = torch.zeros(4, 1, 20, 20)
    images[:, :, 9:11, 9:11] = 1.0

    def seen(augment, seed):
        return augment.images(images, torch.Generator().manual_seed(seed))

    mild = Augment.of("mild", False)
    assert torch.equal(seen(mild, 0), seen(mild, 0))
    assert not torch.equal(seen(mild, 0), seen(mild, 1))
    shifted = seen(Augment(shift=0.1), 0)
    spots = [image[0].flatten().argmax().item() for image in shifted]
    assert len(set(spots)) > 1
    for spot in spots:  # at most a tenth of the side away
        assert abs(spot // 20 - 9.5) <= 2.6
        assert abs(spot % 20 - 9.5) <= 2.6
    assert Augment.of("none", False) is None


def test_flips_are_only_made_where_asked():
    ramp = torch.arange(8.0).expand(64, 1, 8, 8)

    def falls(augment):
        out = augment.images(ramp, torch.Generator().manual_seed(0))
        return (out[:, 0, 0, -1] < out[:, 0, 0, 0]).float().mean().item()

    assert falls(Augment.of("strong", False)) == 0
    assert 0.2 < falls(Augment.of("strong", True)) < 0.8
    assert 0.2 < falls(Augment.of("none", True)) < 0.8
    crop = Augment.crop(0.25, False).images(ramp, torch.Generator().manual_seed(0))
    spread = crop[:, 0, 0, -1] - crop[:, 0, 0, 0]
    assert spread.min() >= 3
    assert spread.max() <= 7.1
    assert (crop >= 0).all()
    assert (crop <= 7).all()
