"""`python -m mla_compiler.bench`: one model, one machine, one process; eager, Inductor, flex_attention by hand and flashmla."""
