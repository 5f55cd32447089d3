"""The device and the precision that settings name, and GPUs that jobs of this machine share out among themselves."""

from __future__ import annotations

import logging
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from dirotq.settings import RuntimeSettings

_POLL_SECONDS = 0.5
_log = logging.getLogger(__name__)


def resolve_device(name: str) -> torch.device:
    """The device that `runtime.device` names; raises ValueError when it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|free|cuda(:\d+)?", name):
        raise ValueError(f"runtime.device={name}, allowed are auto, cpu, cuda, cuda:<n> and free")
    device = torch.device("cuda" if name == "free" else name)
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(f"runtime.device={name}: PyTorch sees {count} GPUs here; use cpu or auto")
    return device


@contextmanager
def claimed(name: str, locks: Path) -> Iterator[str]:
    """The device's own name, for `free` that of a GPU which is then this job's until the block ends.

    locks: a folder that the jobs share; the system frees what a killed job holds there.
    """
    if name != "free":
        yield name
        return
    locks.mkdir(parents=True, exist_ok=True)
    lock, device = _claim([f"cuda:{n}" for n in range(torch.cuda.device_count())], locks)
    try:
        yield device
    finally:
        torch.cuda.empty_cache()  # the next job of this process may get another GPU
        lock.release()


def _claim(devices: list[str], locks: Path) -> tuple[FileLock, str]:
    """Hold the lock of the first device that nobody holds; wait while there is none."""
    waited = False
    while True:
        for device in devices:
            lock = FileLock(locks / f"{platform.node()}-{device.replace(':', '-')}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            return lock, device
        if not waited:
            _log.info("waiting for one of %d GPUs that other jobs hold", len(devices))
            waited = True
        time.sleep(_POLL_SECONDS)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype that `runtime.dtype` names on that device."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def resolve(runtime: RuntimeSettings) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of a job; raises ValueError for a device that is not there, or cannot do what is asked for."""
    device = resolve_device(runtime.device)
    if runtime.capture and device.type != "cuda":
        raise ValueError(f"runtime.capture=true: the device is {device}, allowed is a GPU")
    return device, resolve_dtype(runtime.dtype, device)
