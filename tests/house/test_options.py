"""Options.split: ours, Inductor's, and an error with the right name or type for everything else."""

import dataclasses
import pickle

import pytest
import torch._inductor
from hypothesis import given
from hypothesis import strategies as st

from mla_compiler.errors import OptionError, StrictError
from mla_compiler.ir import Site
from mla_compiler.options import ABSORB, Options, names

NONE: dict[str, str] = {}
FIELDS = {field.name: field for field in dataclasses.fields(Options)}
VALUES = {bool: st.booleans(), int: st.integers(0, 4), str: st.from_regex(r"[a-z.0-9]{0,12}", fullmatch=True)}
CHOICES = {"absorb": st.sampled_from(ABSORB), "sparsity": st.sampled_from(["", "threshold=0.1", "exact; 3: pages.share=0.05"])}
ANYTHING = st.one_of(st.booleans(), st.integers(), st.text(), st.floats(), st.none(), st.lists(st.integers()))


def split(options=None, mode=None, environ=NONE):
    return Options.split(options, mode, environ)


def test_nothing_given_is_the_default():
    assert split() == (Options(), {})
    assert split({}, "default") == (Options(), {})


def test_ours_and_theirs_part():
    ours, theirs = split({"flashmla.kv_splits": 4, "triton.cudagraphs": True, "max-autotune": True})
    assert ours == Options(kv_splits=4)
    assert theirs == {"triton.cudagraphs": True, "max_autotune": True}


@pytest.mark.parametrize("mode", [*torch._inductor.list_mode_options()])
def test_modes_mean_what_they_mean_to_inductor(mode):
    assert split(mode=mode)[1] == torch._inductor.list_mode_options()[mode]


def test_reduce_overhead_means_cuda_graphs():
    assert split(mode="reduce-overhead")[1]["triton.cudagraphs"] is True


def test_an_option_overrides_its_mode():
    assert split({"triton.cudagraphs": False}, "reduce-overhead")[1] == {"triton.cudagraphs": False}


def test_unknown_mode_names_the_modes():
    with pytest.raises(OptionError, match="did you mean 'reduce-overhead'(?s:.*)max-autotune-no-cudagraphs"):
        split(mode="reduce-overheads")


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("flashmla.kv_split", "flashmla.kv_splits"), ("flashmla.Strict", "flashmla.strict"),
        ("kv_splits", "flashmla.kv_splits"), ("flashmla_exclude", "flashmla.exclude"),
        ("triton.cudagraph", "triton.cudagraphs"), ("max_autotun", "max_autotune"),
    ],
)
def test_unknown_key_names_the_nearest(key, nearest):
    with pytest.raises(OptionError, match=f"did you mean {nearest!r}"):
        split({key: True})


@given(st.text(), st.booleans())
def test_any_unknown_key_is_an_error(key, prefixed):
    key = f"flashmla.{key}" if prefixed else f"no such {key}"
    if key in names():
        return
    with pytest.raises(OptionError, match="is unknown"):
        split({key: 1})


@given(st.sampled_from(sorted(FIELDS)), ANYTHING)
def test_a_value_is_taken_whole_or_refused(name, value):
    expected = type(FIELDS[name].default)
    try:
        ours, theirs = split({f"flashmla.{name}": value})
    except OptionError as error:
        assert f"flashmla.{name}" in str(error)
        assert type(value) is not expected or expected is int or name in ("exclude", "absorb", "sparsity")
    else:
        assert type(value) is expected
        assert getattr(ours, name) == value
        assert theirs == {}


@given(st.data())
def test_variables_say_the_same_as_options(data):
    chosen = data.draw(st.sets(st.sampled_from(sorted(FIELDS))))
    values = {name: data.draw(CHOICES.get(name, VALUES[type(FIELDS[name].default)])) for name in chosen}
    environ = {f"FLASHMLA_{name.upper()}": str(value) for name, value in values.items()}
    assert Options.from_env(environ) == Options(**values) == split({f"flashmla.{k}": v for k, v in values.items()})[0]


def test_an_option_overrides_its_variable():
    environ = {"FLASHMLA_KV_SPLITS": "8", "FLASHMLA_STRICT": "on"}
    assert split({"flashmla.kv_splits": 2}, environ=environ)[0] == Options(kv_splits=2, strict=True)


def test_absorb_is_one_of_three():
    with pytest.raises(OptionError, match="did you mean 'always'(?s:.*)one of auto, always, never"):
        split({"flashmla.absorb": "alway"})


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"FLASHMLA_STRIKT": "1"}, "did you mean 'FLASHMLA_STRICT'"), ({"FLASHMLA_STRICT": "maybe"}, "is not a bool"),
        ({"FLASHMLA_DEBUG": "much"}, "is not an int"), ({"FLASHMLA_DEBUG": "9"}, "from 0 to 4"),
    ],
)
def test_a_wrong_variable_is_an_error(environ, message):
    with pytest.raises(OptionError, match=message):
        Options.from_env(environ)


def test_other_variables_are_left_alone():
    assert Options.from_env({"FLASHMLA_CACHE": "/somewhere", "FLASH_MLA_DISABLE": "1", "PATH": ""}) == Options()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flashmla.kv_splits": "3"}, "is a str, expected an int"),
        ({"flashmla.kv_splits": True}, "is a bool, expected an int"),
        ({"flashmla.kv_splits": -1}, "from 0 to 1024"), ({"flashmla.strict": 1}, "is an int, expected a bool"),
        ({"flashmla.exclude": "("}, "is not a regular expression"), ({3: 3}, "name of an option is a str"),
        ({"max_autotune": "yes"}, "is a str, expected a bool"),
    ],
)
def test_wrong_values_name_what_is_expected(options, message):
    with pytest.raises(OptionError, match=message):
        split(options)


def test_inductor_takes_its_own_values_back():
    config = torch._inductor.config.get_config_copy()
    kinds = {key: torch._inductor.config.get_type(key) for key in config}
    sound = {key: config[key] for key, kind in kinds.items() if isinstance(kind, type) and type(config[key]) is kind}
    assert len(sound) > 100
    assert split(sound)[1] == sound


def test_an_option_error_is_a_value_error_and_travels():
    with pytest.raises(ValueError) as caught:
        split({"flashmla.debug": 9})
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.mend) == (OptionError, str(caught.value), caught.value.mend)


def test_strict_error_names_every_site():
    left = [Site(0, "softmax", source="model.py:4", layer="layers.3", reason="dropout is active"), Site(1, "bmm")]
    error = StrictError.of(left)
    assert "2 attention(s)" in str(error)
    assert "layers.3, model.py:4: dropout is active" in str(error)
    assert "bmm" in str(error)
