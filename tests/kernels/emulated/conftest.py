"""Where the emulator is: a directory with the package `ptx`, and run.py with its own cases."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
EMULATOR = Path(os.environ.get("LPFS_EMULATOR", ROOT.parent / "shared" / "ptx")).absolute()
WITHOUT = f"there is no emulator in {EMULATOR}: see CONTRIBUTING.md"

if EMULATOR.is_dir():
    sys.path.append(str(EMULATOR))
    sys.dont_write_bytecode = True  # it is not ours to write into
