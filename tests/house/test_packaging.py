"""What is installed: mla_compiler and nothing else, complete, with its entry points."""

import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

try:
    import tomllib
except ModuleNotFoundError:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
SOURCES = ("mla_compiler", "passes", "lowering")


def sources() -> set[str]:
    """Every source file, by the name it is installed under."""
    found = set()
    for top in SOURCES:
        for path in (ROOT / top).rglob("*"):
            inside = path.relative_to(ROOT)
            linked = any(parent.is_symlink() for parent in [path, *path.parents] if ROOT in parent.parents)
            if path.suffix == ".py" and not linked:
                found.add(str(inside if top == "mla_compiler" else Path("mla_compiler") / inside))
    return found


def test_every_package_is_listed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = project["tool"]["setuptools"]["packages"]
    there = {str(Path(name).parent).replace("/", ".") for name in sources()}
    assert sorted(listed) == sorted(there)


def test_every_folder_of_sources_is_a_package():
    for name in sources():
        assert f"{Path(name).parent}/__init__.py" in sources()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the sources so that nothing stale is packed."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    build = "from setuptools import build_meta; import sys; print(build_meta.build_wheel(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", build, str(out)], capture_output=True, text=True, cwd=copy, timeout=300)
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_wheel_holds_mla_compiler_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"mla_compiler"}
    assert {name for name in names if name.endswith(".py")} == sources()
    assert "mla_compiler/py.typed" in names


@pytest.mark.slow
def test_wheel_registers_the_backend_and_the_command(wheel):
    archive = zipfile.ZipFile(wheel)
    name = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
    parser = configparser.ConfigParser()
    parser.read_string(archive.read(name).decode())
    assert dict(parser["torch_dynamo_backends"]) == {"flashmla": "mla_compiler.backend:flashmla"}
    assert dict(parser["console_scripts"]) == {"flashmla": "mla_compiler.cli:main"}


@pytest.mark.slow
def test_installed_wheel_works_without_the_checkout(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import mla_compiler, mla_compiler.passes, mla_compiler.lowering, mla_compiler.report\n"
        "print(mla_compiler.__file__, mla_compiler.passes.__file__, mla_compiler.lowering.__file__)"
    )
    command, environ = [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environ, timeout=300)
    assert done.returncode == 0, done.stderr
    assert all(path.startswith(str(tmp_path)) for path in done.stdout.split())
