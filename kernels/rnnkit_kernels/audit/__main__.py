"""Compile the kernels ahead of time, without a GPU, and judge what comes out.

    python -m rnnkit_kernels.audit --out kernels/audit.md    # all plans of the benchmarks
    python -m rnnkit_kernels.audit --quick                   # 40 of them, one of each kind

A plan passes if no kernel of it spills, all fit the GPU and keep the rules of `assembly.py`.
"""

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from rnnkit_kernels.audit.cases import DEVICES, all_cases, crf_cases, quick_cases
from rnnkit_kernels.audit.compilation import amd_column, compile_case, compile_crf
from rnnkit_kernels.audit.table import report
from rnnkit_kernels.recurrence.plan import Fallback


def progress(done: int, total: int, since: float) -> None:
    """One line that says how far the compilation is and how long it will take."""
    if sys.stderr.isatty():
        rest = (time.monotonic() - since) / max(done, 1) * (total - done)
        bar = "#" * (30 * done // total)
        sys.stderr.write(f"\r[{bar:<30}] {done}/{total} plans, {rest:4.0f} s left ")
        sys.stderr.write("\n" if done == total else "")
        sys.stderr.flush()


def main(arguments: list[str] | None = None) -> int:
    """Compile, print and write the table; 1 if a kernel spills, does not fit or breaks a rule."""
    parser = argparse.ArgumentParser(
        prog="python -m rnnkit_kernels.audit",
        description="Compile the kernels' plans ahead of time; no GPU is needed.",
    )
    parser.add_argument(
        "--targets", nargs="+", choices=DEVICES, default=list(DEVICES), help="default: all"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument(
        "--out",
        type=Path,
        help="where the table goes, such as kernels/audit.md; not written where anything fails",
    )
    parser.add_argument("--quick", action="store_true", help="40 plans, one of each kind")
    given = parser.parse_args(arguments)
    cases = [
        case
        for case in (quick_cases() if given.quick else all_cases())
        if case.target in given.targets
    ]
    rows, amd, since = [], {}, time.monotonic()
    with ProcessPoolExecutor(given.jobs) as pool:
        try:
            tried = [case for case in quick_cases()[:3] if not given.quick]
            columns = {pool.submit(amd_column, case): case for case in tried}
            crf = [
                pool.submit(compile_crf, case) for case in crf_cases() if case[0] in given.targets
            ]
            running = [pool.submit(compile_case, case) for case in cases]
            for done, future in enumerate(as_completed(running), 1):
                rows.append(future.result())
                progress(done, len(cases), since)
            amd = {case: future.result() for future, case in columns.items()}
            crf_rows = [future.result() for future in crf]
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    faults = [
        f"{case.target} {case.cell} H={case.hidden} {case.dtype} {found.kernel}: {fault}"
        for case, _, resources in rows
        for found in resources
        for fault in found.faults
    ]
    faults += [
        f"{target} crf K={tags} {dtype} {found.kernel}: {fault}"
        for (target, tags, dtype), resources in crf_rows
        for found in resources
        for fault in found.faults
    ]
    missing = [f"{case}: {plan.reason}" for case, plan, _ in rows if isinstance(plan, Fallback)]
    table = report(rows, amd, crf_rows)
    if given.out is None:
        print(table)
    elif not (faults or missing):  # what is committed has none
        given.out.write_text(table)
    print(*(faults + missing), sep="\n", file=sys.stderr)
    print(f"{len(rows)} plans and {len(crf_rows)} CRFs, {len(faults)} faults", file=sys.stderr)
    return 1 if faults or missing else 0


if __name__ == "__main__":
    sys.exit(main())
