"""The command: groups, columns, budget, JSON and plot; what it refuses; exit status."""

import json
import sys

import pytest

from mla_compiler import cli
from mla_compiler.bench import __main__ as bench
from mla_compiler.bench import arguments, models, peers, run, serve
from mla_compiler.bench.kernel_rows import Reading

TINY = ["--tiny", "--device", "cpu", "--repeats", "1", "--columns", "sdpa,fa3"]


def test_column_names_are_the_peers():
    assert tuple(peers.PEERS) == arguments.KERNEL_COLUMNS
    with pytest.raises(SystemExit):
        bench.parse(["--repeats", "0"])


@pytest.mark.parametrize("main", [cli.main, lambda given: bench.main(given[1:])], ids=["flashmla", "module"])
def test_both_ways_in_measure_and_write(main, tmp_path, capsys):
    path = tmp_path / "numbers.json"
    assert main(["bench", *TINY, "--group", "decode", "--cases", "B=1 2k", "--json", str(path)]) == 0
    numbers, shown = json.loads(path.read_text()), capsys.readouterr().out
    (row,) = numbers["kernels"]
    assert row["case"] == "decode B=1 2k" and set(row["readings"]) == {"flashmla", "sdpa", "fa3"}
    assert row["readings"]["sdpa"]["rate"] > 0 and row["readings"]["fa3"]["note"] == "absent"
    assert numbers["roofline"]["copy"] > 0 and numbers["missed"] == numbers["skipped"] == []
    assert "roofline of this run" in shown and "absent" in shown


def test_all_groups_run_in_their_order(monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(run, "_kernels", lambda group, session: ran.append(group))
    monkeypatch.setattr(models, "run", lambda session: ran.append("model"))
    monkeypatch.setattr(serve, "run", lambda session: ran.append("serve"))
    assert bench.main(["--tiny", "--device", "cpu"]) == 0
    assert ran == ["prefill", "decode", "latent", "sparse", "pool", "model", "serve"]
    ran.clear()
    assert bench.main(["--device", "cpu"]) == 0
    assert ran == ["model"] and "kernels are measured on a GPU" in capsys.readouterr().out


def test_cases_are_named_by_a_regular_expression(capsys):
    assert bench.main([*TINY, "--group", "decode", "--cases", r"B=1 (2|8)k$"]) == 0
    shown = capsys.readouterr().out
    assert "decode B=1 2k: " in shown and "decode B=1 8k: " in shown and "decode B=16" not in shown
    with pytest.raises(SystemExit):
        bench.parse(["--cases", "("])


def test_models_need_the_installed_backend(monkeypatch, capsys):
    monkeypatch.setattr(models._dynamo, "list_backends", lambda exclude_tags: ["inductor"])
    assert bench.main([*TINY[:5], "--group", "model"]) == 2
    assert "'flashmla'" in capsys.readouterr().err


def test_kernels_at_full_size_need_a_gpu(capsys):
    assert bench.main(["--device", "cpu", "--group", "prefill"]) == 2
    assert "--tiny" in capsys.readouterr().err


def test_a_spent_budget_says_what_was_not_run(tmp_path, capsys):
    path = tmp_path / "numbers.json"
    assert bench.main([*TINY, "--group", "prefill", "--cases", "head dim", "--budget", "0", "--json", str(path)]) == 0
    numbers = json.loads(path.read_text())
    assert numbers["skipped"] == ["prefill head dim 64, 8k", "prefill head dim 256, 8k"] and numbers["kernels"] == []
    assert "not run: prefill head dim 64, 8k: the budget of 0 s is spent" in capsys.readouterr().out


def test_a_missed_bar_is_exit_status_one(monkeypatch, capsys):
    from mla_compiler.bench import kernels

    monkeypatch.setattr(kernels, "_ours", lambda *_: Reading(note="wrong: [9] x"))
    assert bench.main([*TINY, "--group", "decode", "--cases", "B=1 2k"]) == 1
    assert "missed  decode B=1 2k: flashmla: wrong: [9] x" in capsys.readouterr().out


def test_a_plot_needs_matplotlib_and_kernels_before_anything_is_measured(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(run, "_kernels", lambda group, session: pytest.fail("measured"))
    assert cli.main(["bench", *TINY, "--group", "decode", "--plot", "x.png"]) == 2
    assert 'pip install "mla-compiler[bench]"' in capsys.readouterr().err
    assert cli.main(["bench", *TINY, "--group", "model", "--plot", "x.png"]) == 2
    assert "--group prefill, decode, latent or all" in capsys.readouterr().err


def test_a_plot_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "kernels.png"
    assert bench.main([*TINY, "--group", "all", "--cases", "causal 2k", "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
