"""Kernels and models beside their peers: `flashmla bench`, `python -m mla_compiler.bench`, `make bench`."""
