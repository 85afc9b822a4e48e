"""Accuracy, size and speed of a dense and a compressed model, side by side."""
