"""Halves a trained model for shipping: `python -m xdyna_train.publish RUN/model OUT_DIR`.

The nano model in `xdyna_model` is what `xdyna-train fit` wrote, passed through this.
"""

import json
import sys
from pathlib import Path

import torch
from xdyna_model.cli import quiet
from xdyna_model.model_folder import load_pipeline
from xdyna_model.outputs import staged_folder
from xdyna_model.refusals import refusing


def publish(model: Path, out: Path) -> int:
    """Writes the pipeline folder `model` with float16 weights to `out`; returns its size in bytes.

    Raises InputError: `model` cannot be loaded, or `out` is there already.
    """
    pipeline = load_pipeline(model, torch.float16)
    with staged_folder(out) as draft:
        pipeline.save_pretrained(draft)
        for path in draft.rglob("*.json"):
            facts = json.loads(path.read_text())
            if facts.pop("_name_or_path", None) is not None:  # where it lay on this machine
                path.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def main() -> None:
    """The model's folder and the folder to write are the two arguments."""
    if len(sys.argv) != 3:
        sys.exit("usage: python -m xdyna_train.publish MODEL_DIR OUT_DIR")
    quiet()
    with refusing("publish"):
        size = publish(Path(sys.argv[1]), Path(sys.argv[2]))
    print(f"{sys.argv[2]} {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
