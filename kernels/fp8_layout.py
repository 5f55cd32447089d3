"""How a quantized linear is laid out as one FP8 product, by all who write or read its operands.

    a  [M, low + 3 r]  float8_e4m3fn = [ low codes | a1 | a2 | a1 ]            scale_a [M, 1] float32
    w  [N, low + 3 r]  float8_e4m3fn = [ low codes | w1 | w1 / 16 | w2 / 16 ]  scale_w [N, 1] float32
    y  [M, N] = scale_a * scale_wᵀ * (a wᵀ) + bias

low and r are the widths of the low and of the protected part. All scales are powers of two, one a row, so what is
divided by them loses nothing but at the very bottom of E4M3: there it is rounded to a multiple of 2^-9, ties to even.

    low(x)  = scale_a * low codes                       low(W)  = scale_w * low codes
    high(x) * 2^-HIGH_SHIFT = scale_a * (a1 + a2 / 16)  high(W) * 2^HIGH_SHIFT = scale_w * (w1 + w2 / 16)

[a1 | a2 | a1] [w1 | w1 / 16 | w2 / 16]ᵀ = (a1 + a2 / 16) (w1 + w2 / 16)ᵀ but for a2 w2ᵀ / 256, the product of the
residuals.
"""

# Protected activations are the largest of their row and protected weights are not: the exponents are moved to where
# there is room, so that neither sets the row's scale.
HIGH_SHIFT = 3
