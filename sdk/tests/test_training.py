"""The training loop: exact resumption, schedule, groups, early stopping, and what stops a training."""

from __future__ import annotations

import _thread
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from omlab.errors import Cancelled, UsageError
from omlab.progress import CancelToken

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from omlab_sdk.training import (  # noqa: E402
    Arrays,
    Settings,
    TrainingError,
    clear,
    fit,
    learning_rate,
    parameter_groups,
    unfinished,
)


def _data():
    generator = np.random.default_rng(0)
    inputs = generator.standard_normal((50, 6)).astype(np.float32)
    return inputs, (inputs[:, 0] * inputs[:, 1] > 0).astype(np.int64)


def _network():
    torch.manual_seed(1)
    # dropout draws by chance, and the norm has statistics beside its weights: both must survive an interruption
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))


def _loss(network, batch):
    return F.cross_entropy(network(batch[0]), batch[1])


def _noise(batch, generator):
    return (batch[0] + 0.1 * torch.randn(batch[0].shape, generator=generator), *batch[1:])


def _validate(network):
    inputs, labels = _data()
    return {"accuracy": (network(torch.from_numpy(inputs)).argmax(1).numpy() == labels).mean()}


SETTINGS = Settings(epochs=6, lr=0.01, warmup_epochs=1, accumulate=2, clip=1.0, monitor="accuracy", seed=3)


def _fit(network, folder=None, settings=SETTINGS, **more):
    batches = Arrays(_data(), 8, seed=5, augment=_noise)
    return fit(network, _loss, batches, validate=_validate, settings=settings, folder=folder, **more)


@pytest.fixture(scope="module")
def uninterrupted():
    network = _network()
    return network, _fit(network)


def test_it_learns_and_keeps_the_best(uninterrupted, tmp_path):
    network, fitted = uninterrupted
    assert len(fitted.history) == 6
    assert fitted.steps == 6 * 4  # 50 cases, 7 batches, two a step
    assert fitted.history[-1]["loss"] < fitted.history[0]["loss"]
    best = max(row["accuracy"] for row in fitted.history)
    assert _validate(network)["accuracy"] == best == fitted.history[fitted.best_epoch - 1]["accuracy"]
    assert not network.training


@pytest.mark.parametrize("after", [1, 4, 10, 22])
def test_an_interrupted_training_ends_with_the_same_weights(uninterrupted, tmp_path, after):
    cancel, seen = CancelToken(), []

    def listener(event):
        seen.append(event.done)
        if event.done == after:
            cancel.cancel()

    with pytest.raises(Cancelled):
        _fit(_network(), tmp_path, listener=listener, cancel=cancel)
    assert unfinished(tmp_path)
    network = _network()
    with torch.no_grad():
        network[0].weight.zero_()  # what it begins with now does not matter
    fitted = _fit(network, tmp_path)
    assert fitted.resumed_at == after + 1  # the step that was asked to be the last was made
    assert _fit(network, tmp_path).resumed_at == 24  # it had ended: nothing is done again
    clear(tmp_path)
    assert not unfinished(tmp_path)
    for name, tensor in uninterrupted[0].state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name]), name
    drop = ("seconds",)
    for row, other in zip(fitted.history, uninterrupted[1].history, strict=True):
        assert {k: v for k, v in row.items() if k not in drop} == {k: v for k, v in other.items() if k not in drop}
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines() if "train" in line]
    assert steps == list(range(1, 25))


def test_ctrl_c_lets_the_step_end_and_loses_nothing(uninterrupted, tmp_path):
    def listener(event):
        if event.done == 9:
            _thread.interrupt_main()
            time.sleep(0.2)

    with pytest.raises(KeyboardInterrupt):
        _fit(_network(), tmp_path, listener=listener)
    network = _network()
    fitted = _fit(network, tmp_path)
    assert fitted.resumed_at >= 9
    for name, tensor in uninterrupted[0].state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name]), name


def test_a_state_of_something_else_is_refused(tmp_path):
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(Cancelled):
        _fit(_network(), tmp_path, cancel=cancel)
    for more in ({"settings": Settings(epochs=7)}, {"identity": "other data"}):
        with pytest.raises(UsageError, match="of other settings, data or network"):
            _fit(_network(), tmp_path, **more)
    (tmp_path / "state.pt").write_bytes(b"rubbish")
    with pytest.raises(Exception, match=r"state\.pt is damaged"):
        _fit(_network(), tmp_path)


def test_accumulation_is_one_large_batch():
    def trained(size, accumulate):
        torch.manual_seed(1)
        network = nn.Linear(6, 2)
        settings = Settings(epochs=2, lr=0.01, accumulate=accumulate)
        fit(network, _loss, Arrays([a[:48] for a in _data()], size, seed=5), settings=settings)
        return network.weight.detach()

    assert torch.allclose(trained(16, 1), trained(8, 2), atol=1e-6)


def test_a_loss_that_is_no_number_names_its_step(tmp_path):
    calls = []

    def loss(network, batch):
        calls.append(0)
        return _loss(network, batch) * (float("nan") if len(calls) == 6 else 1.0)

    with pytest.raises(TrainingError, match=r"the loss became nan in step 6 \(epoch 2\)"):
        fit(_network(), loss, Arrays(_data(), 10), settings=Settings(epochs=3), folder=tmp_path)


