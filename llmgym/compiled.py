"""How hot loops are compiled: once, with the machine code kept on disk beside the sources."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from numba import config, njit

_CORE = Path(__file__).parent / "search"  # whose inlined functions kernels elsewhere call


def kernel(function: Callable) -> Any:
    """A function that Python calls: compiled on its first call, read from the disk in later processes."""
    with suppress(OSError):  # a folder that cannot be written: numba then keeps its files in the user's cache folder
        _forget_stale_kernels(Path(function.__code__.co_filename).parent)
    return njit(cache=True, nogil=True, error_model="numpy")(function)


def inlined(function: Callable) -> Any:
    """A function that kernels call: part of their machine code (LLVM alone inlines none of them, at 1.6 to 4 times
    the time of a move of Go)."""
    return njit(nogil=True, error_model="numpy", forceinline=True)(function)


@cache
def _forget_stale_kernels(folder: Path) -> None:
    """numba keeps a kernel as long as its own file is unchanged; here what it calls lies in others."""
    sources = [path.read_bytes() for place in {folder, _CORE} for path in sorted(place.glob("*.py"))]
    kernels = b"".join(sorted(source for source in sources if b"@kernel" in source or b"@inlined" in source))
    stamp, kept = hashlib.sha256(kernels).hexdigest(), folder / "__pycache__"
    file = kept / "kernels.sha256"
    if file.is_file() and file.read_text() == stamp:
        return
    for index in kept.glob("*.nbi"):
        index.unlink(missing_ok=True)
    kept.mkdir(exist_ok=True)
    file.write_text(stamp)


def shared(function: Callable) -> Any:
    """A kernel whose `prange` loops run on numba's threads, which begin within microseconds: for a moment they wait
    busily, where waking one of Python's takes some fifty. See `check_threads`."""
    return njit(cache=True, nogil=True, error_model="numpy", parallel=True)(function)


def check_threads(threads: int) -> int:
    """The number of threads, if kernels can share them.

    Raises:
        ValueError: several, without a threading layer that is safe to call from several threads.
    """
    asked = config.THREADING_LAYER  # type: ignore[attr-defined]
    safe = asked != "workqueue" and (_has("omppool") or _has("tbbpool"))
    if threads > 1 and not safe:
        raise ValueError(
            f"threads = {threads} needs OpenMP or TBB for numba: install libgomp1 (Debian) or pip install tbb"
        )
    return threads


def _has(layer: str) -> bool:
    with suppress(ImportError):
        import_module(f"numba.np.ufunc.{layer}")
        return True
    return False
