"""The seam to builders in other environments: a shell script plays their interpreter."""

from __future__ import annotations

import ast
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pytest

from uara.errors import UserError
from uara.radio import backends
from uara.radio.backends import build_elsewhere, probe, trace_radio_map
from uara.radio.bank import BankConfig, ChannelBank, build_or_load

TINY = {
    "num_devices": 2, "num_servers": 3, "num_slots": 4, "train": 1, "tuning": 0, "validation": 0,
    "evaluation": 1,
}  # fmt: skip
RT = BankConfig(**TINY, backend="rt", scene="etoile")
TENSORFLOW = BankConfig(**TINY, backend="tensorflow")

# What every builder does: read the plan, report, leave a bank.
HONEST = """
    plan = json.loads((folder / "plan.json").read_text())
    config = plan["metadata"]["config"]
    shape = (2, 4, 2)
    for done in (1, 2):
        print(json.dumps({"done": done, "total": 2}), flush=True)
    np.savez(
        folder / "bank.npz",
        metadata=np.array(json.dumps(plan["metadata"] | {"sionna_version": "9", "build_s": 1.0})),
        gain_db=np.full((*shape, 3), -float(len(plan["seeds"])), np.float16),
        position_m=np.zeros((*shape, 2), np.float32),
        velocity_m_s=np.zeros((*shape, 2), np.float32),
        is_los=np.zeros((*shape, 3), bool),
        site_position_m=np.zeros((3, 2), np.float32),
    )
"""


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """Where temporary folders are made."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def interpreter(tmp_path):
    """Make an interpreter whose probe succeeds, and whose builds run the given lines."""

    def make(build: str, on_probe: str = "print('9')") -> Path:
        script = tmp_path / "builder.py"
        lines = (
            "import json, os, signal, sys, time\nfrom pathlib import Path\nimport numpy as np\n"
            "isolated, script, *words = sys.argv[1:]\n"
            "assert isolated == '-I' and Path(script).is_file()\n"
            "if words == ['--probe']:\n"
            f"{textwrap.indent(textwrap.dedent(on_probe), '    ')}\n"
            "    raise SystemExit\n"
            "folder = Path(words[1])\n"
            f"{textwrap.dedent(build)}"
        )
        script.write_text(lines)
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
        python.chmod(0o755)
        return python

    return make


def refusal(config, python) -> str:
    with pytest.raises(UserError) as error:
        build_elsewhere(config, python)
    line = str(error.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("config", [RT, TENSORFLOW], ids=["rt", "tensorflow"])
def test_the_bank_of_another_interpreter_is_taken_in(config, interpreter, scratch):
    calls = []
    bank = build_elsewhere(
        config, interpreter(HONEST), progress=lambda done, total: calls.append((done, total))
    )
    assert bank.config == config
    assert bank.sionna_version == "9"
    np.testing.assert_array_equal(bank.gain_db, -2.0)  # a seed for each of two worlds
    assert calls == [(1, 2), (2, 2)]
    assert not list(scratch.iterdir())


def test_a_built_bank_is_saved_under_its_hash_and_loaded_without_an_interpreter(
    interpreter, tmp_path
):
    built = build_or_load(RT, tmp_path / "banks", python=interpreter(HONEST))
    assert [path.name for path in (tmp_path / "banks").iterdir()] == [f"{RT.config_hash()}.npz"]
    again = build_or_load(RT, tmp_path / "banks")
    np.testing.assert_array_equal(built.gain_db, again.gain_db)


def test_both_umi_builders_move_devices_alike(interpreter):
    """The plan's tracks are those of the first builder, in its order of worlds."""
    from uara.radio.sionna_bank import draw_world_tracks

    copies = HONEST.replace(
        "np.zeros((*shape, 2), np.float32)",
        'np.load(folder / "tracks.npz")["position_m"].astype(np.float32)',
    )
    bank = build_elsewhere(TENSORFLOW, interpreter(copies))
    first = BankConfig(**TINY)
    for world, key in enumerate(first.world_keys()):
        expected = draw_world_tracks(first, key).position_m.astype(np.float32)
        np.testing.assert_array_equal(bank.position_m[world], expected)


def test_a_builders_own_line_is_the_users():
    failure = backends._failure("rt", Path("python"), 2, "noise\nerror: too far: come nearer\n")
    assert str(failure) == "too far: come nearer"