def test_patience_ends_it_and_the_best_epoch_stays():
    figures = iter([0.5, 0.7, 0.6, 0.7, 0.65, 0.9])
    settings = Settings(epochs=6, monitor="score", patience=3)
    fitted = fit(
        nn.Linear(6, 2), _loss, Arrays(_data(), 25), validate=lambda n: {"score": next(figures)}, settings=settings
    )
    assert (len(fitted.history), fitted.best_epoch, fitted.stopped_early) == (5, 2, True)
    with pytest.raises(UsageError, match="validation gave no 'score'"):
        fit(nn.Linear(6, 2), _loss, Arrays(_data(), 25), settings=settings)


def test_equal_figures_are_told_apart_by_a_second():
    figures = iter([(0.7, 0.5), (0.7, 0.3), (0.7, 0.4), (float("nan"), 0.1)])

    def validate(network):
        return dict(zip(("score", "loss_there"), next(figures), strict=True))

    settings = Settings(epochs=4, monitor="score", second="loss_there")
    fitted = fit(nn.Linear(6, 2), _loss, Arrays(_data(), 25), validate=validate, settings=settings)
    assert fitted.best_epoch == 2


def test_half_precision_leaves_the_network_as_it_was():
    network = _network()
    forward = network.forward
    fitted = _fit(network, settings=Settings(epochs=2, precision="bfloat16", monitor="accuracy"))
    assert fitted.precision == "bfloat16"
    assert network.forward == forward
    assert all(p.dtype == torch.float32 for p in network.parameters())


def test_what_cannot_be_trained_is_told():
    with pytest.raises(UsageError, match="no parameter that learns"):
        _fit(_network().requires_grad_(False))
    with pytest.raises(UsageError, match="auto, cpu or cuda"):
        _fit(_network(), settings=Settings(device="tpu"))
    with pytest.raises(UsageError, match="epochs must be greater than 0"):
        Settings(epochs=0)
    with pytest.raises(ValueError, match="same number of cases"):
        Arrays([np.zeros(3), np.zeros(2)], 2)


def test_only_what_learns_is_kept(tmp_path):
    cancel = CancelToken()
    cancel.cancel()
    network = _network()
    network[0].requires_grad_(False)
    with pytest.raises(Cancelled):
        fit(network, _loss, Arrays(_data(), 8), folder=tmp_path, cancel=cancel)
    kept = torch.load(tmp_path / "state.pt", weights_only=True)["network"]
    assert set(kept) == {f"1.{n}" for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")} | {
        "4.weight", "4.bias",
    }  # fmt: skip


def test_every_case_comes_once_an_epoch_and_no_batch_has_one():
    batches = Arrays([np.arange(17)], 8, seed=2)
    assert len(batches) == 2
    epochs = [np.concatenate([batches.batch(e, i)[0].numpy() for i in range(2)]) for e in (0, 1, 0)]
    assert len(set(epochs[0].tolist())) == 16
    assert (epochs[0] == epochs[2]).all()
    assert (epochs[0] != epochs[1]).any()


def test_rates_fall_by_layer_and_single_tokens_are_not_decayed():
    class Transformer(nn.Module):
        def __init__(self):
            super().__init__()
            self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
            self.patch_embed = nn.Conv2d(1, 4, 2)
            self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
            self.head = nn.Linear(4, 2)

    network = nn.ModuleDict({"encoder": Transformer()})
    groups = parameter_groups(network, weight_decay=0.1, layer_decay=0.5)
    of_name = {name: group for group in groups for name in group["names"]}
    scale = {name: group["lr_scale"] for name, group in of_name.items()}
    assert scale["encoder.cls_token"] == scale["encoder.patch_embed.weight"] == 0.5**4
    assert scale["encoder.blocks.2.weight"] == 0.5
    assert scale["encoder.head.bias"] == 1
    decay = {name: group["weight_decay"] for name, group in of_name.items()}
    assert decay["encoder.cls_token"] == decay["encoder.head.bias"] == 0
    assert decay["encoder.head.weight"] == 0.1
    network["encoder"].head.requires_grad_(False)
    assert "encoder.head.bias" not in {n for g in parameter_groups(network) for n in g["names"]}


def test_the_schedule_warms_up_and_ends_low():
    plan = {"lr": 1.0, "min_lr": 0.1, "warmup_epochs": 2, "epochs": 10}
    assert learning_rate(1, **plan) == 0.5
    assert learning_rate(2, **plan) == 1.0
    assert learning_rate(6, **plan) == pytest.approx(0.55)
    assert learning_rate(10, **plan) == 0.1


_TWO = """
import sys, torch
import numpy as np
from torch import nn
from torch.nn import functional as F
from omlab_sdk.training import Arrays, Settings, fit
inputs = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
torch.manual_seed(0)
network = nn.Linear(3, 1)
loss = lambda n, b: F.mse_loss(n(b[0]), b[0].sum(1, keepdim=True))
settings = Settings(epochs=4, lr=0.05, device="cpu", monitor="error", smaller=True)
validate = lambda n: {"error": float(loss(n, [torch.from_numpy(inputs)]))}
fitted = fit(network, loss, Arrays([inputs], 5), validate=validate, settings=settings)
print(fitted.processes, fitted.steps, [round(p, 6) for p in network.weight.flatten().tolist()], flush=True)
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed training")
def test_two_processes_take_the_same_code(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(_TWO)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29561"]
    found = subprocess.run(
        [*command, str(script)], capture_output=True, text=True, timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-2000:]
    lines = [line for line in found.stdout.splitlines() if line.startswith("2 ")]
    assert len(lines) == 2, (found.stdout, found.stderr[-2000:])
    assert lines[0] == lines[1]  # both ended with the same weights
    assert lines[0].startswith("2 16 ")  # eight batches, four for each, four epochs
