"""The code of docs/gradients.md runs, one block after the other."""

import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "gradients.md"


def test_the_page_runs() -> None:
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(block, names)
    assert names["only"].hidden_gradient.shape == (100, 4, 1, 16)
    assert names["y"].shape == (35, 8, 128)


def test_every_file_that_it_shows_is_there() -> None:
    links = re.findall(r"\]\((results[^)#]*)", PAGE.read_text())
    assert len(links) >= 6
    for link in links:
        assert (PAGE.parent / link).exists(), link
