"""pool_room(handle, tables, tokens) in a graph  =>  work of the host before it;  pool_advance(lengths, tokens)  =>  after it

Room for a step of a paged cache is host work, which no CUDA graph can hold, and what it writes nobody reads earlier: cells of
pages that are new. The lengths go on when everything that reads them has been enqueued. Between the two the graph is one of the
device alone, and writes to nothing but pages.

Needs: the torch-level graph from Dynamo, its inputs with their example values.
Keeps: the value of every node. A room is left where it is if its tables are not an input, or make room twice; an advance, if
its lengths are not an input, or are read after it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import getitem
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ..pool.ops import OWNERS, POOL

Amount = Callable[[Sequence[Any]], int]
"""From the inputs of a graph: tokens."""


@dataclass
class Steps:
    """`rooms`: the inputs that are handle and tables, and tokens; `advances`: the input that is lengths, and tokens."""

    rooms: list[tuple[int, int, Amount]] = field(default_factory=list)
    advances: list[tuple[int, Amount]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.rooms or self.advances)

    def around(self, compiled: Callable[..., Any]) -> Callable[..., Any]:
        """`compiled` between the two. A step that finds no room raises before anything ran."""

        def step(*inputs: Any) -> Any:
            for handle, tables, tokens in self.rooms:
                OWNERS[int(inputs[handle])].make_room(inputs[tables], tokens(inputs))
            ahead = [(inputs[lengths], tokens(inputs)) for lengths, tokens in self.advances]
            out = compiled(*inputs)
            for lengths, count in ahead:
                POOL.pool_advance(lengths, count)
            return out

        return step


def hoist(module: GraphModule) -> Steps:
    """Takes the steps out of the graph, in place."""
    steps, placeholders = Steps(), module.graph.find_nodes(op="placeholder")
    place = {node: at for at, node in enumerate(placeholders)}
    rooms = module.graph.find_nodes(op="call_function", target=POOL.pool_room)
    rooms += module.graph.find_nodes(op="call_function", target=POOL.pool_room.default)
    times = Counter(node.args[1] for node in rooms)
    for node in rooms:
        handle, tables, tokens = node.args
        if handle in place and tables in place and times[tables] == 1:
            steps.rooms.append((place[handle], place[tables], _amount(tokens, placeholders)))
            module.graph.erase_node(node)
    advances = module.graph.find_nodes(op="call_function", target=POOL.pool_advance)
    advances += module.graph.find_nodes(op="call_function", target=POOL.pool_advance.default)
    for node in advances:
        lengths, tokens = node.args
        if lengths in place and not _read_after(node, lengths):
            steps.advances.append((place[lengths], _amount(tokens, placeholders)))
            module.graph.erase_node(node)
    if steps:
        module.recompile()
    return steps


def _read_after(advance: Node, lengths: Node) -> bool:
    """Whether lengths, or a part of them, is used after they were advanced."""
    views = [node for node in lengths.users if node.target is getitem]
    readers = {user for node in (lengths, *views) for user in node.users} - {advance, *views}
    return any(advance < reader for reader in readers)


def _amount(tokens: Any, placeholders: Sequence[Node]) -> Amount:
    """Tokens: a number, or an expression in the sizes of the inputs."""
    size = tokens.meta["example_value"] if isinstance(tokens, Node) else tokens
    if not isinstance(size, torch.SymInt):
        return lambda inputs: int(size)
    expr = size.node.expr
    where = {symbol: _found(symbol, placeholders) for symbol in expr.free_symbols}
    return lambda inputs: int(expr.xreplace({symbol: sympy.Integer(read(inputs)) for symbol, read in where.items()}))


def _found(symbol: sympy.Symbol, placeholders: Sequence[Node]) -> Amount:
    """The input, or the size of one, that a symbol stands for. Raises LookupError if there is none."""
    for at, node in enumerate(placeholders):
        value = node.meta.get("example_value")
        if isinstance(value, torch.SymInt) and value.node.expr == symbol:
            return _input(at)
        if isinstance(value, Tensor):
            for dim, size in enumerate(value.shape):
                if isinstance(size, torch.SymInt) and size.node.expr == symbol:
                    return _input(at, dim)
    raise LookupError(f"no input has the size {symbol}")


def _input(at: int, dim: int | None = None) -> Amount:
    """Input `at`, or the size of one of its dimensions."""

    def read(inputs: Sequence[Any]) -> int:
        return int(inputs[at] if dim is None else inputs[at].shape[dim])

    return read
