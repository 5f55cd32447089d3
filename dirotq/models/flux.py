"""FLUX.1 (dev, schnell): 19 blocks with two streams, text and image, and 38 with one.

Quantized as in SVDQuant's and DiRotQ's rows: attention and feed-forward of both streams, and of the single blocks all
that is not modulation. Weights only: adaLN-zero's linears, which read one vector an image. Kept: embedders, the final
norm and projection. A single block's `proj_out` reads attention's output and the feed-forward's hidden layer side by
side, and is split into the two.
"""

from dirotq.models.layout import Layout

_DOUBLE = r"transformer_blocks\.\d+\."
_SINGLE = r"single_transformer_blocks\.\d+\."

LAYOUT = Layout(
    name="flux",
    classes=("FluxTransformer2DModel",),
    quantize=(
        _DOUBLE + r"attn\.to_[qkv]",
        _DOUBLE + r"attn\.to_out\.0",
        _DOUBLE + r"attn\.add_[qkv]_proj",
        _DOUBLE + r"attn\.to_add_out",
        _DOUBLE + r"ff\.net\.0\.proj",
        _DOUBLE + r"ff\.net\.2",
        _DOUBLE + r"ff_context\.net\.0\.proj",
        _DOUBLE + r"ff_context\.net\.2",
        _SINGLE + r"attn\.to_[qkv]",
        _SINGLE + r"proj_mlp",
        _SINGLE + r"proj_out\.parts\.[01]",
    ),
    weight_only=(
        _DOUBLE + r"norm1\.linear",
        _DOUBLE + r"norm1_context\.linear",
        _SINGLE + r"norm\.linear",
    ),
    heads=(
        (r"(.*\.attn)\.to_(?:out\.0|add_out)", r"\1"),
        (r"(.*)\.proj_out\.parts\.0", r"\1.attn"),
    ),
    splits=((_SINGLE + "proj_out", ("out_features",)),),
)
