"""Benchmarks: what is measured, against what, and the figures.

cases.py, peers/             what is measured, and who competes, as data and one file each
work.py, parity.py           a case's tensors, the same for all; right before fast
clock.py, floor.py           how long it takes, and how long it has to (floor_kernels.py: on a GPU)
suite.py, command.py         the run, and `rnnkit bench`
results.py, report.py        JSON with its schema, tables; charts.py draws, machine.py says where
tune.py                      the table that `backend="auto"` reads
gpu_check.py, checks.py      one command for a GPU that is there for minutes, and what runs it
cpu_engine.py                one command for the native engine, with cpu_records.py, cpu_ratios.py
end_to_end.py                whole trainings, with tagger.py and decoding.py, in turns.py's turns
results/                     what was measured
"""
