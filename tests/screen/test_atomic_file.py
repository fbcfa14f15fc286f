import os

import pytest

from rnnkit.screen.atomic_file import atomic_write


def test_the_new_file_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "new folder" / "score.txt"
    for text in ("old", "new"):
        with atomic_write(path) as beside:
            beside.write_text(text)
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["score.txt"]


def test_a_crash_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "score.txt"
    path.write_text("old")

    def crash():
        with atomic_write(path) as beside:
            beside.write_text("half of the n")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        crash()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["score.txt"]


def test_the_old_file_is_there_while_the_new_one_is_written(tmp_path):
    path = tmp_path / "score.txt"
    path.write_text("old")
    with atomic_write(path) as beside:
        beside.write_text("new")
        assert path.read_text() == "old"
        assert beside.parent == path.parent


def test_the_file_has_the_permissions_of_any_other(tmp_path):
    with atomic_write(tmp_path / "written") as beside:
        beside.write_text("")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "written").stat().st_mode == (tmp_path / "plain").stat().st_mode
