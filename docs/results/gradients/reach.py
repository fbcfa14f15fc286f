"""How far back gradients reach at the end of the runs of `rnnkit study gradients` at T = 100.

    python docs/results/gradients/reach.py runs/gradients

‖u ∂s_T/∂s_t‖, mean over 50 sequences of the validation, in float64, with the last weights.
"""

import sys
from pathlib import Path

import torch

from rnnkit.nn.gradient_flow import gradient_flow
from rnnkit.sequences import SequenceData, SequenceModel
from rnnkit.training.studies.gradients import MODELS

BACK = (1, 10, 25, 50, 99)
data = SequenceData("adding", length=100)
input = next(iter(data.val_dataloader())).input[:, :50].double()
print("| at the end of training, steps back |", " | ".join(map(str, BACK)), "|")
print("|---|" + "---|" * len(BACK))
for name, (title, _) in MODELS.items():
    place = Path(sys.argv[1]) / f"{name}_T100_seed0"
    newest = max(
        place.glob("version_*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime
    )
    model = SequenceModel.load_from_checkpoint(newest, weights_only=True).double()
    (flow,) = gradient_flow(model.rnn, input, generator=torch.Generator().manual_seed(0))
    norms = flow.both.mean(1)
    print(f"| {title} |", " | ".join(f"{norms[-1 - back]:.2g}" for back in BACK), "|")
