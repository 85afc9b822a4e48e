"""The program of docs/latency.md, as it stands there, on a machine that takes a millisecond for each layer."""

from docs.blocks import ROOT, blocks
from transformers import BertConfig

from lit_compress.planning import measure_latency


def test_the_program_is_run(tmp_path, monkeypatch, capsys):
    def seconds(config, structures, target, rows, tokens, threads):
        return measure_latency.Measured({name: 1e-3 * len(each.kept) for name, each in structures.items()})

    monkeypatch.setattr(measure_latency, "measure_structures", seconds)
    monkeypatch.setattr(measure_latency, "HF_ASSETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    BertConfig().save_pretrained("google-bert/bert-base-uncased")
    (program,) = blocks(ROOT / "docs/latency.md", "python")
    exec(compile(program.text, program.place, "exec"), {"__name__": "__main__"})
    assert abs(float(capsys.readouterr().out.splitlines()[-1]) - 0.012) < 1e-9
