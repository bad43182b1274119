"""Times reference attention against every other way to compute it, on this device: `uv run bench/attn.py`.

Needs torch and triton and nothing else (nvidia-ml-py for clocks and matplotlib for --plot are used if they are
there). Only what has passed parity against float64 is timed; a row that fails says FAIL and the exit code is 1
(as it is where nothing could be run, or the compiler finds a fault).
Without a GPU the CPU backends run on small shapes, the model's shapes are shown as not timed, and the compiler tells
what it makes of the kernels. --tune chooses the tiles of the kernels on a GPU, by timing.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import attn_rows
import machine
import opponents
import roofline
import torch
from attn_flags import Plan, parse
from parity import Truth, Verdict
from shapes import DTYPES, Shape, draw, work
from timing import interleaved


def judge(name: str, contender: opponents.Contender, truth: Truth) -> tuple[Verdict | None, str, bool]:
    """The verdict on a contender, or the reason why there is none and whether that is a failure.

    Anybody may lack memory, and a backend of ours may refuse a device or shape with a ValueError that begins with its
    name. Anything else that it raises is a failure; what an opponent raises only keeps that opponent out. Opponents are
    not judged in poisoned memory, for which those that are compiled would be compiled apart.
    """
    if name == "eager" and truth.half:
        return None, "it rounds its scores in half precision, which no limit allows for", False
    own = name in opponents.own_backends()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            return truth.judge(contender, poisoned=own), "", False
        except Exception as error:
            if lacks_memory(error):
                return None, "out of memory", False
            refused = isinstance(error, ValueError) and str(error).startswith(("backend ", "backward "))
            failed = own and not refused
            cause: BaseException = error
            while cause.__cause__ is not None:  # compilers wrap it
                cause = cause.__cause__
            why = [str(cause) or type(cause).__name__, *(str(w.message) for w in caught)]
    # SDPA tells in warnings, one for every kernel, why it found none; the last are about the one that was wanted.
    return None, " | ".join(" ".join(text.split())[:160] for text in (why[:1] + why[-2:] if why[1:] else why)), failed


def lacks_memory(error: Exception) -> bool:
    """Whether that is all that is wrong: on a CPU, or of sizes beyond every memory, PyTorch has no class for it."""
    signs = ("can't allocate memory", "not enough memory", "size calculation overflowed", "multiplication overflow")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)


def run_group(
    plan: Plan, shape: Shape, direction: str, rows: list[dict], save: Callable[[], object]
) -> roofline.Roofline | None:
    """All contenders on one shape and direction: parity first, then times of those that passed, in turns with the
    probes of the roofline (None if nothing was timed). Fills `rows`, and saves after every verdict: what hangs then
    takes with it nothing but itself."""
    torch.compiler.reset()  # one graph per contender at a time: the compiler falls back after a few of one function
    dtype = DTYPES[plan.dtype]
    tensors, grad = draw(shape, dtype, plan.device, plan.seed)
    truth = Truth(tensors, None if direction == "forward" else grad)
    contenders = {name: opponents.build(name) for name in plan.names_in(direction)}
    for name, contender in contenders.items():
        verdict, note, failed = judge(name, contender, truth)
        rows.append(attn_rows.row(shape, direction, plan.dtype, name, verdict, note))
        if failed:
            rows[-1]["status"] = "FAIL"
        save()
    del truth
    passed = {row["backend"]: row for row in rows if row["status"] == "ok"}
    if not (plan.repeats and passed):
        return None
    probes = roofline.Probes(plan.device, dtype)
    calls = probes.calls | {name: opponents.caller(contenders[name], direction, tensors, grad) for name in passed}
    times = interleaved(calls, plan.device, plan.repeats, plan.seed)
    roof = probes.read(times)
    for name, row in passed.items():
        attn_rows.add_times(row, times[name], work(shape, direction, dtype.itemsize), roof)
    attn_rows.add_ratios(rows)
    return roof


def in_budget(
    plan: Plan, started: float, shape: Shape, direction: str, rows: list[dict], save: Callable[[], object]
) -> roofline.Roofline | None:
    """`run_group`, and in rows without a time why they have none: no time is left, or no memory even for the truth.
    Where anything else breaks, as all does once a kernel has broken the device, these rows fail."""
    note, broken = "not timed: the budget was spent", False
    if time.monotonic() - started <= plan.budget:
        try:
            return run_group(plan, shape, direction, rows, save)
        except (MemoryError, RuntimeError) as error:
            broken = not lacks_memory(error)
            note = " ".join(str(error).split())[:160] if broken else "out of memory"
    judged = {row["backend"] for row in rows}
    left = [row for row in rows if row["status"] == "ok"]  # right, but not timed
    for name in plan.names_in(direction):
        if name not in judged:
            rows.append(attn_rows.row(shape, direction, plan.dtype, name, None))
            left.append(rows[-1])
    for row in left:
        row |= {"note": note} | ({"status": "FAIL"} if broken else {})
    return None


def run(plan: Plan, save: Callable[[dict], object]) -> dict:
    """Runs the plan, prints every table when it is known and hands the record so far to `save`."""
    started = time.monotonic()
    facts = machine.facts(plan.device)
    print(f"{facts['device']}, commit {facts['commit']}, {facts['versions']}, seed {plan.seed}")
    record = {"machine": facts, "samples": [machine.sample(plan.device)], "roofline": None}
    record |= {"repeats": plan.repeats, "seed": plan.seed, "complete": False, "rows": [], "step": []}
    for direction in plan.directions:
        for shape in plan.shapes:
            run_table(plan, started, shape, direction, record, save)
    record["rows"] += absent(plan)
    record |= {"step": attn_rows.step(record["rows"]), "complete": True}
    save(record)
    print(*attn_rows.step_lines(record["step"]), sep="\n")
    print(f"device at first: {record['samples'][0]}")
    return record


def run_table(
    plan: Plan, started: float, shape: Shape, direction: str, record: dict, save: Callable[[dict], object]
) -> None:
    """`in_budget`, printed and put into the record."""
    needed, rows = work(shape, direction, DTYPES[plan.dtype].itemsize), []
    print(f"\n{direction}, {shape}, {plan.dtype}: {needed.flops / 1e12:.3g} TFLOP", flush=True)
    roof = in_budget(plan, started, shape, direction, rows, lambda: save(record | {"rows": [*record["rows"], *rows]}))
    record["samples"].append(machine.sample(plan.device))
    if roof is not None:
        bound, by = roof.bound(needed)
        print(f"bound {bound:.3g} ms ({by}): {roof}\ndevice after it: {record['samples'][-1]}")
        before = record["roofline"]
        record["roofline"] = roof.best(None if before is None else roofline.Roofline(**before)).as_dict()
    print(attn_rows.HEADER, *map(attn_rows.line, rows), sep="\n", flush=True)
    record["rows"] += rows
    record["step"] = attn_rows.step(record["rows"])
    save(record)


def absent(plan: Plan) -> list[dict]:
    """Rows of the model's shapes for every contender, not timed; prints one line for each table."""
    everybody, rows = (*opponents.own_backends(), *opponents.OPPONENTS), []
    if plan.absent:
        print()
    for direction in plan.directions:
        names = [name for name in everybody if opponents.runs_in(name, direction)]
        for shape in plan.absent:
            rows += attn_rows.absent(shape, direction, "bf16", names)
            print(f"{direction}, {shape}, bf16: not timed, there is no GPU ({len(names)} rows)")
    return rows


