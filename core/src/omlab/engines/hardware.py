"""The processor and the GPUs of this machine, as far as engines depend on them; no library is imported."""

from __future__ import annotations

import ctypes
import hashlib
import platform
import sys
from functools import cache

import attrs


@attrs.frozen
class Cpu:
    """The processor.

    Attributes
    ----------
    model, vendor : as the system names them.
    flags : instruction sets, Linux names; empty where the system does not tell.
    """

    model: str
    vendor: str = ""
    flags: frozenset[str] = frozenset()

    @property
    def key(self) -> str:
        """Short text that differs where compiled code may differ."""
        described = "\n".join([self.vendor, self.model, *sorted(self.flags)])
        return f"cpu-{hashlib.sha256(described.encode()).hexdigest()[:12]}-{platform_key()}"

    @property
    def bfloat16(self) -> bool:
        """Does it multiply bfloat16 numbers in hardware?"""
        return bool(self.flags & {"avx512_bf16", "amx_bf16", "amx-bf16"})

    @property
    def tiles(self) -> bool:
        """Does it multiply tiles of bfloat16 numbers (AMX)? Sixteen times as many products as in float32."""
        return bool(self.flags & {"amx_bf16", "amx-bf16"})

    @property
    def fast_bfloat16(self) -> bool:
        """Is bfloat16 expected to beat float32? With AMX, or AVX-512 BF16 of AMD, yes. Intel's AVX-512 BF16 alone
        (AMX hidden by a virtual machine) ran convolutions and transformers at half the float32 speed."""
        return self.tiles or (self.bfloat16 and self.vendor == "AuthenticAMD")


@attrs.frozen
class Gpu:
    """An NVIDIA GPU.

    Attributes
    ----------
    name : as the driver names it.
    capability : compute capability, (8, 9).
    """

    name: str
    capability: tuple[int, int]

    @property
    def sm(self) -> str:
        """``"sm_89"``."""
        return f"sm_{self.capability[0]}{self.capability[1]}"


@cache
def winograd() -> str:
    """Version of numba, if :mod:`omlab.engines.winograd` can be imported; else empty."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("numba")
    except PackageNotFoundError:
        return ""


def platform_key() -> str:
    """Operating system and architecture, ``"linux-x86_64"``."""
    return f"{sys.platform}-{platform.machine().lower()}"


@cache
def cpu() -> Cpu:
    """The processor of this machine."""
    fields: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if not line.strip():
                    break  # one processor stands for all
                name, _, value = line.partition(":")
                fields[name.strip()] = value.strip()
    except OSError:
        return Cpu(model=platform.processor() or platform.machine())
    flags = fields.get("flags") or fields.get("Features", "")
    return Cpu(
        model=fields.get("model name", platform.machine()),
        vendor=fields.get("vendor_id", ""),
        flags=frozenset(flags.split()),
    )


@cache
def gpus() -> tuple[Gpu, ...]:
    """NVIDIA GPUs that this process may use, asked of the driver; empty without one."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return ()
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    found = []
    for index in range(count.value):
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        name = ctypes.create_string_buffer(256)
        # 75 and 76 are CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h.
        failed = (
            driver.cuDeviceGet(ctypes.byref(device), index)
            or driver.cuDeviceGetName(name, len(name), device)
            or driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
            or driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
        )
        if not failed:
            found.append(Gpu(name.value.decode(errors="replace"), (major.value, minor.value)))
    return tuple(found)


def gpu_key() -> str:
    """The first GPU, operating system and architecture."""
    if not gpus():
        return f"no-gpu-{platform_key()}"
    gpu = gpus()[0]
    return f"{gpu.name.replace(' ', '-').lower()}-{gpu.sm}-{platform_key()}"


def machine_key() -> str:
    """Processor and GPUs together: what the speed of engines depends on."""
    return "+".join([cpu().key, *(f"{gpu.name.replace(' ', '-').lower()}-{gpu.sm}" for gpu in gpus())])
