"""The quickstart's package is importable as Flower sees it: from the app's own folder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "quickstart"))
