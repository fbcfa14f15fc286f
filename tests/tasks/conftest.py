import pytest
import torch

WORDS = ["the", "a", "cat", "dog", "bird", "sees", "hears", "likes", "under", "mat", "tree"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Threads only wait for each other in models as small as these."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """About 1,000 tokens of training text, 160 of validation, 160 of test."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = torch.Generator().manual_seed(0)
    for name, lines in (("train", 125), ("valid", 20), ("test", 20)):
        ids = torch.randint(len(WORDS), (lines, 7), generator=generator).tolist()
        text = "\n".join(" ".join(WORDS[i] for i in line) for line in ids)
        (folder / f"{name}.txt").write_text(text + "\n")
    return str(folder)
