"""What the project aims at on an H100 or H200, apart from torch so that a summary needs no import of it."""

# Variant -> shape -> how many times as fast as the fastest dense bf16 model, BERT-base, fp8.
ENCODERS = {
    "8 bit": {"1x128": 1.5, "32x128": 1.6, "256x128": 1.7, "64x384": 1.6},
    "tall blocks 83 %": {"1x128": 1.5, "32x128": 1.9, "256x128": 1.9, "64x384": 1.8},
    "FFN/4, half the heads": {"1x128": 1.8, "32x128": 2.6, "256x128": 2.6, "64x384": 2.5},
    "and half the layers": {"1x128": 3.5, "32x128": 5.0, "256x128": 5.0, "64x384": 5.0},
}
# The first variant with half-full batches, against the fastest bf16 model that computes no padding either.
HALF_FULL = {"1x128": 1.2, "32x128": 1.4, "256x128": 1.5, "64x384": 1.5}

# Dense product of 8 bit -> most time that it may take, divided by the faster ``_scaled_mm``, with many rows.
GELU = "dense 0% gelu, 8 bit"
PRODUCTS = {"fp8": {"dense 0%": 1.05, GELU: 1.1}, "int8": {"dense 0%": 1.2}}
MANY_ROWS = 32768
# Tall blocks of half zeros, divided by our dense product.
TALL_BLOCKS = 1.0
