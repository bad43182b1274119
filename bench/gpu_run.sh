#!/usr/bin/env bash
# All that the first GPU can tell, within ten minutes: bench/gpu_run.sh [FOLDER]   (default ./gpu-results)
# Needs torch and triton, no other package; compute-sanitizer is used if it is there. Writes parity.json,
# racecheck.json and attn.json. Exit code 1 if anything is wrong, and what could be measured is written all the same.
# NOT YET RUN ON A GPU: checked by `bash -n` and on a CPU only, where all of it runs on small shapes.
set -u
cd "$(dirname "$0")/.."
out=${1:-gpu-results}
mkdir -p "$out"
export PYTHONPATH=packages/xdyna-kernels/src${PYTHONPATH:+:$PYTHONPATH}
python=${PYTHON:-python3}
failed=0

# Ours only: the opponents are judged in the bench, before they are timed. On a CPU, "triton" is not available.
timeout 120 "$python" bench/attn.py --parity-only --only eager,sdpa,triton --no-compile-report \
    --json "$out/parity.json" || failed=1

# Small shapes with tails: racecheck slows a kernel down a hundredfold. Forward only, for the same reason.
log=$out/racecheck.log
if command -v compute-sanitizer >/dev/null; then
    timeout 120 compute-sanitizer --tool racecheck --error-exitcode 3 "$python" bench/attn.py --parity-only \
        --only triton --direction forward --batch 1 --frames 1 --heads 2 --no-compile-report \
        --shape 200x40 --shape 136x80 --shape 136x160 >"$log" 2>&1
    code=$?
    [ $code -eq 0 ] || failed=1
else
    echo "compute-sanitizer is not installed: nothing was checked" | tee "$log"
    code=null
fi
"$python" - "$log" "$code" >"$out/racecheck.json" <<'EOF'
import json, pathlib, sys
lines = pathlib.Path(sys.argv[1]).read_text(errors="replace").splitlines()
json.dump({"exit_code": json.loads(sys.argv[2]), "log": lines[-200:]}, sys.stdout, indent=1)
EOF
rm "$log"

# A table that has begun by then ends in time; the JSON is written after every table, so a timeout keeps the rest.
timeout 340 "$python" bench/attn.py --budget 240 --no-compile-report --json "$out/attn.json" || failed=1
exit $failed
