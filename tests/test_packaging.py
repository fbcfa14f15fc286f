"""What an installed rnnkit consists of, and what importing it costs."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

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
        assert re.search(rf"\b{package.rpartition('.')[2]}\b", drawing), package
