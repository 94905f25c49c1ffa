"""Runs channel builders that live in Python environments of their own, and takes in their files.

A builder is one script of this package that imports nothing of it. It gets a folder with
`plan.json` (and `tracks.npz`), reports its progress as JSON lines, and leaves `bank.npz` there.
"""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uara.errors import UserError
from uara.radio.bank import FORMAT_VERSION, BankConfig, ChannelBank, Progress
from uara.radio.tracks import area_radius_m, site_positions_m


@dataclass(frozen=True)
class Builder:
    """A script and what its environment needs."""

    script: str  # beside this file
    needs: str
    make: str  # target of the Makefile that makes the environment


BUILDERS = {
    "rt": Builder("ray_tracing.py", "Sionna RT 2.2 and LLVM 19 or newer", "channels-rt"),
    "tensorflow": Builder("tensorflow_umi.py", "Sionna 1.2 and TensorFlow 2.20", "channels-tf"),
}


@dataclass(frozen=True)
class RadioMap:
    """What a city looks like from above, to the eye and to radio; H x V pixels, rows northwards."""

    gain_db: NDArray[np.float64]  # (E, H, V) path gain from each site, antenna included
    height_m: NDArray[np.float64]  # (H', V') topmost surface above the street, NaN beside the scene
    site_m: NDArray[np.float64]  # (E, 3)
    extent_m: float  # both maps reach from minus to plus this, in either direction


def build_elsewhere(
    config: BankConfig,
    python: Path | str | None,
    *,
    progress: Progress | None = None,
    workers: int = 2,
) -> ChannelBank:
    """Build all worlds of a bank with another interpreter.

    Args:
        config: what to build; its backend names the builder.
        python: interpreter of that builder's environment.
        progress: called with (parts done, parts in all).
        workers: threads of the builder.

    Raises:
        UserError: no interpreter is given, its environment lacks something, or the builder
            failed or left no bank of this config.
    """
    if workers < 1:
        raise UserError(f"workers is {workers}: give at least 1")
    python = _interpreter(config.backend, python)
    probe(config.backend, python)
    with _plan_folder(config, workers) as folder:
        _run(config.backend, python, ["build", str(folder)], folder, progress)
        try:
            bank = ChannelBank.load(folder / "bank.npz")
            bank.check_fits(config)
        except UserError as error:
            raise UserError(
                f"the {config.backend} builder of {python} left no bank of this config ({error}): "
                f"make its environment anew with `make {BUILDERS[config.backend].make}`"
            ) from error
    return bank


def trace_radio_map(config: BankConfig, python: Path | str | None, *, workers: int = 2) -> RadioMap:
    """Trace path gains over the whole area of a bank of backend `rt`.

    Raises:
        UserError: the bank is of another backend, or as `build_elsewhere`.
    """
    if config.backend != "rt":
        raise UserError(
            f"backend is '{config.backend}': radio maps are traced by backend rt, give "
            "--backend rt or leave the map out"
        )
    python = _interpreter(config.backend, python)
    probe(config.backend, python)
    with _plan_folder(config, workers) as folder:
        _run(config.backend, python, ["map", str(folder)], folder, None)
        with np.load(folder / "map.npz", allow_pickle=False) as file:
            return RadioMap(
                gain_db=file["gain_db"],
                height_m=file["height_m"],
                site_m=file["site_m"],
                extent_m=float(file["extent_m"]),
            )


def probe(backend: str, python: Path | str) -> str:
    """Try an environment in a process of its own, since a wrong LLVM aborts the process.

    Returns:
        the version of Sionna there.

    Raises:
        UserError: there is no such interpreter, or its environment lacks something.
    """
    with tempfile.TemporaryDirectory(prefix="uara-probe-") as folder:
        return _run(backend, Path(python), ["--probe"], Path(folder), None)


def _interpreter(backend: str, python: Path | str | None) -> Path:
    """Check that an interpreter is given.

    Raises:
        UserError: it is not.
    """
    if python is None:
        make = BUILDERS[backend].make
        raise UserError(
            f"a bank of backend {backend} is built in an environment of its own: `make {make}`, "
            f"then `uara channels build TASK --backend {backend} --python .venv-{make}/bin/python`"
        )
    return Path(python)


