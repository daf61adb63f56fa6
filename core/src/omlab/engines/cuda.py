"""Memory of an NVIDIA GPU for engines that take raw addresses, through NVIDIA's own bindings."""

from __future__ import annotations

from typing import Any

import numpy as np

from omlab.errors import EngineError, require


class Device:
    """The first GPU with a stream and buffers by name that grow when needed.

    Parameters
    ----------
    install : argument of ``pip install`` that brings the bindings.

    Raises
    ------
    EngineError
        There is no usable GPU or driver.
    """

    def __init__(self, install: str) -> None:
        self._driver: Any = require("cuda.bindings.driver", needed_for="the TensorRT engine", install=install)
        try:
            self._ask("cuInit", 0)
            # The primary context is the one that the CUDA runtime inside TensorRT uses.
            self._context = self._ask("cuDevicePrimaryCtxRetain", self._ask("cuDeviceGet", 0))
            self._ask("cuCtxSetCurrent", self._context)
            self.stream = self._ask("cuStreamCreate", 0)
        except RuntimeError as error:  # the bindings find no driver library
            raise EngineError(f"no usable NVIDIA driver: {str(error).splitlines()[0]}") from error
        self._buffers: dict[str, tuple[Any, int]] = {}

    def enter(self) -> None:
        """Make the GPU current in the calling thread."""
        self._ask("cuCtxSetCurrent", self._context)

    def buffer(self, name: str, nbytes: int) -> int:
        """Address of at least ``nbytes`` bytes, the same memory from call to call."""
        pointer, size = self._buffers.get(name, (None, -1))
        if size < nbytes:
            if pointer is not None:
                self._ask("cuMemFree", pointer)
            pointer = self._ask("cuMemAlloc", max(nbytes, 1))
            self._buffers[name] = (pointer, nbytes)
        return int(pointer)

    def upload(self, name: str, array: np.ndarray) -> int:
        """Copy an array over; gives its address."""
        address = self.buffer(name, array.nbytes)
        self._ask("cuMemcpyHtoDAsync", address, array.ctypes.data, array.nbytes, self.stream)
        return address

    def download(self, name: str, array: np.ndarray) -> None:
        """Copy a buffer into a fresh array; complete after :meth:`wait`."""
        self._ask("cuMemcpyDtoHAsync", array.ctypes.data, int(self._buffers[name][0]), array.nbytes, self.stream)

    def wait(self) -> None:
        """Wait until all that was asked is done."""
        self._ask("cuStreamSynchronize", self.stream)

    def _ask(self, function: str, *arguments: Any) -> Any:
        status, *values = getattr(self._driver, function)(*arguments)
        if int(status) != 0:
            raise EngineError(f"the NVIDIA driver failed at {function}: {status.name}")
        return values[0] if values else None
