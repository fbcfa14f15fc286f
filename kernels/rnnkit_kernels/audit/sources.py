"""What the kernels are compiled from, in one word: a table of another word is stale."""

import hashlib
from pathlib import Path


def source_hash() -> str:
    """Of all that the kernels are compiled from."""
    folder = Path(__file__).parents[1]
    files = [*folder.glob("cells/*.py"), *folder.glob("recurrence/*.py")]
    files.remove(folder / "recurrence/eager.py")  # PyTorch: nothing is compiled from it
    files += [
        folder / f"{name}.py" for name in ("random/kernels", "crf/kernels", "vocabulary/tiles")
    ]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
