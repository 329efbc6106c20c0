"""The pool against a plain dict of tensors: by hypothesis, at length, by eight threads."""

import random
import threading

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from mla_compiler import KVPool, PoolError, PoolExhausted

from .model import HEADS, K_DIM, LAYERS, PAGE, V_DIM, Checked


class Machine(RuleBasedStateMachine):
    """A pool of 12 pages of 4 tokens, which fills up often."""

    live = Bundle("live")
    deferred = False

    def __init__(self):
        super().__init__()
        self.checked = Checked(deferred=self.deferred, host_tokens=8 * PAGE)

    @initialize(target=live)
    def begin(self):
        return multiple(self.checked.allocate(), self.checked.allocate())

    @rule(target=live)
    def allocate(self):
        return self.checked.allocate()

    @rule(sequence=live, tokens=st.integers(0, 3 * PAGE))
    def append(self, sequence, tokens):
        self.checked.append(sequence, tokens)

    @rule(sequences=st.tuples(live, live, live), tokens=st.integers(0, PAGE + 1))
    def extend(self, sequences, tokens):
        self.checked.extend_all(list(dict.fromkeys(sequences)), tokens)

    @rule(sequence=live)
    def fail(self, sequence):
        with pytest.raises(PoolError):
            self.checked.pool.truncate(sequence, sequence.length + 1)
        self.checked.append(sequence, 13 * PAGE)

    @rule(target=live, sequence=live)
    def fork(self, sequence):
        return self.checked.share(sequence, sequence.length)

    @rule(target=live, sequence=live, data=st.data())
    def share(self, sequence, data):
        return self.checked.share(sequence, data.draw(st.integers(sequence.start, sequence.length)))

    @rule(sequence=live, data=st.data())
    def truncate(self, sequence, data):
        self.checked.truncate(sequence, data.draw(st.integers(sequence.start, sequence.length)))

    @rule(sequence=live, before=st.integers(0, 6 * PAGE))
    def forget(self, sequence, before):
        self.checked.forget(sequence, before)

    @rule(one=live, other=live, how=st.sampled_from(["idle", "evict", "prefetch"]))
    def shelve(self, one, other, how):
        subject = self.checked.pool if how == "idle" else self.checked
        getattr(subject, how)(list(dict.fromkeys([one, other])))

    @rule(sequence=live)
    def read(self, sequence):
        self.checked.check_contents(sequence)

    @rule(target=live, sequence=consumes(live))
    def release(self, sequence):
        self.checked.release(sequence)
        with pytest.raises(PoolError, match="released"):
            self.checked.pool.append(sequence, *self.checked.fresh(1))
        return multiple()

    @rule(count=st.integers(1, 4))
    def device_advances(self, count):
        self.checked.pass_fences(count)

    @invariant()
    def holds(self):
        self.checked.check_pages()
        for sequence in self.checked.truth:
            if all(page >= 0 for page in sequence.pages):  # to read the others would bring them back
                self.checked.check_contents(sequence)

    def teardown(self):
        for sequence in list(self.checked.truth):
            self.checked.check_contents(sequence)
            self.checked.release(sequence)
        self.checked.pass_fences(len(self.checked.fences))
        assert self.checked.pool.stats().held == self.checked.pool.stats().evicted == 0


class DeferredMachine(Machine):
    """The same with releases that wait for a device."""

    deferred = True


@pytest.mark.parametrize("machine", [Machine, DeferredMachine], ids=["at once", "behind fences"])
def test_any_order_of_calls(machine, pool_steps):
    size = settings(max_examples=max(pool_steps // 200, 1), stateful_step_count=50, deadline=None)
    run_state_machine_as_test(machine, settings=size)


ACTIONS = {
    "append": 9, "batch": 3, "fork": 2, "share": 2, "truncate": 2, "forget": 1, "release": 4, "fences": 4,
    "idle": 2, "evict": 2,
}


@pytest.mark.parametrize("deferred", [False, True], ids=["at once", "behind fences"])
def test_many_steps(deferred, pool_steps):
    """`pytest tests/pool --pool-steps 100000` takes a hundred thousand in all."""
    chance = random.Random(5)
    checked = Checked(tokens=PAGE * 24, deferred=deferred, host_tokens=PAGE * 16)
    for step in range(pool_steps // 2):
        live = list(checked.truth)
        one = chance.choice(live) if live else checked.allocate()
        action = chance.choices(list(ACTIONS), ACTIONS.values())[0]
        if action == "append":
            checked.append(one, chance.randrange(2 * PAGE))
        elif action == "batch":
            checked.extend_all(chance.sample(live, min(len(live), 3)) or [one], 1)
        elif action in ("fork", "share") and len(live) < 16:
            one = checked.share(one, one.length if action == "fork" else chance.randint(one.start, one.length))
        elif action == "truncate":
            checked.truncate(one, chance.randint(one.start, one.length))
        elif action == "forget":
            checked.forget(one, one.length - PAGE)
        elif action == "release":
            checked.release(one)
        elif action == "idle":
            checked.pool.idle([one])
        elif action == "evict":
            checked.evict([one])
        elif action == "fences":
            checked.pass_fences(3)
        if one in checked.truth:
            checked.check_contents(one)
        checked.check_pages()
        if step % 100 == 0:
            for sequence in checked.truth:
                checked.check_contents(sequence)


def test_eight_threads():
    """Each keeps its own sequences, all forked from one prompt; the pool is too small for all at once, and so is the host."""
    pool = KVPool(LAYERS, HEADS, K_DIM, V_DIM, tokens=PAGE * 24, page=PAGE, host_tokens=PAGE * 8)
    root, failures, exhausted, read = pool.allocate(), [], [], []
    prompt = torch.arange(6.0)[None, None, :, None]
    pool.append(root, prompt.expand(LAYERS, HEADS, 6, K_DIM), prompt.expand(LAYERS, HEADS, 6, V_DIM))

    def work(number):
        chance = random.Random(number)
        try:
            for turn in range(50):
                mine, expected = pool.fork(root), list(range(6))
                for step in range(chance.randrange(20)):
                    token = number * 1e4 + turn * 20 + step
                    x = torch.full((LAYERS, HEADS, 1, K_DIM), token)
                    try:
                        pool.append(mine, x, x[..., :V_DIM])
                        expected.append(token)
                    except PoolExhausted:
                        exhausted.append(number)
                pool.idle([mine])
                pool.stats()
                try:
                    k, v = pool.gather(mine)
                    read.append(k[1, 0, :, 0].tolist() == expected == v[0, 0, :, 0].tolist())
                except PoolExhausted:  # it was evicted meanwhile, and does not fit now
                    exhausted.append(number)
                pool.release(mine)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not failures and not any(thread.is_alive() for thread in threads)
    assert all(read) and len(read) > 8 * 50 // 2 and exhausted
    assert pool.stats().sequences == 1 and pool.stats().held == 2 * pool.geometry.page_bytes
    pool.release(root)
    assert len(pool.ledger.pages.free) == 24
