#!/usr/bin/env bash
# All that the first GPU can tell, within ten minutes: bench/gpu_run.sh [FOLDER]   (default ./gpu-results)
# Needs torch and triton, no other package; compute-sanitizer is used if it is there. Writes parity.json,
# racecheck.json, racecheck-control.json, tune.json and attn.json, and tiles.py as tuned; the table of this checkout is
# rewritten, too.
# Exit code 1 if anything is wrong, and what could be measured is written all the same.
# Its parts have run on an H100, this script as a whole on a CPU only. There, --tune took 50 s an entry of the table: the
# budget below decides the first two, and calling it again with --shape decides others.
set -u
cd "$(dirname "$0")/.."
out=${1:-gpu-results}
mkdir -p "$out"
export PYTHONPATH=packages/xdyna-kernels/src${PYTHONPATH:+:$PYTHONPATH}
python=${PYTHON:-python3}
tiles=packages/xdyna-kernels/src/xdyna_kernels/tiles.py
failed=0

# The package's own backends, whichever there are, forward and gradients; the opponents are judged before they are
# timed. One that cannot run here is "not available", with its reason.
timeout 110 "$python" bench/attn.py --parity-only --only own --no-compile-report --json "$out/parity.json" || failed=1

# Small shapes with tails: racecheck slows a kernel down a hundredfold. Forward only, for the same reason. What it says
# of a kernel whose warps share nothing tells which hazards are Triton's own.
racecheck() { # name, seconds, arguments of python
    local log=$out/$1.log code=null
    if command -v compute-sanitizer >/dev/null; then
        timeout "$2" compute-sanitizer --tool racecheck --error-exitcode 3 "$python" "${@:3}" >"$log" 2>&1
        code=$?
    else
        echo "compute-sanitizer is not installed: nothing was checked" | tee "$log"
    fi
    "$python" - "$log" "$code" >"$out/$1.json" <<'EOF'
import json, pathlib, sys
lines = pathlib.Path(sys.argv[1]).read_text(errors="replace").splitlines()
json.dump({"exit_code": json.loads(sys.argv[2]), "log": lines[-200:]}, sys.stdout, indent=1)
EOF
    rm "$log"
    [ "$code" = 0 ] || [ "$code" = null ]
}
racecheck racecheck-control 20 bench/racecheck_control.py
racecheck racecheck 100 bench/attn.py --parity-only --only kernels --direction forward --batch 1 --frames 1 --heads 2 \
    --no-compile-report --shape 200x40 --shape 136x80 --shape 136x160 || failed=1

# No entry of the table is begun after the budget, and the table is written when the last one is decided: what is cut
# off by the timeout leaves the old one, and the bench below then says how fast that is.
timeout 190 "$python" bench/attn.py --tune --budget 110 --json "$out/tune.json" || failed=1
cp "$tiles" "$out/tiles.py"

# A table that has begun by then ends in time; the JSON is written after every table, so a timeout keeps the rest.
timeout 190 "$python" bench/attn.py --budget 130 --no-compile-report --json "$out/attn.json" || failed=1
exit $failed
