"""Makes a torchvision importable that was built for another torch than the installed one."""

import functools
import importlib
import importlib.util
from typing import Any

import torch


@functools.cache
def make_torchvision_importable() -> Any:
    """Declare the operators that torchvision's import expects, if they are missing.

    If torchvision is installed, transformers imports it with its models, and TRL with its trainers.
    A torchvision that does not fit the build of torch, as PyPI's does not fit one for CPUs, has no
    operators, and its import fails where it describes two of them. Resizing and normalising need
    none. Keep the returned object alive for as long as the declarations are needed.
    """
    if importlib.util.find_spec("torchvision") is None:
        return None
    try:
        return importlib.import_module("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")
        return library
