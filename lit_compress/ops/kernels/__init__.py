"""Triton kernels, one file per operator; imported only where one runs, because not every machine has Triton."""
