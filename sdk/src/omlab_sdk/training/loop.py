"""The loop: batches to steps to epochs, on one device, several or a processor."""

from __future__ import annotations

import hashlib
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from omlab.errors import OmlabError, UsageError, require
from omlab.progress import CancelToken, Listener, Progress, silent
from omlab_sdk.training import state as states
from omlab_sdk.training.batches import Batches
from omlab_sdk.training.log import Log
from omlab_sdk.training.rates import learning_rate, parameter_groups
from omlab_sdk.training.settings import Settings

#: (network, batch) to the loss, or to the loss and further figures of the batch.
Loss = Callable[[nn.Module, Any], "Tensor | tuple[Tensor, Mapping[str, float]]"]
#: The network in evaluation mode to figures, once an epoch.
Validate = Callable[[nn.Module], Mapping[str, float]]
_MIXED = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


class TrainingError(OmlabError):
    """A training cannot go on: the loss is no number, or the data does not suffice."""

    code = "training"


@attrs.frozen(kw_only=True)
class Fitted:
    """How a training went.

    Attributes
    ----------
    history : a row an epoch: ``epoch`` (from 1), ``loss``, ``lr``, ``seconds``, and the figures of ``validate``.
    best_epoch : the epoch whose weights the network has.
    steps : updates of the weights.
    stopped_early : patience ran out before the last epoch.
    resumed_at : step from which an interrupted training went on; ``None`` for one that began here.
    device, precision, processes : where it ran.
    """

    history: tuple[Mapping[str, Any], ...]
    best_epoch: int
    steps: int
    stopped_early: bool
    resumed_at: int | None
    device: str
    precision: str
    processes: int = 1


def unfinished(folder: Path) -> bool:
    """Does a state lie in ``folder`` that :func:`fit` would go on from?"""
    return (folder / states.STATE).is_file()


def clear(folder: Path) -> None:
    """Remove the state of a training whose weights are safe elsewhere; the log stays."""
    for name in (states.STATE, states.BEST):
        (folder / name).unlink(missing_ok=True)


def fit(
    network: nn.Module,
    loss: Loss,
    batches: Batches,
    *,
    validate: Validate | None = None,
    settings: Settings | None = None,
    folder: Path | None = None,
    identity: str = "",
    what: str = "training",
    listener: Listener = silent,
    cancel: CancelToken | None = None,
) -> Fitted:
    """Train ``network`` in place: its parameters with ``requires_grad`` learn, the others stay.

    Afterwards it has the weights of the best epoch by ``settings.monitor`` (of the last one without), is in evaluation
    mode and on the processor.

    A state is kept in ``folder``. If one is there, the training goes on from it, and ends with the very weights that it
    would have had without the interruption. Ctrl-C and ``cancel`` let the present step end and write the state first.

    Parameters
    ----------
    loss : called with the network in training mode and a batch on its device.
    validate : called after each epoch without gradients; on several devices by the first of them only.
    folder : of the state, ``log.jsonl`` and ``tensorboard/``; nothing is kept without one.
    identity : names what the network learns from and begins with; a state of something else is refused.
    what : name in progress and errors.

    Raises
    ------
    TrainingError
        The loss is not finite (the message names the step), or there are fewer batches than devices.
    UsageError
        The state in ``folder`` is of another training.
    omlab.errors.MissingDependency
        accelerate is not installed.
    omlab.errors.Cancelled, KeyboardInterrupt
        It was stopped; calling it again goes on.
    """
    require("accelerate", needed_for=what, install="omlab-sdk[train]")
    cancel = cancel or CancelToken()
    run = _Run(
        network, loss, batches, validate, settings or Settings(), folder, identity, what, listener, cancel
    )  # fmt: skip
    # The steps are made on a thread of their own: Ctrl-C reaches only the main one, which then asks for an end between
    # two steps. An update of the weights is never cut in two.
    with ThreadPoolExecutor(1, thread_name_prefix="omlab-training") as pool:
        future = pool.submit(run)
        try:
            return future.result()
        except KeyboardInterrupt:
            cancel.cancel()
            future.exception()
            raise


class _Steps(Dataset[Any]):
    """The batches of one epoch that this process takes, from some place on."""

    def __init__(self, batches: Batches, epoch: int, places: list[int]) -> None:
        self.batches, self.epoch, self.places = batches, epoch, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> Any:
        return self.batches.batch(self.epoch, self.places[number])


