"""Graph to graph, one pass a file. Never imports lowering."""

if __name__ == "passes":
    raise ImportError("import this package as mla_compiler.passes; `passes` is only its place in the checkout")

from .. import ops as ops  # declares flashmla::*, which the passes write and read
