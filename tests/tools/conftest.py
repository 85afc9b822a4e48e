import sys
from pathlib import Path

# `tools` is no installed package; `python -m tools.bench...` finds it in the working directory.
sys.path.insert(0, str(Path(__file__).parents[2]))
