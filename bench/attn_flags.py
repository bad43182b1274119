"""The flags of the attention bench, and the plan that they make."""

import argparse
from dataclasses import dataclass

import opponents
import roofline
import torch
from output_file import output_file
from shapes import DIRECTIONS, DTYPES, LEVELS, MIDDLE_LEVELS, MODEL, SMALL_LEVELS, Shape


@dataclass(frozen=True)
class Plan:
    """What is to be run."""

    device: torch.device
    dtype: str
    shapes: list[Shape]
    absent: list[Shape]  # levels that only a GPU could time, to be shown as such
    directions: tuple[str, ...]
    names: tuple[str, ...]
    repeats: int
    seed: int
    budget: float

    def names_in(self, direction: str) -> list[str]:
        """Those that have a row in this direction."""
        return [name for name in self.names if opponents.runs_in(name, direction)]


def parse(description: str | None, arguments: list[str] | None) -> tuple[argparse.Namespace, Plan]:
    """The flags and the plan; ends the program with exit code 2 and the reason where they make no sense."""
    parser = _parser(description)
    options = parser.parse_args(arguments)
    _check(parser, options)
    if options.tune and not (torch.cuda.is_available() and options.device == "cuda"):
        parser.exit(1, "--tune needs a GPU: tiles are chosen by timing them, and there is none here\n")
    cuda = options.device == "cuda"
    if cuda and not torch.cuda.is_available():
        parser.error("there is no CUDA device")
    rivals = opponents.OPPONENTS if cuda else opponents.CPU_OPPONENTS
    names = _names(parser, "--only", options.only) or (*opponents.own_backends(), *rivals)
    without = _names(parser, "--without", options.without)
    names = tuple(name for name in names if name not in without)
    if not names:
        parser.error("--without: nothing is left to run")
    levels = _levels(parser, options.shape) or list(LEVELS if cuda else MIDDLE_LEVELS if options.full else SMALL_LEVELS)
    whole = not (cuda or options.shape or options.only or options.without or options.parity_only)
    given = (options.batch, options.frames, options.repeats)
    usual = (2, 16, 30) if cuda else (1, 4, 11)
    batch, frames, repeats = (u if g is None else g for g, u in zip(given, usual, strict=True))
    if min(batch, frames, options.heads, options.threads, repeats, *(size for level in levels for size in level)) < 1:
        parser.error("shapes, --threads and --repeats must be positive")
    return options, Plan(
        torch.device(options.device),
        options.dtype or ("bf16" if cuda else "fp32"),
        [Shape(batch, 1 + frames, n, options.heads, d) for n, d in levels],
        [Shape(*MODEL[:2], n, MODEL[2], d) for n, d in LEVELS] if whole else [],
        (options.direction,) if options.direction else DIRECTIONS,
        names,
        0 if options.parity_only else repeats,
        options.seed,
        options.budget,
    )


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """What would otherwise only be found out when something is to be written or drawn."""
    if options.plot and not roofline.draws(options.plot):
        suffix = options.plot.suffix
        why = f"matplotlib draws no {suffix}" if suffix else f"give it a name like {options.plot.name}.png"
        parser.error(f"--plot: {why}")
    if not -(2**63) <= options.seed < 2**64:
        parser.error("--seed: torch takes numbers from -2**63 to 2**64 - 1")


def _known() -> tuple[str, ...]:
    return (*opponents.own_backends(), *opponents.OPPONENTS)


def _names(parser: argparse.ArgumentParser, flag: str, given: str | None) -> tuple[str, ...]:
    """The contenders that a flag names, in its order; none if it was not given."""
    groups = {"own": opponents.own_backends(), "kernels": opponents.kernels()}
    names = [] if given is None else [name for word in given.split(",") for name in groups.get(word, (word,))]
    if unknown := sorted(set(names) - set(_known())):
        parser.error(f"{flag}: {', '.join(unknown)} is none of {', '.join((*groups, *_known()))}")
    return tuple(dict.fromkeys(names))


def _levels(parser: argparse.ArgumentParser, shapes: list[str] | None) -> list[tuple[int, int]]:
    """Those of --shape in its order, each once: a record has no row twice."""
    try:
        levels = [(int(tokens), int(channels)) for tokens, channels in (text.split("x") for text in shapes or ())]
    except ValueError:
        parser.error("--shape: expected tokens x head channels, as in 7168x40")
    return list(dict.fromkeys(levels))


def _parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", action="append", metavar="NxD", help="tokens x head channels; repeatable")
    parser.add_argument("--batch", type=int, help="clips: 2 is guidance (2; 1 on a CPU)")
    parser.add_argument("--frames", type=int, help="frames beside the reference (16; 4 on a CPU)")
    parser.add_argument("--heads", type=int, default=8, help="(8)")
    parser.add_argument("--direction", choices=DIRECTIONS, help="only this one")
    parser.add_argument("--only", metavar="A,B", help=f"of {', '.join(_known())}; own and kernels are groups")
    parser.add_argument("--without", metavar="A,B", help="not these, nor their tiles with --tune")
    parser.add_argument("--dtype", choices=DTYPES, help="(bf16; fp32 on a CPU)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--full", action="store_true", help="on a CPU, the larger levels that its baseline has")
    parser.add_argument(
        "--tune",
        action="store_true",
        help="choose tiles on this GPU and write them to tiles.py and gluon_tiles.py; --only gluon or triton: those",
    )
    parser.add_argument("--repeats", type=int, help="timed rounds (30; 11 on a CPU)")
    # On shared cores, threads wait for each other in some ways of computing more than in others: ratios then move by
    # a factor of two with the load.
    parser.add_argument("--threads", type=int, default=1, help="on a CPU; timed by the wall clock if more than one (1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--budget",
        type=float,
        default=float("inf"),
        metavar="SECONDS",
        help="begin no table after so many; with --tune no entry of one, and the first half is for compiling: an entry "
        "that is not compiled by then is left as it is (the compiler's last kernels and the last entry still end)",
    )
    parser.add_argument("--parity-only", action="store_true", help="time nothing")
    parser.add_argument("--no-compile-report", action="store_true", help="leave the compile report out on a CPU")
    parser.add_argument("--json", type=output_file, help="write rows and facts here, after every table")
    parser.add_argument("--plot", type=output_file, help="draw the roofline picture here (needs matplotlib)")
    return parser
