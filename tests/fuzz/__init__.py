"""Targets for a fuzzer: each module reads one kind of hostile bytes, and says what must hold whatever they are.

`make fuzz` runs them with atheris, `tests/unit/test_fuzz_corpus.py` with what was found worth keeping (`corpus/`).
"""
