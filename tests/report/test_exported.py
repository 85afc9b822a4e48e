import shutil

from report.results import results

from lit_compress.export.check import Comparison
from lit_compress.report.exported import exported, exports_in


def test_every_export_in_a_run(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    graph = run / "exports" / "int8" / "onnx" / "model_quantized.onnx"
    graph.parent.mkdir(parents=True)
    graph.write_bytes(b"x" * 1000)
    shutil.copy(run / "model" / "compression.json", run / "exports" / "int8")
    line = Comparison(examples=16, equal=0.9375, score=("accuracy", 0.5, 0.4375)).words()
    (run / "exports" / "int8" / "README.md").write_text(f"# Model\n\n- labels: 0, 1\n\n{line} (val.tsv).\n")
    int8, model = exports_in(run)
    assert int8 == {
        "file": "exports/int8/onnx/model_quantized.onnx",
        "engine": "onnxruntime",
        "bytes": 1000,
        "check": f"{line} (val.tsv).",
    }
    size = (run / "model" / "model.safetensors").stat().st_size
    assert model == {"file": "model", "engine": "eager", "bytes": size, "check": None}


def test_a_row_for_each():
    given = results(exports=[{"file": "model", "engine": "eager", "bytes": 4000, "check": None}])
    section = exported(given)
    assert section is not None
    assert section.tables[0].rows == [("model", "eager", "4.00 kB", "3.0x", "not compared")]
    assert exported(results(exports=[])) is None
