"""Triton reads TRITON_INTERPRET when it is imported: each kind of test has its own process."""

import os

interpreted = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore = ["test_compiled.py", "test_interpreted.py"] if interpreted else ["interpreted"]
