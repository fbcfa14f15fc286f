"""Where a run is kept: `runs/<name>/version_<n>`, or in another folder than `runs`."""

from __future__ import annotations

import os
import re
from pathlib import Path

RUNS = "runs"
"""Folder of all runs where `trainer.default_root_dir` names no other."""


def root_of(default_root_dir: str | os.PathLike[str] | None) -> str:
    """The folder of all runs.

    Args:
        default_root_dir: The Trainer's; None: it names none.
    """
    return os.path.expanduser(default_root_dir or RUNS)


def name_of_run(configuration: str | os.PathLike[str]) -> str:
    """The name of a run of a configuration.

    Args:
        configuration: Path of its file. A `config.yaml` has no name of its own: that of a run
            has the run's, any other one that of its folder.

    Example:
        >>> name_of_run("configs/tagging/conll2003.yaml")
        'conll2003'
        >>> name_of_run("runs/conll2003/version_0/config.yaml")
        'conll2003'
        >>> name_of_run("mine/config.yaml")
        'mine'
    """
    path = Path(configuration).absolute()
    if path.name != "config.yaml":
        return path.stem
    folder = path.parent
    if re.fullmatch(r"version_\d+", folder.name):
        folder = folder.parent
    return folder.name or path.stem
