"""What an installed rnnkit consists of, and what importing it costs."""

import subprocess
import sys
from pathlib import Path

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


def test_kernels_never_import_the_toolkit() -> None:
    for file in (ROOT / "kernels").rglob("*.py"):
        for line in file.read_text().splitlines():
            assert not line.strip().startswith(("import rnnkit.", "from rnnkit.", "from rnnkit "))


def test_layers_import_nothing_of_the_toolkit() -> None:
    heavy = "{'lightning', 'matplotlib', 'jsonargparse', 'torchmetrics', 'pooch', 'triton'}"
    code = f"import rnnkit, sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
