"""The networks against upstream's golden files, its key manifests, and themselves as ONNX."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import attrs
import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch")

from omlab.cards import Asset  # noqa: E402
from omlab.errors import WeightsError  # noqa: E402
from omlab.plugins import Registry  # noqa: E402
from omlab.vocabulary import Kind  # noqa: E402
from omlab_prime import goldens, training  # noqa: E402
from omlab_prime.checkpoint import load  # noqa: E402
from omlab_prime.model import Prime as PrimeModel  # noqa: E402
from omlab_prime.network import BASE, Legacy, Prime  # noqa: E402
from omlab_prime.vocabulary import EOS, MASK, PAD, batch, encode  # noqa: E402
from omlab_sdk.export import TorchOnnxExporter  # noqa: E402
from omlab_sdk.golden import Golden  # noqa: E402

FOLDER = Path(__file__).parent.parent / "goldens"
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
ASSET = Asset(id="net", source="by-hand", file="f.pt", instructions="bring it")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.npz")), ids=lambda p: p.stem)
def test_outputs_equal_upstream(path: Path) -> None:
    golden = Golden.read(path)
    computed = goldens.compute(golden)
    assert golden.outputs
    for output, mark in golden.outputs.items():
        assert mark.error(np.asarray(computed[output])) < 1e-5, output


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("prime-690m", lambda: Prime(**BASE)),
        ("prime-legacy-base", lambda: Legacy(**BASE)),
        ("prime-legacy-regression", lambda: Legacy(regression=True, **BASE)),
    ],
)
def test_names_and_shapes_are_upstreams(name: str, build) -> None:
    keys = json.loads(gzip.decompress((FOLDER / f"{name}.keys.json.gz").read_bytes()))
    with torch.device("meta"):
        own = {key: list(tensor.shape) for key, tensor in build().state_dict().items()}
    assert own == {key: shape for key, (shape, _, _) in keys.items()}


def test_the_exported_graph_agrees_at_any_size(tmp_path: Path) -> None:
    card = Registry.discover().card(Kind.MODEL, "prime")
    variant = card.variant("690m")
    small = attrs.evolve(variant, config=dict(variant.config) | {"size": SMALL})
    (graph,) = PrimeModel(card).graphs(small)
    torch.manual_seed(0)
    network = Prime(**SMALL).eval()
    path = tmp_path / "net.onnx"
    TorchOnnxExporter().export(network, graph, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for rows in (["MKTAYIA"], ["MKTAYIAKQRQISFVKSHFSRQ", "GS"], ["M"]):
        ids, mask = batch([encode(row) for row in rows])
        ids[0, 1] = MASK
        found = session.run(None, {"ids": ids, "mask": mask})
        with torch.inference_mode():
            expected = network(torch.from_numpy(ids), torch.from_numpy(mask))
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "limit"), [(torch.bfloat16, 5e-2), (torch.float16, 5e-3)])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_network_that_is_cast_to_half_precision_says_the_same(legacy: bool, kind: torch.dtype, limit: float) -> None:
    torch.manual_seed(0)
    network = (Legacy(regression=True, **SMALL) if legacy else Prime(**SMALL)).eval()
    ids, mask = (torch.from_numpy(a) for a in batch([encode("MKTAYIAKQR" * 60), encode("GSHMGG")]))
    with torch.inference_mode():
        expected = network(ids, mask)
        found = network.to(kind)(ids, mask)
    for half, full in zip(found, expected, strict=True):
        assert half.dtype == kind
        assert float((half.float() - full).norm()) < limit * (1 + float(full.norm()))
    rotary = (network.model if legacy else network.pro_prime).encoder.layer[0].attention.self.rotary_embeddings
    assert rotary.inv_freq.dtype == torch.float32


def test_files_of_both_generations_load(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    current, legacy, ogt = Prime(**SMALL), Legacy(**SMALL), Legacy(regression=True, **SMALL)
    save_file(current.state_dict(), tmp_path / "c.safetensors")
    torch.save(legacy.state_dict(), tmp_path / "b.pt")
    torch.save(ogt.state_dict(), tmp_path / "ogt.pt")
    for name, generation, wanted in (("c.safetensors", "c", current), ("b.pt", "b", legacy), ("ogt.pt", "b", ogt)):
        loaded = load(tmp_path / name, ASSET, generation, **SMALL)
        assert all(torch.equal(value, wanted.state_dict()[key]) for key, value in loaded.state_dict().items())
    for name, heads in (("m", {"temperature": False}), ("t", {"residues": False})):
        alone = Prime(structure_vocab_size=0, **heads, **SMALL)
        save_file(alone.state_dict(), tmp_path / f"{name}.safetensors")
        loaded = load(tmp_path / f"{name}.safetensors", ASSET, "c", **heads, **SMALL)
        assert set(loaded.state_dict()) == set(alone.state_dict())
        assert len(load(tmp_path / "c.safetensors", ASSET, "c", **heads, **SMALL).state_dict()) > len(
            alone.state_dict()
        )
        with pytest.raises(WeightsError, match="missing"):
            load(tmp_path / f"{name}.safetensors", ASSET, "c", **SMALL)
    with pytest.raises(WeightsError, match="does not fit the network"):
        load(tmp_path / "b.pt", ASSET, "c", **SMALL)
    with pytest.raises(WeightsError, match="another shape"):
        load(tmp_path / "c.safetensors", ASSET, "c", **(SMALL | {"intermediate_size": 32}))


def test_masking_hides_residues_only() -> None:
    ids = torch.from_numpy(batch([encode("MKTAYIAKQR" * 40), encode("MKTAY")])[0])
    shown, labels = training.mask_residues(ids, generator=torch.Generator().manual_seed(0))
    chosen = labels != training.IGNORED
    assert 0.1 < chosen[0].float().mean() < 0.2
    assert torch.equal(shown[~chosen], ids[~chosen])
    assert torch.equal(labels[chosen], ids[chosen])
    assert not chosen[(ids == PAD) | (ids == EOS)].any()
    assert 0.6 < (shown[chosen] == MASK).float().mean() < 0.95


def test_the_objective_learns_both_terms() -> None:
    torch.manual_seed(0)
    loss = training.PretrainingLoss(Prime(**SMALL).train())
    ids, mask = (torch.from_numpy(a) for a in batch([encode("MKTAYIAKQR"), encode("GSHMGG")]))
    shown, labels = training.mask_residues(ids, share=0.5, generator=torch.Generator().manual_seed(1))
    temperatures = torch.tensor([37.0, 60.0])
    both = loss(shown, mask, labels, temperatures)
    apart = loss(shown, mask, labels) + loss(shown, mask, temperatures=temperatures)
    torch.testing.assert_close(both, apart)
    optimiser = torch.optim.Adam(loss.parameters(), 1e-2)
    for _ in range(20):
        optimiser.zero_grad()
        found = loss(shown, mask, labels, temperatures)
        found.backward()
        optimiser.step()
    assert found < 0.5 * both
    with pytest.raises(ValueError, match="labels or temperatures"):
        loss(shown, mask)
