import json
import sys

import pytest
from hypothesis import strategies as st

from tests.soak import fuzz
from tests.soak.fuzz_targets import TARGETS, Target, check_beam, check_schemes

READERS = [target for target in TARGETS if target.reads_bytes]


def breaks_at_a_bell(content):
    assert b"\a" not in content


def breaks_at_seven(number):
    if number == 7:
        sys.exit(3)


def test_what_breaks_is_found_counted_and_written(tmp_path, monkeypatch, capsys):
    targets = (
        Target("bell", breaks_at_a_bell, [b"a", lambda: b"\a"]),
        Target("seven", breaks_at_seven, st.integers(0, 9)),
        Target("nothing", lambda number: None, st.integers()),
    )
    monkeypatch.setattr(fuzz, "TARGETS", targets)
    out = tmp_path / "fuzz.json"
    options = ["--minutes", "0.02", "--engine", "hypothesis", "--seed", "0", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["fuzz", *options])
    assert fuzz.main() == 1
    found = json.loads(out.read_text())["targets"]
    assert [len(each["findings"]) for each in found.values()] == [1, 1, 0]
    assert all(each["inputs"] >= fuzz.FEWEST for each in found.values())
    (seven,) = found["seven"]["findings"].values()
    assert seven == {"error": "3", "input": "7"}
    assert len(capsys.readouterr().out.splitlines()) == 3
    monkeypatch.setattr(sys, "argv", ["fuzz", *options, "--targets", "nothing"])
    assert fuzz.main() == 0


@pytest.mark.parametrize("target", READERS, ids=lambda target: target.name)
def test_what_a_reader_begins_with_is_read(target):
    for content in fuzz.first_inputs(target):
        target.check(content)


def test_a_wrong_search_and_a_wrong_conversion_would_be_found(monkeypatch):
    beams = ([-0.5, -1.0, -2.5], 3, 3, 2, 0, 0.6, 1)
    check_beam(beams)
    monkeypatch.setattr("tests.soak.fuzz_targets.plain_beam_search", lambda *_, **__: [])
    with pytest.raises(AssertionError):
        check_beam(beams)
    tags = ([("A", 0, 2), ("A", 0, 1)], ["B-A", "I-B"])
    check_schemes(tags)
    monkeypatch.setattr("tests.soak.fuzz_targets.convert", lambda tags, *_: tags[:-1])
    with pytest.raises(AssertionError):
        check_schemes(tags)
