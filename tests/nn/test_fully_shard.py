"""torch's fully_shard over two gloo processes: each keeps half of every parameter of the layers."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import rnnkit

pytestmark = [
    pytest.mark.process,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed"),
]

PROCESSES, BATCH, STEPS, TOKENS = 2, 4, 10, 50


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, 12)
        self.lstm = rnnkit.LSTM(12, 16, num_layers=2)
        self.gru = rnnkit.GRU(16, 8, bidirectional=True)
        self.softmax = nn.Linear(16, TOKENS)

    def forward(self, tokens, lengths, state):
        output, state = self.lstm(self.embedding(tokens), state)
        output, _ = self.gru(output, lengths=lengths)
        return self.softmax(output), state


def train(model, columns):
    """Loss of each step, summed over the columns of the process; the state is carried on."""
    generator = torch.Generator().manual_seed(1)
    texts = torch.randint(TOKENS, (6, STEPS + 1, BATCH), generator=generator)
    lengths = torch.randint(1, STEPS + 1, (6, BATCH), generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    losses, state = [], None
    for text, length in zip(texts[..., columns], lengths[..., columns], strict=True):
        logits, state = model(text[:-1], length, state)
        state = tuple(part.detach() for part in state)
        loss = functional.cross_entropy(logits.flatten(0, 1), text[1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def work(rank, folder):
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", store, rank=rank, world_size=PROCESSES)
    torch.manual_seed(0)
    model = Model()
    mesh = torch.distributed.init_device_mesh("cpu", (PROCESSES,))
    for part in (model.lstm, model.gru, model):
        fully_shard(part, mesh=mesh)
    kept = sum(parameter.to_local().numel() for parameter in model.parameters())
    width = BATCH // PROCESSES
    losses = train(model, slice(rank * width, (rank + 1) * width))
    torch.distributed.all_reduce(losses)
    whole = {name: parameter.full_tensor() for name, parameter in model.named_parameters()}
    torch.save((losses / PROCESSES, whole, kept), f"{folder}/{rank}")
    torch.distributed.destroy_process_group()


def test_two_processes_that_share_the_parameters_train_as_one(tmp_path):
    # Forked: they need not import anything.
    torch.multiprocessing.start_processes(
        work, (str(tmp_path),), nprocs=PROCESSES, start_method="fork"
    )
    torch.manual_seed(0)
    model = Model()
    losses = train(model, slice(BATCH))
    parameters = dict(model.named_parameters())
    assert losses[-1] < losses[0]
    for rank in range(PROCESSES):
        shared_losses, whole, kept = torch.load(tmp_path / str(rank), weights_only=True)
        assert kept == sum(each.numel() for each in parameters.values()) / PROCESSES
        assert torch.allclose(shared_losses, losses, atol=1e-5)
        assert whole.keys() == parameters.keys()
        for name, value in whole.items():
            assert torch.allclose(value, parameters[name], atol=1e-5), name
