"""Why a column has no number: the deepest cause, its last line."""

import torch

from mla_compiler.bench.failure import why


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except type(error) as caught:
        return caught


def test_the_deepest_cause_and_its_last_line():
    deepest = raised(ValueError("no kernel for\n\n  head dim 80  \n\n"))
    assert why(raised(RuntimeError("wrapped"), raised(TypeError("between"), deepest))) == "ValueError: head dim 80"


def test_without_a_text_there_is_the_class():
    assert why(raised(KeyError())) == "KeyError"


def test_what_was_being_handled_is_no_cause():
    try:
        try:
            raise KeyError("not in the cache")
        except KeyError:
            raise ValueError("cannot compute")  # noqa: B904
    except ValueError as failure:
        assert why(failure) == "ValueError: cannot compute"


def test_a_chain_that_bites_its_tail_ends():
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert why(first) == "ValueError: second"


def test_what_torch_compile_wraps_is_found():
    def backend(graph, inputs):
        raise NotImplementedError("many words\nno such operator")

    torch.compiler.reset()
    try:
        torch.compile(lambda x: x + 1, backend=backend)(torch.ones(1))
    except Exception as failure:
        assert type(failure).__name__ == "BackendCompilerFailed"
        assert why(failure) == "NotImplementedError: no such operator"
    else:
        raise AssertionError("the backend should have failed")