class _Run:
    """One call of :func:`fit`."""

    def __init__(
        self, network: nn.Module, loss: Loss, batches: Batches, validate: Validate | None, settings: Settings,
        folder: Path | None, identity: str, what: str, listener: Listener, cancel: CancelToken,
    ) -> None:  # fmt: skip
        self.network, self.loss, self.batches, self.validate = network, loss, batches, validate
        self.settings, self.folder, self.identity, self.what = settings, folder, identity, what
        self.listener, self.cancel = listener, cancel
        self.epoch = 0  # the one that is under way, from 0
        self.done = 0  # optimiser steps of it
        self.step = 0  # of all epochs
        self.total = self.terms = 0.0  # loss of the epoch so far, and of how many batches
        self.history: list[dict[str, Any]] = []
        self.best: tuple[float, int, float] | None = None  # figure, epoch, second figure
        self.best_weights: dict[str, Tensor] | None = None
        self.resumed_at: int | None = None
        self.seconds = 0.0  # of the present epoch, before an interruption

    def __call__(self) -> Fitted:
        accelerator = self.accelerator = _accelerator(self.settings)
        self.main = accelerator.is_main_process
        self.world, self.rank = accelerator.num_processes, accelerator.process_index
        self.folder = self.folder if self.main else None
        count = len(self.batches) // self.world
        if not count:
            raise TrainingError(
                f"{self.what}: {len(self.batches)} batches an epoch are too few for {self.world} devices"
            )
        self.places, self.each = count, math.ceil(count / self.settings.accumulate)
        self.total_steps = self.each * self.settings.epochs
        with torch.random.fork_rng():
            # Every device begins with the same weights, also those that the caller drew at random.
            optimiser = self._optimiser()
            self.prepared, self.optimiser = accelerator.prepare(self.network, optimiser)
            self._go_on()
            self.log = Log(self.folder, self.step)
            try:
                return self._epochs()
            finally:
                self.log.close()
                # accelerate changes the network's forward for mixed precision; the caller gets it as it was
                accelerator.unwrap_model(self.prepared, keep_fp32_wrapper=False)
                accelerator.free_memory()
                self.network.to("cpu")

    def _optimiser(self) -> torch.optim.Optimizer:
        settings = self.settings
        if not any(parameter.requires_grad for parameter in self.network.parameters()):
            raise UsageError(f"{self.what}: the network has no parameter that learns")
        if settings.optimiser is not None:
            return settings.optimiser(self.network, settings)
        groups = parameter_groups(self.network, weight_decay=settings.weight_decay, layer_decay=settings.layer_decay)
        return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas)

    # --- interruption -----------------------------------------------------------------------------------------------

    def _fingerprint(self) -> str:
        optimiser = [
            [len(group["params"]), group.get("lr_scale", 1.0), group.get("weight_decay", 0.0)]
            for group in self.optimiser.param_groups
        ]
        settings = {**self.settings.as_json(), "groups": optimiser, "devices": self.world}
        return states.fingerprint(self.network, settings, len(self.batches), self.identity)

    def _go_on(self) -> None:
        """Take up the state of an interrupted training, on every device."""
        found = states.load(self.folder / states.STATE) if self.folder is not None else None
        if self.world > 1:
            from accelerate.utils import broadcast_object_list

            found = broadcast_object_list([found])[0]
        self.mark = self._fingerprint()
        if found is None:
            if self.folder is not None:  # a log of a training that ended or was given up
                shutil.rmtree(self.folder / "tensorboard", ignore_errors=True)
            return
        if found["fingerprint"] != self.mark:
            raise UsageError(
                f"{self.folder or self.what}: the interrupted training there was of other settings, data or network",
                remedy="Go on with the settings that it had, or remove it and begin anew",
            )
        states.put_back(self.network, found["network"])
        self.optimiser.load_state_dict(found["optimiser"])
        if found["scaler"] and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(found["scaler"])
        self.epoch, self.done, self.step = found["epoch"], found["done"], found["step"]
        self.total, self.terms, self.seconds = found["total"], found["terms"], found["seconds"]
        self.history, self.best = list(found["history"]), tuple(found["best"]) if found["best"] else None
        self.resumed_at = self.step
        if self.best is not None and self.folder is not None:
            self.best_weights = states.load(self.folder / states.BEST)

    def _keep(self) -> None:
        """Write the state as it is between two steps."""
        self.kept = time.monotonic()
        if self.folder is None:
            return
        scaler = self.accelerator.scaler
        states.save(
            self.folder / states.STATE,
            {
                "fingerprint": self.mark, "network": states.copied(states.learning(self.network)),
                "optimiser": self.optimiser.state_dict(), "scaler": scaler.state_dict() if scaler is not None else {},
                "epoch": self.epoch, "done": self.done, "step": self.step, "total": self.total, "terms": self.terms,
                "seconds": self.seconds + time.monotonic() - self.began, "history": self.history,
                "best": list(self.best) if self.best else None,
            },
        )  # fmt: skip

    # --- the loop ---------------------------------------------------------------------------------------------------

    def _epochs(self) -> Fitted:
        self.kept = self.began = time.monotonic()
        stopped = self._out_of_patience()
        try:
            while self.epoch < self.settings.epochs and not stopped:
                self._train_epoch()
                self._end_epoch()
                stopped = self._out_of_patience()
            self._keep()
        except TrainingError:
            raise
        except BaseException:
            if not self.broken:
                self._keep()
            raise
        if self.best is not None and self.main and self.best_weights is not None:
            states.put_back(self.network, self.best_weights)
        if self.world > 1 and self.best is not None:
            from accelerate.utils import broadcast

            for tensor in states.learning(self.network).values():
                tensor.copy_(broadcast(tensor))
        self.network.eval()
        return Fitted(
            history=tuple(self.history), best_epoch=self.best[1] if self.best else self.epoch, steps=self.step,
            stopped_early=stopped and self.epoch < self.settings.epochs, resumed_at=self.resumed_at,
            device=str(self.accelerator.device), precision=self.settings.precision, processes=self.world,
        )  # fmt: skip

    def _line(self) -> str:
        """What the terminal says of the training: the epoch, and how the last one went."""
        line = f"{self.what}, epoch {self.epoch + 1}"
        if not self.history:
            return line
        monitor = self.settings.monitor or "loss"
        return f"{line} ({monitor.replace('_', ' ')} {self.history[-1][monitor]:.4g})"

    #: A step is under way: the weights may be half changed.
    broken = False

    def _train_epoch(self) -> None:
        from accelerate.utils import send_to_device

        self.prepared.train()
        accumulate = self.settings.accumulate
        # Device r of n takes every n-th batch; a remainder that does not go round is left out.
        places = [n * self.world + self.rank for n in range(self.places)][self.done * accumulate :]
        loader: Iterator[Any] = iter(
            DataLoader(
                _Steps(self.batches, self.epoch, places), batch_size=None, num_workers=self.settings.workers,
                persistent_workers=False,
            )
        )  # fmt: skip
        while self.done < self.each:
            self.cancel.check()
            self.listener(Progress(self._line(), "train", self.step, self.total_steps, "steps"))
            left = min(accumulate, self.places - self.done * accumulate)
            parts = [next(loader) for _ in range(left)]
            self.broken = True
            self._step([send_to_device(part, self.accelerator.device) for part in parts])
            self.broken = False
            if time.monotonic() - self.kept > self.settings.save_seconds:
                self._keep()

    def _step(self, parts: list[Any]) -> None:
        """One update from the mean gradient of ``parts``."""
        accelerator, settings = self.accelerator, self.settings
        # All that a step draws by chance follows from its number, so nothing of the generators needs to be kept.
        torch.manual_seed(_mixed(settings.seed, self.step, self.rank))
        rate = self._rate(self.epoch + self.done / self.each)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        figures: dict[str, float] = {}
        losses = []
        for number, part in enumerate(parts):
            waits = self.world > 1 and number + 1 < len(parts)
            with accelerator.no_sync(self.prepared) if waits else nullcontext(), accelerator.autocast():
                found = self.loss(self.prepared, part)
                value, more = found if isinstance(found, tuple) else (found, {})
                accelerator.backward(value.float() / len(parts))
            losses.append(value.detach().float())
            for name, figure in more.items():
                figures[name] = figures.get(name, 0.0) + float(figure) / len(parts)
        mean = float(torch.stack(losses).mean())
        if not math.isfinite(mean):
            raise TrainingError(
                f"{self.what}: the loss became {mean} in step {self.step + 1} (epoch {self.epoch + 1})",
                remedy="Use a smaller learning rate, a longer warm-up, float32, or a limit of the gradient",
            )
        if settings.clip is not None:
            accelerator.clip_grad_norm_(self.prepared.parameters(), settings.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.total, self.terms = self.total + mean * len(parts), self.terms + len(parts)
        self.step, self.done = self.step + 1, self.done + 1
        self.log.write(self.step, {"train/loss": mean, "train/lr": rate, "epoch": self.epoch + 1, **figures})

    def _rate(self, epoch: float) -> float:
        settings = self.settings
        if settings.schedule is not None:
            return settings.schedule(epoch)
        warmup = min(settings.warmup_epochs, settings.epochs / 2)  # of a short training at most one half
        return learning_rate(
            # the middle of a step, so that the first one is not lost on a rate of zero
            epoch + 0.5 / self.each, lr=settings.lr, min_lr=settings.min_lr, warmup_epochs=warmup,
            epochs=settings.epochs,
        )  # fmt: skip

    def _end_epoch(self) -> None:
        accelerator = self.accelerator
        sums = torch.tensor([self.total, self.terms], dtype=torch.float64)
        if self.world > 1:
            sums = accelerator.reduce(sums.to(accelerator.device, torch.float32), "sum").cpu()
        row: dict[str, Any] = {
            "epoch": self.epoch + 1, "step": self.step, "loss": float(sums[0] / sums[1]),
            "lr": self._rate(self.epoch + 1 - 1 / self.each),
        }  # fmt: skip
        row |= self._figures()
        row["seconds"] = round(self.seconds + time.monotonic() - self.began, 3)
        monitor = self.settings.monitor
        if monitor is not None:
            if monitor not in row:
                raise UsageError(f"{self.what}: validation gave no '{monitor}', it gave {', '.join(row)}")
            self._judge(float(row[monitor]), float(row.get(self.settings.second or "", 0.0)))
        self.history.append(row)
        self.log.write(
            self.step, {"epoch": self.epoch + 1, **{f"epoch/{k}": v for k, v in row.items() if k != "epoch"}}
        )
        self.epoch, self.done, self.total, self.terms = self.epoch + 1, 0, 0.0, 0.0
        self.seconds, took = 0.0, time.monotonic() - self.began
        self.began = time.monotonic()
        if took > self.settings.save_seconds or time.monotonic() - self.kept > self.settings.save_seconds:
            self._keep()

    def _figures(self) -> dict[str, float]:
        if self.validate is None:
            return {}
        found: dict[str, float] = {}
        if self.main:
            plain = self.accelerator.unwrap_model(self.prepared)
            plain.eval()
            with torch.no_grad(), self.accelerator.autocast():
                found = {name: float(value) for name, value in self.validate(plain).items()}
        if self.world > 1:
            from accelerate.utils import broadcast_object_list

            found = broadcast_object_list([found])[0]
        return found

    def _judge(self, value: float, second: float) -> None:
        """Is this epoch the best so far? A figure that is no number never is."""
        sign = -1.0 if self.settings.smaller else 1.0
        before = (sign * self.best[0], -self.best[2]) if self.best else (-math.inf, -math.inf)
        if not math.isnan(value) and (self.best is None or (sign * value, -second) > before):
            self.best = (value, self.epoch + 1, second)
            if self.main:
                self.best_weights = states.copied(states.learning(self.network))
                if self.folder is not None:
                    states.save(self.folder / states.BEST, self.best_weights)

    def _out_of_patience(self) -> bool:
        patience = self.settings.patience
        return patience is not None and self.best is not None and self.epoch - self.best[1] >= patience


def _mixed(*parts: int) -> int:
    """Seed made of several numbers."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def _accelerator(settings: Settings) -> Any:
    """accelerate's view of devices and precision."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if settings.device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"a training runs on auto, cpu or cuda, found '{settings.device}'")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("torch finds no usable NVIDIA GPU", remedy="Use --device cpu")
    if settings.precision == "float16" and (settings.device == "cpu" or not torch.cuda.is_available()):
        raise UsageError("float16 needs a GPU", remedy="Use bfloat16 or float32")
    # accelerate keeps device and precision for the process; the next training in it may want others.
    AcceleratorState._reset_state(reset_partial_state=not _launched())
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    return Accelerator(mixed_precision=_MIXED[settings.precision], cpu=settings.device == "cpu")


def _launched() -> bool:
    """Is this one of several processes that ``accelerate launch`` started?"""
    import os

    return int(os.environ.get("WORLD_SIZE", "1")) > 1
