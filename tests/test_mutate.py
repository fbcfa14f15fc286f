"""The list of `python -m tests.mutate` must not rot; whether mutants die, that command tells."""

from tests.mutate import MUTATIONS, ROOT, verdict


def test_every_mutation_still_applies() -> None:
    for mutation in MUTATIONS:
        broken = mutation.broken(ROOT)
        if mutation.file.endswith(".py"):
            compile(broken, mutation.name, "exec")
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)


def test_a_mistake_is_not_taken_for_a_kill() -> None:
    failed = "FAILED tests/kernels/test_x.py::test_y - "
    assert verdict(0, "1 passed") == ("survived", "")
    assert verdict(None, "") == ("killed", "the time limit")
    assert verdict(1, f"{failed}AssertionError: 1 > 0") == (
        "killed",
        "test_x.py::test_y  AssertionError: 1 > 0",
    )
    assert verdict(1, f"{failed}NameError: name 'z'")[0] == "mistake"
    assert verdict(4, "ERROR: not found")[0] == "mistake"
