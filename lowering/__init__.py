"""Spec to kernel. Never imports passes."""

if __name__ == "lowering":
    raise ImportError("import this package as mla_compiler.lowering; `lowering` is only its place in the checkout")
