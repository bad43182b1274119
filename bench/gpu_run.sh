#!/usr/bin/env bash
# All that the first GPU can tell, within ten minutes: bench/gpu_run.sh [FOLDER]   (default ./gpu-results)
# Needs torch and triton, no other package; compute-sanitizer is used if it is there. Writes parity.json,
# racecheck.json, racecheck-control.json, tune.json, attn.json, and of what no GPU has run yet ("gluon_all", last, for
# it may hang or break the device) new.json and racecheck-new.json; and tiles.py and gluon_tiles.py as tuned: the
# tables of this checkout are rewritten, too.
# Exit code 1 if anything is wrong, and what could be measured is written all the same.
# Its parts have run on an H100, this script as a whole on a CPU only. Entries that the budget of --tune left as they
# were have no trials in tune.json: calling --tune again with --shape or --only decides those.
set -u
mkdir -p "${1:-gpu-results}" || exit 1
out=$(cd "${1:-gpu-results}" && pwd)
cd "$(dirname "$0")/.."
for name in parity racecheck racecheck-control tune attn new racecheck-new; do # of another run: not to be taken for this
    rm -f "$out/$name.json"
done
new=gluon_all
export PYTHONPATH=packages/xdyna-kernels/src${PYTHONPATH:+:$PYTHONPATH}
python=${PYTHON:-python3}
tables=packages/xdyna-kernels/src/xdyna_kernels
failed=0

# The package's own backends, whichever there are, forward and gradients; the opponents are judged before they are
# timed. One that cannot run here is "not available", with its reason.
timeout -k 3 100 "$python" bench/attn.py --parity-only --only own --without $new --no-compile-report --json "$out/parity.json" || failed=1

# Small shapes with tails: racecheck slows a kernel down a hundredfold. Forward only, for the same reason. Hazards in how
# Triton hands out work to warps do not count: it reports them of the control, too, whose warps share only a barrier.
racecheck() { # name, seconds, arguments of python
    local log=$out/$1.log code=null
    if command -v compute-sanitizer >/dev/null; then
        timeout -k 3 "$2" compute-sanitizer --tool racecheck --error-exitcode 3 "$python" bench/racecheck.py run "${@:3}" >"$log" 2>&1
        code=$?
    else
        echo "compute-sanitizer is not installed: nothing was checked" | tee "$log"
    fi
    "$python" bench/racecheck.py judge "$log" "$code" >"$out/$1.json"
    local passed=$?
    rm "$log"
    return $passed
}
racecheck racecheck-control 20 bench/racecheck_control.py
small=(bench/attn.py --parity-only --direction forward --batch 1 --frames 1 --heads 2 --no-compile-report
    --shape 200x40 --shape 136x80 --shape 136x160)
racecheck racecheck 75 "${small[@]}" --only kernels --without $new || failed=1

# Half of the budget is for compiling, and no entry of a table is begun after it. The tables are written when the last
# entry is decided: what is cut off by the timeout leaves the old ones, and the bench below then says how fast they are.
timeout -k 3 160 "$python" bench/attn.py --tune --without $new --budget 105 --json "$out/tune.json" || failed=1
cp "$tables/tiles.py" "$tables/gluon_tiles.py" "$out"

# A table that has begun by then ends in time; the JSON is written after every table, so a timeout keeps the rest.
timeout -k 3 160 "$python" bench/attn.py --without $new --budget 105 --no-compile-report --json "$out/attn.json" || failed=1

timeout -k 3 30 "$python" bench/attn.py --only $new,gluon,folded-cudnn --direction forward --budget 20 --no-compile-report \
    --json "$out/new.json" || failed=1
racecheck racecheck-new 30 "${small[@]}" --only $new || failed=1
exit $failed
