"""A user's ONNX file, opened by ONNX Runtime."""

from importlib import import_module
from pathlib import Path
from typing import Any

from xdyna_model.errors import InputError


def open_session(path: Path, what: str, providers: list[str] | None = None) -> Any:
    """An `onnxruntime.InferenceSession`. what: the kind of model, for messages, such as "pose".

    providers: of ONNX Runtime, in order of preference; None = CUDA where it is installed, else the CPU.
    Raises InputError where onnxruntime is not installed, or the file is missing or cannot be loaded.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the ONNX file of a {what} model")
    try:
        runtime = import_module("onnxruntime")
    except ImportError as error:
        raise InputError(
            f"a {what} model needs onnxruntime ({error}): install it with `pip install 'xdyna-model[detect]'`"
        ) from error
    if providers is None:
        installed = runtime.get_available_providers()
        providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in installed]
    try:
        return runtime.InferenceSession(str(path), providers=providers)
    except Exception as error:  # every kind of failure has a class of its own in native code
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: cannot be loaded as a {what} model ({reason})") from error
