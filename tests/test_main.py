"""`python -m keras_chargen` is the command."""

import os
import subprocess
import sys
from pathlib import Path

from keras_chargen.version import __version__

ROOT = Path(__file__).parents[1]


def test_the_module_runs_the_command():
    result = subprocess.run(
        [sys.executable, "-m", "keras_chargen", "info", "--json"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0
    assert f'"keras_chargen": "{__version__}"' in result.stdout
