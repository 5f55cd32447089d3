"""DiRotQ: 4-bit post-training quantization of diffusion transformers.

recipe = dirotq.recipe("method=dirotq", "bits=w4a4_int4", "rank=0.125")
report = dirotq.quantize(model, recipe, batches)
dirotq.save(model, path)
"""

from dirotq._torchvision import define_missing_schemas

define_missing_schemas()  # before anything below can import torchvision

from dirotq.backend import set_backend  # noqa: E402
from dirotq.checkpoint import CheckpointError, load, save  # noqa: E402
from dirotq.config import recipe  # noqa: E402
from dirotq.diffusers_quantizer import register_when_imported  # noqa: E402
from dirotq.graphs import capture, release  # noqa: E402
from dirotq.quantize import LayerReport, Report, quantize  # noqa: E402
from dirotq.recipes import Recipe  # noqa: E402
from dirotq.version import __version__  # noqa: E402

register_when_imported()

__all__ = [
    "CheckpointError",
    "LayerReport",
    "Recipe",
    "Report",
    "__version__",
    "capture",
    "load",
    "quantize",
    "recipe",
    "release",
    "save",
    "set_backend",
]
