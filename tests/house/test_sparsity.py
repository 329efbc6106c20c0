"""Policies as text, as rules by layer, and as a file."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mla_compiler.errors import OptionError
from mla_compiler.ir import AttentionSpec
from mla_compiler.options import Options
from mla_compiler.sparsity import EXACTLY, FILE_FORMAT, MEASURES, SELECTING, Rules, Sparsity

SHARES = st.floats(1e-12, 1)


@st.composite
def policies(draw) -> Sparsity:
    policy = draw(st.sampled_from(sorted(MEASURES)))
    if not MEASURES[policy]:
        return EXACTLY
    then = draw(st.sampled_from([0.0, 0.1])) if policy in SELECTING else 0.0
    return Sparsity(policy, draw(st.sampled_from(MEASURES[policy])), draw(SHARES), then)


@given(policies())
def test_text_says_all(policy):
    assert Sparsity.parse(str(policy)) == policy
    spec = AttentionSpec.parse(f"score: 0.5*s; sparsity: {policy}; kv_splits: 2")
    assert spec.sparsity == policy and AttentionSpec.parse(str(spec)) == spec


@given(st.lists(st.tuples(st.sampled_from(["", r"layers\.0\.", "attn$"]), policies()), max_size=4))
def test_rules_are_read_back(entries):
    rules = Rules(tuple(entries))
    assert Rules.parse(str(rules)) == rules


def test_the_last_rule_that_fits_counts():
    rules = Rules.parse(r"threshold=0.1; layers[.][01][.]: exact; layers[.]1[.]: pages.share = 0.05 + threshold = 0.2")
    assert rules.of("model.layers.0.self_attn") == EXACTLY
    assert rules.of("model.layers.1.self_attn") == Sparsity("pages", "share", 0.05, 0.2)
    assert rules.of("model.layers.11.self_attn") == Sparsity("threshold", "", 0.1)
    assert Rules.parse("").of("anything") == EXACTLY


@pytest.mark.parametrize(("text", "message"), [
    ("treshold=0.1", "'treshold' is unknown"), ("threshold", "out of range"), ("threshold=2", "out of range"),
    ("threshold=-0.1", "out of range"), ("threshold=0.1.2", "has no number"), ("exact=0.1", "takes no number"),
    ("pages.half=0.1", "pages.half is unknown(?s:.*)pages, pages.share"), ("threshold 0.1", "cannot be read"),
    ("threshold=0.1+threshold=0.1", "leaves no q.k out"), ("(: exact", "is not a regular expression"), (": ", "cannot be read"),
])
def test_a_wrong_text_says_what_is_meant(text, message):
    with pytest.raises(OptionError, match=message):
        Options(sparsity=text)


def test_a_file_of_rules_is_part_of_the_options(tmp_path):
    """What a compilation depends on is in the options' text, whatever becomes of the file."""
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({"format": FILE_FORMAT, "layers": {"layers.1.attn": "threshold=0.2"}}))
    resolved = Options(policy=str(path), sparsity="2: exact").resolved()
    assert resolved.policy == ""
    rules = Rules.parse(resolved.sparsity)
    assert rules.of("model.layers.1.attn") == Sparsity("threshold", "", 0.2)
    assert rules.of("layers.12.attn") == EXACTLY == rules.of("layersX1.attn")


@pytest.mark.parametrize("text", ["", "[]", '{"format": "other", "layers": {}}', '{"format": "flashmla.policy/1"}',
                                  '{"format": "flashmla.policy/1", "layers": {"a": "nothing"}}'])
def test_another_file_is_refused(tmp_path, text):
    path = tmp_path / "policy.json"
    path.write_text(text)
    with pytest.raises(OptionError, match=r"policy\.json|unknown"):
        Options(policy=str(path)).resolved()
    with pytest.raises(OptionError, match="cannot be read"):
        Options(policy=str(tmp_path / "none")).resolved()
