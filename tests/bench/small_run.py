"""The flags of a run of bench/attn.py that takes a moment, on a CPU."""

SMALL = ["--device", "cpu", "--shape", "20x8", "--heads", "2", "--frames", "2", "--repeats", "3", "--no-compile-report"]
