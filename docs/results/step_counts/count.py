"""Count the instructions, barriers and looks of a step for the table of kernels/NOTES.md.

    PYTHONPATH=kernels python docs/results/step_counts/count.py > version_2.json

Compiles the kernels that are on the path for sm_90; no GPU is needed. Version 1 are the kernels of
commit c1ae0b6, with the audit of today, which count.
"""

import json

from rnnkit_kernels.audit.cases import Case
from rnnkit_kernels.audit.compilation import compile_case
from rnnkit_kernels.audit.sources import source_hash

counts = []
for hidden in (768, 1024):
    case = Case("lstm", hidden, mode="data", ragged=False)
    _, plan, kernels = compile_case(case)
    for tiles, found in zip((plan.forward, plan.backward), kernels, strict=True):
        counts.append(
            {
                "hidden": hidden,
                "kernel": found.kernel,
                "warps": tiles.num_warps,
                "instructions": found.step_instructions,
                "barriers": found.step_barriers,
                "looks": -(-len(tiles.chunks[0]) // getattr(tiles, "polled", 1)),
                "registers": found.registers,
                "stack": found.stack,
                "shared_memory": found.shared_memory,
            }
        )
print(json.dumps({"source": source_hash(), "counts": counts}, indent=1))
