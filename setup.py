"""The native CPU engine as an extension that may be missing; pyproject.toml says all else."""

import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

sys.path.insert(0, str(Path(__file__).parent / "kernels"))
from rnnkit_kernels.cpu.build import BuildError, build
from rnnkit_kernels.cpu.sources import ENGINE, FILE_NAME, current


class BuildEngine(build_ext):
    """Without a compiler there is a warning, and no engine: the extension is optional."""

    def get_ext_filename(self, fullname: str) -> str:
        """Of no particular Python: the engine uses nothing of its interface."""
        return fullname.replace(".", "/") + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Take the one of the checkout, where it is of the same sources, or compile."""
        target, here = Path(self.get_ext_fullpath(ext.name)), ENGINE.parent / FILE_NAME
        target.unlink(missing_ok=True)  # of an earlier build
        try:
            if current(here):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(here, target)
            else:
                build(target)
        except BuildError as error:
            raise CompileError(f"all layers will run in PyTorch, for {error}") from error


class Wheel(bdist_wheel):
    """One for every Python 3: for one kind of processor with the engine, for all without."""

    def get_tag(self) -> tuple[str, str, str]:
        """Known when all files are there."""
        self.root_is_pure = not any(Path(self.bdist_dir).rglob("*.so"))
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("rnnkit_kernels.cpu.rnnkit_engine", sources=[], optional=True)],
    cmdclass={"build_ext": BuildEngine, "bdist_wheel": Wheel},
)