def compiled() -> int:
    """Prints what the compiler says for a GPU that is not here; returns the number of faults."""
    try:
        import compile_report  # imports triton
    except ImportError as error:
        print(f"\nthe kernels were not compiled: {error}")
        return 0
    print("\nwhat the compiler says for a GPU that is not here (all of it: bench/compile_report.py)", flush=True)
    return compile_report.summary()


def tuned(plan: Plan, dtype: str | None, save: Callable[[dict], object]) -> int:
    """Chooses tiles and writes them; returns the exit code."""
    import tune  # xdyna_kernels may be an older one, without what this needs
    from xdyna_kernels import tiles

    half, single = [("half", "fp16" if dtype == "fp16" else "bf16")], [("tf32", "fp32"), ("ieee", "fp32")]
    dtypes = half + single if dtype is None else single if dtype == "fp32" else half
    chip = tiles.CHIPS.get(torch.cuda.get_device_capability(plan.device))
    folder = Path(tiles.__file__).parent
    if chip is None:
        print(
            f"--tune: {tiles.__file__} has no row of this chip to start from; add one to every table", file=sys.stderr
        )
        return 1
    try:
        tune.tune(plan, chip, dtypes, folder, save)
    except BrokenProcessPool:
        print("--tune: a compiler ended its process; the tables are as they were", file=sys.stderr)
        return 1
    except (tune.TuneError, OSError) as error:
        print(f"--tune: {error}", file=sys.stderr)
        return 1
    print(f"\nthe tables in {folder} are written. Now record what they compile to: bench/compile_report.py --update")
    return 0


def main(arguments: list[str] | None = None) -> int:
    options, plan = parse(__doc__, arguments)
    if plan.device.type == "cpu":
        torch.set_num_threads(options.threads)

    def save(record: dict) -> None:
        if options.json:
            options.json.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")

    if options.tune:
        return tuned(plan, options.dtype, save)
    record = run(plan, save)
    if options.plot and record["roofline"] is None:
        print("--plot: no picture, nothing was timed", file=sys.stderr)
    elif options.plot:
        try:
            roofline.plot(options.plot, roofline.Roofline(**record["roofline"]), record["rows"])
        except ImportError:
            print("--plot: no picture, matplotlib is not installed", file=sys.stderr)
    faults = compiled() if plan.device.type == "cpu" and not options.no_compile_report else 0
    if faults:
        print(f"\nFAIL: {faults} faults of compiled kernels", file=sys.stderr)
    failed = [row for row in record["rows"] if row["status"] == "FAIL"]
    if failed:
        print(f"\nFAIL: {len(failed)} of {len(record['rows'])} rows are wrong", file=sys.stderr)
    nothing = all(row["status"] != "ok" for row in record["rows"])
    if nothing:
        print("nothing could be run", file=sys.stderr)
    return 1 if failed or nothing or faults else 0


if __name__ == "__main__":
    sys.exit(main())
