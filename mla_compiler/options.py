"""Every option, and every FLASHMLA_* variable, in one frozen validated dataclass.

    torch.compile(model, backend="flashmla", options={"flashmla.kv_splits": 8, "triton.cudagraphs": True})

Keys under `flashmla.` are ours, every other key must be one of torch._inductor.config and passes through. An option not
given is taken from its variable (`flashmla.kv_splits`: FLASHMLA_KV_SPLITS), and else has the default written here.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_origin

from .errors import OptionError
from .sparsity import Rules

PREFIX = "flashmla."
ENV_PREFIX = "FLASHMLA_"
OTHER_VARIABLES = ("FLASHMLA_CACHE",)
"""Variables that are not options: FLASHMLA_CACHE is where the examples keep converted weights."""

ABSORB = ("auto", "always", "never")

_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


@dataclass(frozen=True)
class Options:
    """What a user can ask of us. Raises OptionError on a value of the wrong type or out of range.

    enable     find and fuse attention; False leaves every site, and the report says so
    exclude    regular expression: layers whose name it is found in are left as they are
    strict     raise StrictError if any attention is left
    kv_splits  parts into which the key range is divided and merged exactly; 0: the lowering chooses
    autotune   time each kernel's configurations on its first call on a GPU, keep the fastest, for later processes too
    absorb     multi-head latent attention over the latent itself: auto, by cost; always; never
    sparsity   what attention may leave out: a policy, or rules by layer (`sparsity.Rules`); "" is exact
    policy     path of a file of rules that `flashmla calibrate` wrote; those of `sparsity` come after and so count more
    account    count while running what is left out, by layer, head and tile (`accounts()`); it costs time, and measures dense
    certificate  compute both forms of what is absorbed on random numbers while compiling; the report tells how they differ
    verify     check the graph between passes
    debug      0 silent; 1 print each report; 2 also the time of each pass; 3 also the graph before and after;
               4 also the graph after each pass
    """

    enable: bool = True
    exclude: str = ""
    strict: bool = False
    kv_splits: int = 0
    autotune: bool = False
    absorb: str = "auto"
    sparsity: str = ""
    policy: str = ""
    account: bool = False
    certificate: bool = False
    verify: bool = True
    debug: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_type(PREFIX + field.name, getattr(self, field.name), type(field.default))
        _check_range("kv_splits", self.kv_splits, 0, 1024)
        _check_range("debug", self.debug, 0, 4)
        if self.absorb not in ABSORB:
            raise OptionError(f"flashmla.absorb={self.absorb!r} is unknown{_nearest(self.absorb, ABSORB)}",
                              f"it is one of {', '.join(ABSORB)}")
        try:
            re.compile(self.exclude)
        except re.error as error:
            raise OptionError(f"flashmla.exclude={self.exclude!r} is not a regular expression: {error}",
                              f"to match the text itself: {re.escape(self.exclude)!r}") from error
        try:
            Rules.parse(self.sparsity)
        except OptionError as error:
            raise OptionError(f"flashmla.sparsity={self.sparsity!r}: {error.what}", error.mend) from error

    def resolved(self) -> Options:
        """With the rules of the file `policy` in `sparsity`, so that these options say all that a compilation depends on.

        Raises OptionError where the file cannot be read.
        """
        if not self.policy:
            return self
        rules = Rules(Rules.read(self.policy).entries + Rules.parse(self.sparsity).entries)
        return dataclasses.replace(self, sparsity=str(rules), policy="")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Options:
        """The options that the FLASHMLA_* variables ask for. Raises OptionError on an unknown or unreadable one."""
        return cls(**_read_env(environ))

    @classmethod
    def split(
        cls, options: Mapping[str, Any] | None = None, mode: str | None = None, environ: Mapping[str, str] = os.environ
    ) -> tuple[Options, dict[str, Any]]:
        """(ours, Inductor's config patches) of what the user gave to torch.compile; an option overrides its mode.

        Raises OptionError naming the nearest right name for an unknown key or mode, and the expected type for a value.
        """
        given = dict(options or {})
        ours = {key[len(PREFIX):]: value for key, value in given.items() if _is_ours(key)}
        known = {field.name for field in dataclasses.fields(cls)}
        theirs = {key: value for key, value in given.items() if not _is_ours(key)}
        for key in ours.keys() - known:
            raise _unknown(PREFIX + key)
        patches = {**_mode_patches(mode), **_inductor_patches(theirs)}
        return cls(**{**_read_env(environ), **ours}), patches


def names() -> list[str]:
    """Every option of ours, as a user writes it."""
    return [PREFIX + field.name for field in dataclasses.fields(Options)]


def _is_ours(key: object) -> bool:
    if not isinstance(key, str):
        raise OptionError(f"option {key!r}: the name of an option is a str, this is {_a(type(key))}")
    return key.startswith(PREFIX)


def _inductor_patches(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are Inductor's, under the names its config knows (`-` is `_`), each checked for its type."""
    if not theirs:
        return {}
    from torch._inductor import config  # Inductor costs seconds, and may import Triton

    current = config.get_config_copy()
    patches = {}
    for key, value in theirs.items():
        name = key.replace("-", "_")
        if name not in current:
            raise _unknown(key, current)
        expected = config.get_type(name)
        if isinstance(expected, type) and get_origin(expected) is None and expected is not Any:  # as torch.compile checks
            _check_type(key, value, expected)
        patches[name] = value
    return patches


def _mode_patches(mode: str | None) -> dict[str, Any]:
    if mode in (None, "default"):
        return {}
    import torch._inductor

    modes = torch._inductor.list_mode_options()
    if mode not in modes:
        raise OptionError(f"mode={mode!r} is unknown{_nearest(str(mode), modes)}", f"the modes are {', '.join(modes)}")
    return dict(modes[mode])


def _read_env(environ: Mapping[str, str]) -> dict[str, Any]:
    fields = {ENV_PREFIX + field.name.upper(): field for field in dataclasses.fields(Options)}
    values = {}
    for name in sorted(environ):
        if not name.startswith(ENV_PREFIX) or name in OTHER_VARIABLES:
            continue
        if name not in fields:
            raise OptionError(f"the variable {name} is unknown{_nearest(name, fields)}", f"to go on: unset {name}")
        values[fields[name].name] = _from_text(name, environ[name], type(fields[name].default))
    return values


def _from_text(name: str, text: str, kind: type) -> Any:
    if kind is bool and text.lower() in (*_TRUE, *_FALSE):
        return text.lower() in _TRUE
    if kind is int and re.fullmatch(r"\s*-?\d+\s*", text):
        return int(text)
    if kind is str:
        return text
    raise OptionError(f"{name}={text!r} is not {_a(kind)}", f"to go on: {name}={1}, or unset {name}")


def _check_type(key: str, value: object, expected: type) -> None:
    """Raise unless value is of the type. Of ours True is no number; Inductor takes it for one."""
    counted_as_int = isinstance(value, bool) and expected is int and key.startswith(PREFIX)
    if isinstance(value, expected) and not counted_as_int:
        return
    raise OptionError(f"{key}={value!r} is {_a(type(value))}, expected {_a(expected)}",
                      f'for example options={{"{key}": {_example(expected)}}}')


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise OptionError(f"{PREFIX}{name}={value} is out of range", f"it goes from {low} to {high}")


def _unknown(key: str, inductor: Iterable[str] = ()) -> OptionError:
    if not inductor:
        return OptionError(f"option {key!r} is unknown{_nearest(key, names())}", f"ours are {', '.join(names())}")
    return OptionError(
        f"option {key!r} is unknown{_nearest(key, [*names(), *(name[len(PREFIX):] for name in names()), *inductor])}",
        f"ours are {', '.join(names())}; Inductor's are in torch._inductor.list_options()",
    )


def _nearest(name: str, known: Iterable[str]) -> str:
    """`: did you mean ...?`, or nothing if no known name is near."""
    bare = {each[len(PREFIX):]: each for each in names()}
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f": did you mean {bare.get(found[0], found[0])!r}?" if found else ""


def _a(kind: type) -> str:
    return f"{'an' if kind.__name__[0] in 'aeiou' else 'a'} {kind.__name__}"


def _example(kind: type) -> str:
    return {bool: "True", int: "1", str: '"text"', float: "0.5", list: "[]", dict: "{}"}.get(kind, f"{kind.__name__}(...)")
