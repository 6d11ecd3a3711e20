"""Triton reads TRITON_INTERPRET when it is imported: each kind of test has its own process."""

import os

interpreted = os.environ.get("TRITON_INTERPRET") == "1"
compiled = ["test_compiled.py", "test_interpreted.py", "test_launches.py", "emulated"]
collect_ignore = compiled if interpreted else ["interpreted"]
