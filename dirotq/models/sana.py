"""SANA (arXiv 2410.10629): linear self-attention, and a feed-forward of convolutions (GLUMBConv).

Quantized as in SVDQuant's rows: self-attention, the query and output of cross-attention, and the feed-forward's two
1x1 convolutions. (DiRotQ's rows leave the feed-forward at 16 bits.) Kept: the depthwise convolution, embedders, the
final projection, and cross-attention's key and value, which read the caption.
"""

from dirotq.models.layout import Layout

_BLOCK = r"transformer_blocks\.\d+\."
_CROSS = (_BLOCK + r"attn2\.to_q", _BLOCK + r"attn2\.to_out\.0")

LAYOUT = Layout(
    name="sana",
    classes=("SanaTransformer2DModel",),
    quantize=(
        _BLOCK + r"attn1\.to_[qkv]",
        _BLOCK + r"attn1\.to_out\.0",
        *_CROSS,
        _BLOCK + r"ff\.conv_inverted\.linear",
        _BLOCK + r"ff\.conv_point\.linear",
    ),
    pointwise=(_BLOCK + r"ff\.conv_inverted", _BLOCK + r"ff\.conv_point"),
    heads=((r"(.*\.attn[12])\.to_out\.0", r"\1"),),
    optional=_CROSS,  # a model built with cross_attention_dim=None has no attn2
)
