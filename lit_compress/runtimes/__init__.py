"""Runtimes behind one way to call them: ONNX Runtime, OpenVINO and PyTorch, here or in a process of their own.

Nothing heavy is imported here: a process that runs a file in ONNX Runtime needs neither torch nor Transformers, which
take seconds to import.
"""
