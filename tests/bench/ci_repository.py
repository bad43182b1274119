"""A repository for bench/ci.py whose kernels say themselves how slow they are, and a bench that believes them."""

import subprocess
from pathlib import Path
from types import ModuleType

# A bench that takes no time: the kernels themselves say how slow they are.
STAND_IN = """
import json, random, sys
from pathlib import Path
import xdyna_kernels as kernels

rng, rows = random.Random(), []
log = Path(__file__).with_name("log")
log.write_text((log.read_text() if log.exists() else "") + kernels.NAME + " ")
for backend in ("released", *kernels.BACKENDS):
    samples = sorted(10 * kernels.BACKENDS.get(backend, 1) * rng.uniform(0.99, 1.01) for _ in range(15))
    rows.append({"shape": {"N": 8}, "direction": "forward", "dtype": "fp32", "backend": backend, "status": "ok"})
    rows[-1] |= {"ms": samples[7], "ms_p20": samples[3], "ms_p80": samples[11]}
    if backend in kernels.WRONG:
        rows[-1] |= {"status": "FAIL", "ms": None, "note": "relative error"}
record = {"machine": {"device": "a CPU"}, "complete": not kernels.KILLED, "rows": rows}
Path(sys.argv[sys.argv.index("--json") + 1]).write_text(json.dumps(record))
sys.exit(bool(kernels.WRONG or kernels.KILLED))
"""


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


def commit(
    ci: ModuleType, name: str, wrong: tuple[str, ...] = (), killed: bool = False, more: str = "", **slowness: float
) -> str:
    """A commit of kernels that say how slow they are."""
    kernels = ci.ROOT / ci.KERNELS / "xdyna_kernels" / "__init__.py"
    kernels.parent.mkdir(parents=True, exist_ok=True)
    kernels.write_text(f"NAME, BACKENDS, WRONG, KILLED = {name!r}, {slowness!r}, {wrong!r}, {killed}\n{more}\n")
    bench = ci.ROOT / "bench" / "attn.py"
    bench.parent.mkdir(exist_ok=True)
    bench.write_text(STAND_IN)
    if not (ci.ROOT / ".git").exists():
        git(ci.ROOT, "init", "-q", "-b", "main")
    git(ci.ROOT, "add", "--", "packages", "bench/attn.py")
    git(ci.ROOT, "commit", "-q", "-m", name)
    return git(ci.ROOT, "rev-parse", "HEAD").strip()


def ran(ci: ModuleType) -> list[str]:
    """Whose kernels the bench ran on, in order."""
    log = ci.ROOT / "bench" / "log"
    return log.read_text().split() if log.exists() else []