@contextmanager
def _plan_folder(config: BankConfig, workers: int) -> Iterator[Path]:
    """Make a folder with all that a builder must know; it goes away with all that is in it."""
    lattice = site_positions_m(config.num_servers, config.inter_site_distance_m)
    keys = config.world_keys()
    plan: dict[str, Any] = {
        "metadata": {"format_version": FORMAT_VERSION, "config": config.model_dump(mode="json")},
        "workers": workers,
    }
    with tempfile.TemporaryDirectory(prefix="uara-bank-") as name:
        folder = Path(name)
        if config.backend == "rt":
            state = [np.random.SeedSequence([config.seed, *key]).generate_state(1) for key in keys]
            plan |= {
                "scene": config.scene,
                "lattice_m": lattice.tolist(),
                "radius_m": area_radius_m(lattice, config.inter_site_distance_m),
                "seeds": [int(s[0]) for s in state],
            }
        else:
            # The one import of the first builder: this one's tracks are that one's.
            from uara.radio.sionna_bank import draw_world_tracks

            tracks = [draw_world_tracks(config, key) for key in keys]
            plan["seeds"] = [t.channel_seed for t in tracks]
            np.savez(
                folder / "tracks.npz",
                position_m=np.stack([t.position_m for t in tracks]),
                velocity_m_s=np.stack([t.velocity_m_s for t in tracks]),
                is_indoor=np.stack([t.is_indoor for t in tracks]),
                site_position_m=lattice,
            )
        (folder / "plan.json").write_text(json.dumps(plan))
        yield folder


def _run(
    backend: str, python: Path, arguments: list[str], folder: Path, progress: Progress | None
) -> str:
    """Run a builder to its end; returns the last line that is no progress report.

    Raises:
        UserError: it cannot be started or does not end well.
    """
    script = Path(__file__).with_name(BUILDERS[backend].script)
    complaints = folder / "stderr.txt"
    last = ""
    with complaints.open("w") as stderr:
        try:
            # Isolated: neither this interpreter's search path nor this folder's modules leak in.
            child = subprocess.Popen(
                [str(python), "-I", str(script), *arguments],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        except OSError as error:
            raise UserError(
                f"cannot run {python} ({error.strerror}): give the interpreter of an environment "
                f"with {BUILDERS[backend].needs}, which `make {BUILDERS[backend].make}` makes"
            ) from error
        with child:
            try:
                assert child.stdout is not None, "the pipe was asked for"
                for line in child.stdout:
                    last = _follow(line, progress) or last
            except BaseException:  # an interrupt too must leave no builder behind
                child.kill()
                raise
    if child.returncode != 0:
        raise _failure(backend, python, child.returncode, complaints.read_text())
    return last


def _follow(line: str, progress: Progress | None) -> str:
    """Pass a progress report on; returns any other line."""
    try:
        report = json.loads(line)
        done, total = int(report["done"]), int(report["total"])
    except (ValueError, KeyError, TypeError):
        return line.strip()
    if progress is not None:
        progress(done, total)
    return ""


def _failure(backend: str, python: Path, status: int, complaints: str) -> UserError:
    """Make the one line that a failed builder ends in."""
    builder = BUILDERS[backend]
    lines = [line.strip() for line in complaints.splitlines() if line.strip()]
    last = lines[-1] if lines else "no message"
    if status == 2 and last.startswith("error: "):
        return UserError(last.removeprefix("error: "))
    if "LLVM" in complaints:
        return UserError(
            f"the LLVM that {python} finds does not suit backend {backend}: install LLVM 19 or "
            "newer (Debian: `apt-get install libllvm19`) or name its library in "
            "DRJIT_LIBLLVM_PATH"
        )
    if any(line.startswith(("ModuleNotFoundError", "ImportError")) for line in lines[-1:]):
        return UserError(
            f"{python} has no {builder.needs} ({last}): make that environment with "
            f"`make {builder.make}`"
        )
    how = signal.Signals(-status).name if status < 0 else f"status {status}"
    return UserError(
        f"the {backend} builder of {python} ended with {how} ({last[:160]}): try a smaller bank, "
        f"or make its environment anew with `make {builder.make}`"
    )
