"""Adapters that train a network: the directories that they make run, export, resume and can be adapted again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

import omlab
from omlab.adapting import interrupted
from omlab.cli.main import main
from omlab.errors import Cancelled, InputError, UsageError, WeightsError
from omlab.plugins import Registry

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

QUICK = {"epochs": 3, "batch": 8, "warmup_epochs": 1.0}
OWN = {
    "fine-tune": {"layer_decay": 1.0, "drop_path": 0.0, "base_lr": 0.02},
    "lora": {"rank": 4, "base_lr": 0.1},
    "prompt-tuning": {"prompts": 3, "base_lr": 0.3},
}


def paint(folder: Path, generator: np.random.Generator, kind: int, number: int, side: int = 28) -> None:
    """Stripes along rows or columns, in noise."""
    folder.mkdir(parents=True, exist_ok=True)
    wave = 50 * np.sin(np.arange(side) * 2 * np.pi / 7 + generator.uniform(0, 6))
    stripes = np.broadcast_to(wave if kind else wave[:, None], (side, side))
    pixels = np.clip(generator.normal(120 + stripes, 12), 0, 255).astype(np.uint8)
    Picture.fromarray(pixels).save(folder / f"{number}.png")


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
    """Two classes of grey images."""
    root, generator = tmp_path_factory.mktemp("data") / "stripes", np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 6), ("test", 10)):
        for kind, name in enumerate(("across", "along")):
            for number in range(count):
                paint(root / split / name, generator, kind, number)
    return root


def _adapt(adapter, dataset, out, *, model="small-vit", options=None, listener=None, **more):
    registry = Registry.discover()
    more |= {} if listener is None else {"listener": listener}
    return omlab.adapt(
        omlab.load(model, engine="torch", registry=registry), adapter,
        omlab.load_dataset(f"image-folder:{dataset}", registry=registry), out,
        options=(QUICK if adapter in (*OWN, "masked-autoencoder") else {}) | OWN.get(adapter, {}) | (options or {}),
        registry=registry, **more,
    )  # fmt: skip


@pytest.mark.parametrize("adapter", ["fine-tune", "lora", "prompt-tuning"])
def test_it_learns_runs_and_exports(adapter, stripes, tmp_path, capsys):
    folder = tmp_path / adapter
    report = _adapt(adapter, stripes, folder)
    assert report["train_images"] == 32
    assert report["history"][-1]["loss"] < report["history"][0]["loss"]
    assert {"epoch", "loss", "lr", "val_loss", "val_auc", "val_accuracy"} <= set(report["history"][0])
    assert 'src="data:image/png' in (folder / "report.html").read_text()
    assert (folder / "training" / "log.jsonl").is_file()
    assert not list(folder.rglob("*.npy")) + list(folder.rglob("*.pt"))
    size = (folder / "adapted.safetensors").stat().st_size
    assert size > 4e6 if adapter == "fine-tune" else size < 5e5  # all weights, or what was added
    loaded = omlab.load(folder, engine="torch")
    path = stripes / "test" / "along" / "0.png"
    result = loaded(path)
    assert result.classes == ("across", "along")
    assert result.probabilities.sum() == pytest.approx(1)
    # what the engine answers is what the report measured
    hits = [loaded(p).best == p.parent.name for p in sorted((stripes / "test").rglob("*.png"))]
    assert np.mean(hits) == pytest.approx(report["test_accuracy"])
    onnxruntime = pytest.importorskip("onnxruntime")
    assert main(["export", str(folder), "-o", str(tmp_path / "onnx"), "--json"]) == 0
    session = onnxruntime.InferenceSession(json.loads(capsys.readouterr().out)["classifier"])
    image = (np.asarray(Picture.open(path), np.float32) / 255 - 0.5)[None, None] / 0.25
    (logits,) = session.run(None, {"image": np.repeat(image, 3, axis=0)})
    found = np.exp(logits[1]) / np.exp(logits[1]).sum()
    assert found == pytest.approx(result.probabilities, abs=1e-4)


def test_an_interrupted_adaptation_goes_on_to_the_same_model(stripes, tmp_path):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    _adapt("fine-tune", stripes, straight)

    def stop(event):
        if event.stage == "train" and event.done == 5:
            raise Cancelled("stopped by the test")

    with pytest.raises(Cancelled):
        _adapt("fine-tune", stripes, broken, listener=stop)
    assert not broken.exists()
    assert interrupted(broken)
    with pytest.raises(UsageError, match="what was interrupted there has epochs 3, this has 4"):
        _adapt("fine-tune", stripes, broken, options={"epochs": 4}, resume=True)
    report = _adapt("fine-tune", stripes, broken, resume=True)
    assert report["training"]["resumed_at"] == 5
    assert not interrupted(broken)
    weights = [(folder / "adapted.safetensors").read_bytes() for folder in (straight, broken)]
    assert weights[0] == weights[1]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_chain_of_adapted_models(stripes, tmp_path):
    first, second, third = (tmp_path / name for name in ("pretrained", "tuned", "probed"))
    report = _adapt("masked-autoencoder", stripes, first, options={"epochs": 2})
    assert report["history"][1]["loss"] < report["history"][0]["loss"]
    base, own = (omlab.load(model, engine="torch") for model in ("small-vit", first))
    picture = stripes / "test" / "along" / "0.png"
    assert own.card.outputs == base.card.outputs
    assert not np.allclose(own(picture).vector, base(picture).vector)
    # low-rank tensors alone say nothing without the pre-trained network, so it goes with them
    tuned = _adapt("lora", stripes, second, model=first)
    assert tuned["base"] == "pretrained"
    assert (second / "base" / "adapted.safetensors").is_file()
    probabilities = omlab.load(second, engine="torch")(picture).probabilities
    _adapt("linear-probe", stripes, third, model=first, options={"strength": 1.0})
    assert omlab.load(third, engine="torch")(picture).classes == ("across", "along")
    full = tmp_path / "again"
    _adapt("fine-tune", stripes, full, model=second, options={"epochs": 1})
    assert not list((full / "base").rglob("*.safetensors"))  # its own network is whole
    again = omlab.load(full, engine="torch")
    assert again(picture).classes == ("across", "along")
    moved = tmp_path / "elsewhere"
    second.rename(moved)
    assert omlab.load(moved, engine="torch")(picture).probabilities == pytest.approx(probabilities)
    changed = (moved / "base" / "adapted.safetensors").read_bytes()
    (moved / "base" / "adapted.safetensors").write_bytes(changed[:-1] + bytes([changed[-1] ^ 1]))
    with pytest.raises(WeightsError, match="was made from a base with the weights"):
        omlab.load(moved, engine="torch")


@pytest.mark.parametrize("depth", ["deep", "shallow"])
def test_prompts_are_all_that_learns(depth, stripes, tmp_path):
    from safetensors.numpy import load_file

    report = _adapt("prompt-tuning", stripes, tmp_path / "m", options={"depth": depth, "epochs": 1})
    held = load_file(tmp_path / "m" / "adapted.safetensors")
    prompts = [name for name in held if name.endswith("prompts")]
    assert len(prompts) == (6 if depth == "deep" else 1)
    assert held[prompts[0]].shape == (1, 3, 128)
    assert report["trained_weights"] == sum(array.size for array in held.values())


def test_few_shots_without_validation_keep_the_last_epoch(stripes, tmp_path):
    root = tmp_path / "few"
    for kind in ("across", "along"):
        target = root / "train" / kind
        target.mkdir(parents=True)
        for number in range(3):
            (target / f"{number}.png").write_bytes((stripes / "train" / kind / f"{number}.png").read_bytes())
    report = _adapt("lora", root, tmp_path / "m", options={"shots": 5})
    assert report["train_images"] == 6
    remarks = " ".join(report["remarks"])
    assert "'across' has 3 training cases, fewer than 5 shots: all were taken" in remarks
    assert "without validation cases the last epoch was kept" in remarks


def test_what_cannot_be_trained_is_told(stripes, tmp_path, install_plugin):
    from support import EMBEDDER, EMBEDDER_MANIFEST

    install_plugin("meancolour", code=EMBEDDER, manifest=EMBEDDER_MANIFEST)
    with pytest.raises(UsageError, match="no part with 'patch_embed'"):
        _adapt("prompt-tuning", stripes, tmp_path / "m", model="meancolour")
    with pytest.raises(UsageError, match="no linear layer called"):
        _adapt("lora", stripes, tmp_path / "m", model="meancolour")
    with pytest.raises(UsageError, match="rank must be at least 1"):
        _adapt("lora", stripes, tmp_path / "m", options={"rank": 0})
    with pytest.raises(UsageError, match="a share of 0.999 cannot be hidden of 49 patches"):
        _adapt("masked-autoencoder", stripes, tmp_path / "m", options={"mask_ratio": 0.999})
    with pytest.raises(Exception, match=r"the loss became (nan|inf) in step \d+"):
        _adapt("fine-tune", stripes, tmp_path / "m", options={"base_lr": 1e30, "warmup_epochs": 0.0})
    with pytest.raises(InputError, match="no training case could be read|no train case could be read"):
        bad = tmp_path / "bad"
        for kind in ("a", "b"):
            (bad / "train" / kind).mkdir(parents=True)
            (bad / "train" / kind / "0.png").write_bytes(b"no image")
        _adapt("fine-tune", bad, tmp_path / "m")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad", "site"]
