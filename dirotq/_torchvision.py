"""Make `import torchvision` work beside a CPU build of PyTorch.

PyPI carries torchvision for CUDA only. Beside a CPU build of PyTorch its C++ library cannot be loaded, and
`import torchvision` then fails because it registers fake kernels for two operators that were never defined;
transformers, lpips and clean-fid fail with it. Defining the two schemas (no kernels) is enough for the parts
they use. Where the C++ library loads, this module does nothing.
"""

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_libraries: list[
    torch.library.Library
] = []  # a Library that is collected takes its definitions with it


def define_missing_schemas() -> bool:
    """Define the two schemas if torchvision is installed and its C++ library cannot be loaded.

    Returns True when something was defined. Calling it again is harmless.
    """
    if hasattr(torch.ops.torchvision, "nms"):
        return False
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or _loads(Path(spec.origin).parent):
        return False
    library = torch.library.Library("torchvision", "DEF")
    for name, schema in _SCHEMAS.items():
        library.define(name + schema)
    _libraries.append(library)
    return True


def _loads(package: Path) -> bool:
    for extension in package.glob("_C*.so"):
        try:
            torch.ops.load_library(extension)
        except (OSError, RuntimeError):
            return False
        return True
    return True
