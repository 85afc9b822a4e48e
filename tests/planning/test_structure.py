import json

from lit_compress.planning.structure import LayerShape, Structure


def test_a_structure_comes_back_from_json():
    structure = Structure(layers=(LayerShape(12, 1536), None, LayerShape(1, 32)), rank=128)
    assert Structure.from_json(json.loads(json.dumps(structure.to_json()))) == structure
    assert structure.kept == (0, 2)
    assert structure.shapes == (LayerShape(12, 1536), LayerShape(1, 32))
