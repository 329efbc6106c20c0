"""TORCH_LOGS and the structured trace get our graphs."""

import json
from pathlib import Path

import torch

from mla_compiler import logs

from .test_imports import fresh

CODE = """
import torch
from mla_compiler.logs import log_graph, trace

def double(x):
    return x + x

graph = torch.fx.symbolic_trace(double)
log_graph("before", graph)
log_graph("after", graph.graph)
trace("report", "what was found")
"""


def test_debug_level_prints_the_graphs_and_the_trace_holds_them(tmp_path):
    shown = fresh(CODE, TORCH_LOGS="+mla_compiler", TORCH_TRACE=str(tmp_path))
    assert "graph before" in shown
    assert "graph after" in shown
    assert shown.count("x + x") == 2
    (path,) = Path(tmp_path).glob("*.log")
    text = path.read_text()
    records = [json.loads(line[line.index("{"):]) for line in text.splitlines() if '"artifact"' in line]
    names = [record["artifact"]["name"] for record in records]
    assert [name for name in names if "flashmla" in name] == ["flashmla_before", "flashmla_after", "flashmla_report"]
    assert text.count("x + x") == 2
    assert "what was found" in text


def test_info_level_prints_no_graph():
    assert "x + x" not in fresh(CODE, TORCH_LOGS="mla_compiler")


def test_a_bare_graph_can_be_read():
    graph = torch.fx.Graph()
    graph.output(graph.call_function(torch.relu, (graph.placeholder("x"),)))
    assert "relu" in logs.readable(graph)


def test_a_graph_is_shown_if_asked(capsys):
    graph = torch.fx.symbolic_trace(lambda x: x * 3)
    logs.log_graph("after", graph)
    assert capsys.readouterr() == ("", "")
    logs.log_graph("after", graph, show=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("flashmla: graph after\n")
    assert "x * 3" in err
