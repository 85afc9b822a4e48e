"""Make BERT-family encoders smaller: pruning, distillation and quantization as PyTorch Lightning callbacks."""

__version__ = "0.1.0"
