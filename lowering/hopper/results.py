"""out[i, :] = acc[i, :] / l[i], as a tile that TMA takes from shared memory; l and acc of 64 rows in registers"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, tma

from ..hooks import HAS_SINK, sink
from .rings import flat
from .softmax import join_sink


@gluon.jit
def store(to, wg: gl.constexpr, b, h, row, x):
    """x [64, DV] as rows row .. row + 63 of one head, all columns at once or each half; TMA leaves out those beyond T."""
    out, b_out = to
    W: gl.constexpr = b_out.shape[4]
    parts = (x,)
    if x.shape[1] > W:
        parts = gl.split(gl.permute(gl.reshape(x, [64, 2, W]), [0, 2, 1]))
    for part in gl.static_range(x.shape[1] // W):
        tma.store_wait(0)                                           # what was stored before has left shared memory
        flat(b_out, wg).store(parts[part])
        fence_async_shared()
        tma.async_copy_shared_to_global(out, [b, h, row, part * W], b_out.index(wg))


@gluon.jit
def factor(m, l, at, env):
    """1 / sum [64] of the weights of a row, the sink's among them: 1 in a row without any; m [64], l [64, 4]."""
    b, h, i = at
    layout: gl.constexpr = i.type.layout
    rows: gl.constexpr = gl.SliceLayout(1, layout)
    l = gl.convert_layout(gl.sum(l, 1), rows)
    shrink = gl.full([64], 1.0, gl.float32, rows)
    if HAS_SINK:
        m, l, shrink = join_sink(m, l, gl.max(sink(b, h, i, env) + gl.zeros([64, 1], gl.float32, layout), 1))
    return shrink / gl.where(l == 0.0, 1.0, l)