@pytest.mark.parametrize(
    ("build", "told"),
    [
        ("print('error: the lattice is too wide', file=sys.stderr); raise SystemExit(2)",
         ["the lattice is too wide"]),
        ("os.kill(os.getpid(), signal.SIGKILL)", ["SIGKILL", "smaller bank"]),
        ("raise MemoryError('no room')", ["status 1", "no room", "smaller bank"]),
        ("pass", ["left no bank of this config", "make channels-rt"]),
        ("(folder / 'bank.npz').write_bytes(b'PK cut')", ["left no bank", "make channels-rt"]),
        (HONEST.replace("| {", "| {\"config\": config | {\"seed\": 7}, "),
         ["left no bank", "seed 7 (asked: 0)"]),
    ],
    ids=["own line", "killed", "traceback", "nothing", "half a file", "another bank"],
)  # fmt: skip
def test_a_failed_build_ends_in_one_line_and_leaves_nothing(
    build, told, interpreter, scratch, tmp_path
):
    line = refusal(RT, interpreter(build))
    for text in told:
        assert text in line
    assert not list(scratch.iterdir())


@pytest.mark.parametrize(
    ("on_probe", "told"),
    [
        ("import sionna_of_no_kind", ["no module named 'sionna_of_no_kind'", "channels-rt"]),
        ("print('LLVM ERROR: Cannot select', file=sys.stderr); os.abort()",
         ["libllvm19", "DRJIT_LIBLLVM_PATH"]),
        ("raise ImportError('LLVM version (14) is too old')", ["LLVM 19", "DRJIT_LIBLLVM_PATH"]),
    ],
    ids=["missing", "aborted", "too old"],
)  # fmt: skip
def test_an_unsuitable_environment_is_told_before_anything_is_built(on_probe, told, interpreter):
    line = refusal(RT, interpreter("raise AssertionError('must not be built')", on_probe))
    for text in told:
        assert text.lower() in line.lower()
    assert "must not be built" not in line


def test_this_environment_is_not_one_of_tensorflow():
    with pytest.raises(UserError, match=r"no Sionna 1\.2 and TensorFlow 2\.20.*make channels-tf"):
        probe("tensorflow", sys.executable)


def test_what_is_no_interpreter_is_named(tmp_path):
    assert "cannot run" in refusal(RT, tmp_path / "none")
    assert "cannot run" in refusal(RT, tmp_path)
    assert "`make channels-tf`" in refusal(TENSORFLOW, None)
    with pytest.raises(UserError, match="workers is 0"):
        build_elsewhere(RT, sys.executable, workers=0)


def test_a_radio_map_is_read_back(interpreter):
    lines = (
        "np.savez(folder / 'map.npz', gain_db=np.full((3, 5, 5), -90.0), "
        "height_m=np.zeros((20, 20)), site_m=np.ones((3, 3)), extent_m=np.array(10.0))"
    )
    radio_map = trace_radio_map(RT, interpreter(lines))
    assert radio_map.gain_db.shape == (3, 5, 5)
    assert radio_map.extent_m == 10.0
    with pytest.raises(UserError, match=r"backend is 'sionna'.*--backend rt"):
        trace_radio_map(BankConfig(), interpreter(lines))


@pytest.mark.parametrize("builder", backends.BUILDERS.values(), ids=list(backends.BUILDERS))
def test_a_builder_starts_with_numpy_alone(builder):
    source = Path(backends.__file__).with_name(builder.script).read_text()
    outside = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "."]
        else:
            continue
        assert not any(name.split(".")[0] == "uara" for name in names)
        if node.col_offset == 0:
            outside |= {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert outside == {"numpy"}


def test_each_builder_and_scene_has_a_hash_of_its_own_and_old_banks_keep_theirs():
    rt = BankConfig(**TINY, backend="rt")
    assert rt == BankConfig(**TINY, backend="rt", scene="munich")
    configs = [BankConfig(**TINY), TENSORFLOW, rt, RT]
    assert len({config.config_hash() for config in configs}) == 4
    older = BankConfig().model_dump(exclude={"backend", "scene"})
    assert BankConfig(**older).config_hash() == BankConfig().config_hash() == "d4d555584e3cbf2b"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"scene": "munich"}, "scene is munich but backend is sionna"),
        ({"backend": "rt", "indoor_share": 0.4}, "indoor_share is 0.4.*set it to 0"),
    ],
)
def test_fields_of_another_builder_are_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        BankConfig(**changes)


def test_metadata_of_a_loaded_bank_names_its_builder(interpreter):
    bank = build_elsewhere(RT, interpreter(HONEST))
    assert isinstance(bank, ChannelBank)
    assert (bank.metadata["config"]["backend"], bank.metadata["config"]["scene"]) == (
        "rt",
        "etoile",
    )
