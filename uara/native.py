"""Compiles a C file of the package and loads it: for hot paths that exist in torch as well."""

from __future__ import annotations

import ctypes
import functools
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from torch import Tensor

from uara.errors import UserError

_FLAGS = ("-std=c11", "-O3", "-march=native", "-ffast-math", "-fopenmp-simd", "-fPIC")
_HEADERS = Path(__file__).parent
_X86_FLAGS = ("-mprefer-vector-width=512",)


def compiler() -> str | None:
    """Return the path of the system's C compiler, or None where there is none."""
    return shutil.which("gcc") or shutil.which("cc")


@functools.cache
def load_library(source: Path) -> ctypes.CDLL:
    """Compile a C file for this processor and load it; once per process, in under a second.

    Args:
        source: the C file; it needs the C library alone.

    Returns:
        The loaded library; argument types are the caller's to set.

    Raises:
        UserError: if there is no C compiler, or it refuses the file.
    """
    program = compiler()
    if program is None:
        raise UserError(
            "no C compiler (gcc or cc) on the path; install one, or leave `native` off, which "
            "computes the same with torch"
        )
    flags = _FLAGS + (_X86_FLAGS if platform.machine() in ("x86_64", "AMD64") else ())
    with tempfile.TemporaryDirectory(prefix="uara-native-") as folder:
        binary, shared = Path(folder) / f"{source.stem}.o", Path(folder) / f"{source.stem}.so"
        _run(program, *flags, f"-I{_HEADERS}", "-c", str(source), "-o", str(binary))
        # Linked with -ffast-math, a library would change how the whole process rounds.
        _run(program, "-shared", str(binary), "-o", str(shared), "-lm")
        return ctypes.CDLL(str(shared))


def pointers(tensors: tuple[Tensor | None, ...]) -> ctypes.Array[ctypes.c_void_p]:
    """List where contiguous tensors begin: a C struct of pointers in the same order; None: NULL."""
    found = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
    return (ctypes.c_void_p * len(found))(*found)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr)
        raise UserError(
            f"{command[0]} could not compile a part of uara ({reason.strip()}); use gcc 9 or "
            "newer, or leave `native` off, which computes the same with torch"
        )
