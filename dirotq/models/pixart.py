"""PixArt-Sigma (arXiv 2403.04692), and the embedded model, which is a small one.

Quantized as in SVDQuant's and DiRotQ's rows: self-attention, the query and output of cross-attention, and the
feed-forward. Kept: embedders, adaLN-single, norms, the final projection, and cross-attention's key and value, which
read the caption and run once an image.
"""

from dirotq.models.layout import Layout

_BLOCK = r"transformer_blocks\.\d+\."

LAYOUT = Layout(
    name="pixart",
    classes=("PixArtTransformer2DModel",),
    quantize=(
        _BLOCK + r"attn1\.to_[qkv]",
        _BLOCK + r"attn1\.to_out\.0",
        _BLOCK + r"attn2\.to_q",
        _BLOCK + r"attn2\.to_out\.0",
        _BLOCK + r"ff\.net\.0\.proj",
        _BLOCK + r"ff\.net\.2",
    ),
    heads=((r"(.*\.attn[12])\.to_out\.0", r"\1"),),
)
