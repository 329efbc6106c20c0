"""The flashmla command and explain: what they print, and their exit status."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import mla_compiler
from mla_compiler import cli, doctor
from mla_compiler.doctor import Range
from mla_compiler.errors import OptionError
from mla_compiler.ir import AttentionSpec, Reason

from .reports import mixed


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    status = cli.main(arguments)
    return status, *capsys.readouterr()


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"flashmla {mla_compiler.__version__}\n"


def test_a_command_is_needed(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([])
    assert stopped.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_doctor_has_a_line_for_each_check_and_says_what_is_bad(capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, out, _ = run(capsys, "doctor")
    assert status == 1
    assert f"ok    torch         {importlib.metadata.version('torch')}" in out
    assert "bad   C++ compiler  none" in out
    assert "to mend: install g++" in out
    for name in ("python", "triton", "transformers", "backend", "cache", "GPU"):
        assert sum(line.split()[1:2] == [name] for line in out.splitlines()) == 1


def test_doctor_is_well_where_nothing_is_bad(capsys, monkeypatch):
    checks = [doctor.Check("a", "ok", "1"), doctor.Check("b", "warn", "2", "do that")]
    monkeypatch.setattr(doctor, "checks", lambda: checks)
    assert run(capsys, "doctor")[0] == 0


@pytest.mark.parametrize(
    ("installed", "needed", "state"),
    [("2.10.1", True, "bad"), ("2.11.0", True, "ok"), ("2.14.1+cpu", True, "ok"), ("2.15.0", True, "warn"), (None, True, "bad"),
     (None, False, "ok")],
)
def test_versions_are_judged_by_what_was_tried(monkeypatch, installed, needed, state):
    def version(package):
        if installed is None:
            raise importlib.metadata.PackageNotFoundError(package)
        return installed

    monkeypatch.setattr(importlib.metadata, "version", version)
    check = doctor.version("torch", Range("2.11", "2.14"), needed, without="x")
    assert check.state == state
    assert bool(check.mend) == (state != "ok")


@pytest.mark.parametrize(
    ("capability", "state"), [((9, 0), "ok"), ((8, 0), "ok"), ((7, 5), "warn")],
)
def test_a_gpu_is_judged_by_its_capability(monkeypatch, capability, state):
    class Properties:
        name, total_memory = "A GPU", 80 * 2**30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    check = doctor._gpu(0)
    assert check.state == state
    assert "A GPU" in check.found
    assert "80 GiB" in check.found


def test_doctor_tries_the_whole_way():
    check = doctor.trial()
    assert check.state == "ok", check.found


def test_a_saved_report_is_printed(capsys, tmp_path):
    saved, page = tmp_path / "report.json", tmp_path / "report.html"
    saved.write_text(mixed().json())
    status, out, _ = run(capsys, "report", str(saved))
    assert status == 0
    assert "30 of 31 attentions fused" in out
    _, out, _ = run(capsys, "report", str(saved), "--every")
    assert "model.layers.17.self_attn" in out
    assert run(capsys, "report", str(saved), "--html", str(page))[0] == 0
    assert page.read_text() == mixed().html()


def test_what_cannot_be_read_is_named(capsys, tmp_path):
    status, _, err = run(capsys, "report", str(tmp_path / "nothing.json"))
    assert status == 2
    assert "nothing.json" in err
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    status, _, err = run(capsys, "report", str(bad))
    assert status == 2
    assert "not a flashmla report" in err


@pytest.mark.parametrize("name", cli.SPECS)
def test_named_specs_are_specs(name):
    spec = cli.named_spec(name, 64)
    assert AttentionSpec.parse(str(spec)) == spec
    assert "0.125" in str(spec) or "0.0025" in str(spec)


@pytest.mark.parametrize(
    "text", ["causall", "score: ", "score: {scale}*s; hull: 3", "score: q*s", "score: {size}*s", "lo: 3", ""],
)
def test_a_spec_that_cannot_be_read_is_an_error(text):
    with pytest.raises(OptionError, match="cannot be read"):
        cli.named_spec(text, 64)


def test_kernels_are_compiled_without_a_gpu(capsys):
    pytest.importorskip("triton")
    status, out, _ = run(capsys, "kernels", "--spec", "causal", "--arch", "sm_80", "--head-dim", "16", "--dtype", "float16")
    assert status == 0
    assert "score: 0.25*s; hi: i + 1" in out
    assert "prefill" in out
    assert "decode" in out
    assert "registers" in out
    status, out, _ = run(capsys, "kernels", "--arch", "sm_80", "--head-dim", "16", "--dtype", "float16", "--show", "ptx")
    assert ".target sm_80" in out
    status, _, err = run(capsys, "kernels", "--arch", "sm_1")
    assert status == 2
    assert "sm_90" in err


def attention(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def operands(**how):
    torch.manual_seed(0)
    return [torch.randn(1, 2, 33, 16, **how) for _ in range(3)]


def test_explain_reports_this_call_and_no_other():
    with torch.no_grad():
        report = mla_compiler.explain(attention, *operands())
        again = mla_compiler.explain(attention, *operands())
    (site,) = report.sites
    assert (site.status, site.predicate) == ("fused", "j <= i")
    assert "test_cli.py" in site.source
    assert again.sites == report.sites
    assert report.meta["graphs"] == 1
    assert report.meta["graph_breaks"] == 0
    assert mla_compiler.reports()[-1].sites == report.sites


def test_explain_takes_what_is_compiled_already():
    with torch.no_grad():
        assert len(mla_compiler.explain(torch.compile(attention), *operands()).fused) == 1


def test_explain_counts_graph_breaks_and_merges_graphs():
    def broken(q, k, v):
        out = attention(q, k, v)
        torch._dynamo.graph_break()
        return attention(out, k, v)

    with torch.no_grad():
        report = mla_compiler.explain(broken, *operands())
    assert [site.index for site in report.fused] == [0, 1]
    assert report.meta["graphs"] == 2
    assert report.meta["graph_breaks"] == 1
    assert "1 graph break" in str(report)


def test_explain_runs_as_the_caller_would():
    (site,) = mla_compiler.explain(attention, *operands(requires_grad=True)).left
    assert site.reason.startswith(Reason.GRADIENT.value)


def test_explain_passes_errors_through():
    def wrong(q):
        return q.no_such_method()

    with pytest.raises(Exception, match="no_such_method"):
        mla_compiler.explain(wrong, torch.zeros(1))


INSTALLED = bool(importlib.metadata.entry_points(group="console_scripts", name="flashmla"))


@pytest.mark.skipif(not INSTALLED, reason="run from a checkout that is not installed")
def test_the_console_script_is_installed():
    script = Path(sys.executable).with_name("flashmla")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"flashmla {mla_compiler.__version__}\n"
