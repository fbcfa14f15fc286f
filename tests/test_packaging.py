"""What an installed rnnkit consists of, and what importing it costs."""

import importlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from rnnkit_kernels.cpu.library import PACKAGE
from rnnkit_kernels.cpu.sources import ENGINE
from tests.compilers import NONE, quick_compiler

ROOT = Path(__file__).parent.parent


def listed_packages() -> set[str]:
    if sys.version_info >= (3, 11):
        import tomllib

        with (ROOT / "pyproject.toml").open("rb") as file:
            return set(tomllib.load(file)["tool"]["setuptools"]["packages"])
    text = (ROOT / "pyproject.toml").read_text().split("\npackages = [")[1].split("]")[0]
    return {line.strip(' ",') for line in text.splitlines() if line.strip()}


def test_every_package_folder_is_installed() -> None:
    # Folder of each package, and the name that it is installed by.
    places = {
        ROOT / "rnnkit": "rnnkit",
        ROOT / "kernels" / "rnnkit_kernels": "rnnkit_kernels",
        ROOT / "benchmarks": "rnnkit_benchmarks",
    }
    found = {
        ".".join([name, *file.parent.relative_to(folder).parts])
        for folder, name in places.items()
        for file in folder.rglob("__init__.py")
    }
    found |= {f"rnnkit.configs.{file.parent.name}" for file in (ROOT / "configs").rglob("*.yaml")}
    assert listed_packages() == found


@pytest.mark.process
def test_readers_and_count_models_need_no_lightning() -> None:
    code = """
import sys
from rnnkit.language_modeling import InterpolatedKneserNey, read_corpus
from rnnkit.tagging import read_columns, read_tagged
from rnnkit.translation import read_parallel
print(sorted({"lightning", "torchmetrics", "jsonargparse"} & set(sys.modules)))
from rnnkit.metrics import BLEU, EntityF1, Perplexity
print(sorted({"lightning", "jsonargparse"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "[]"]


@pytest.mark.parametrize("room", ["language_modeling", "tagging", "translation", "metrics"])
def test_a_room_gives_each_of_its_names_and_no_other(room: str) -> None:
    package = importlib.import_module(f"rnnkit.{room}")
    names = [name for name in dir(package) if name not in vars(package)]
    assert len(names) >= 4
    for name in names:
        assert getattr(package, name).__name__ == name
    with pytest.raises(AttributeError, match=f"module 'rnnkit.{room}' has no attribute 'Missing'"):
        package.Missing  # noqa: B018


def test_the_drawing_of_the_rooms_shows_every_folder() -> None:
    drawing = (ROOT / "docs" / "rooms.md").read_text()
    for package in listed_packages():
        if package.startswith("rnnkit.configs."):
            package = "rnnkit.configs"
        assert re.search(rf"\b{package.rpartition('.')[2]}\b", drawing), package


def backend(command: str, source: Path, out: Path, compiler: str = NONE) -> tuple[Path, str]:
    """What pip has setuptools do in the folder `source`; the file in `out`, and what was said."""
    code = "import sys\nfrom setuptools import build_meta\n"
    code += f"print(build_meta.{command}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(out)],
        cwd=source, env={**os.environ, "CXX": compiler}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out / done.stdout.split()[-1], done.stdout + done.stderr


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a source distribution unpacks to."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("sdist")
    for name in ("rnnkit", "kernels", "benchmarks", "configs"):
        nothing_built = shutil.ignore_patterns("*.so", "__pycache__", "results")
        shutil.copytree(ROOT / name, folder / "checkout" / name, ignore=nothing_built)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "checkout")
    file, _ = backend("build_sdist", folder / "checkout", folder)
    with tarfile.open(file) as archive:
        archive.extractall(folder, filter="data")
    return folder / file.name.removesuffix(".tar.gz")


def needed(library: Path) -> set[str]:
    """The libraries that a library asks for."""
    if shutil.which("readelf") is None:
        pytest.skip("there is no readelf")
    done = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True)
    return set(re.findall(r"\(NEEDED\).*\[(.+?)\.so", done.stdout))


# No OpenMP: the engine takes torch's.
ANYWHERE = {
    "libc", "libm", "libstdc++", "libgcc_s", "libpthread", "ld-linux-x86-64", "ld-linux-aarch64",
}  # fmt: skip


@pytest.mark.process
@pytest.mark.slow
def test_a_wheel_of_the_sdist_runs_on_every_python_of_its_platform(
    sdist: Path, tmp_path: Path
) -> None:
    wheel, _ = backend("build_wheel", sdist, tmp_path, quick_compiler(tmp_path))
    platform = re.sub("[-.]", "_", sysconfig.get_platform())
    assert wheel.name.endswith(f"-py3-none-{platform}.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    code = (
        "from rnnkit_kernels.cpu.library import library, missing\n"
        "found = library()\n"
        "print(found.path if found else missing())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    library = tmp_path / "installed" / "rnnkit_kernels" / "cpu" / PACKAGE.name
    assert done.stdout == f"{library}\n"
    if sys.platform == "linux":
        assert needed(library) <= ANYWHERE


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="readelf reads what Linux loads")
def test_the_engine_asks_for_nothing_that_torch_does_not_bring() -> None:
    if not PACKAGE.exists():
        pytest.skip("the engine is not built")
    assert needed(PACKAGE) <= ANYWHERE


@pytest.mark.process
def test_without_a_compiler_a_wheel_for_every_machine_is_built(sdist: Path, tmp_path: Path) -> None:
    wheel, said = backend("build_wheel", sdist, tmp_path)
    assert wheel.name.endswith("-py3-none-any.whl")
    needs = "the native engine needs a C++ compiler, and"
    assert f"all layers will run in PyTorch, for {needs} CXX={NONE} is not there\n" in said
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.endswith(".so")]
    # A compiler that comes later finds what it needs.
    sources = {f"rnnkit_kernels/cpu/engine/{file.name}" for file in ENGINE.iterdir()}
    assert sources <= set(names)


@pytest.mark.process
def test_an_installed_wheel_brings_the_configurations(sdist: Path, tmp_path: Path) -> None:
    wheel, _ = backend("build_wheel", sdist, tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    code = (
        "import sys\n"
        "from rnnkit.cli import main\n"
        "from rnnkit.training.shipped import FOLDER\n"
        "print(FOLDER)\n"
        "sys.exit(main(['configs']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    folder, *listed = done.stdout.splitlines()
    assert Path(folder) == tmp_path / "installed" / "rnnkit" / "configs"
    kept = {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml")}
    assert {path.relative_to(folder) for path in Path(folder).rglob("*.yaml")} == kept
    names = {path.with_suffix("").as_posix() for path in kept}
    assert names <= {line.partition(" ")[0] for line in listed}
