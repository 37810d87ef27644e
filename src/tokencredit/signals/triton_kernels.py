"""Triton kernels for sums over attention; `attention_triton` launches them.

Letters: B completions, H heads of queries, N tokens, d the width of a head, R rows of A that are worked on. A program
handles one tile of rows, or of keys, of one head of one completion. Arguments that kernels share:

    query, key: (B, H, N, d) and (B, H / group, N, d), with any strides.
    position, first: (B, R) int32: row r is token position[r], which sees the keys from first[r] to position[r]. A row
        that is left out has position -1 and first N, so that it widens no tile's range of keys.
    log_sum_exp: (B, H, R) float32, of the scores that a row sees.

A row's scores are compared with what it sees before they count, so that NaNs which it does not see do not spread.
"""

# Annotations are not postponed: Triton reads `tl.constexpr` from them.
import triton
import triton.language as tl


@triton.jit
def _vectors(head, index, length, stride, stride_d, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr):
    """The queries or keys of a head at some tokens, (tokens, BLOCK_D): 0 beyond WIDTH and where there is no token."""
    channel = tl.arange(0, BLOCK_D)
    inside = ((index >= 0) & (index < length))[:, None] & (channel < WIDTH)[None, :]
    offset = index.to(tl.int64)[:, None] * stride + channel.to(tl.int64)[None, :] * stride_d
    vectors = tl.load(head + offset, mask=inside, other=0.0)
    if UPCAST:
        vectors = vectors.to(tl.float32)
    return vectors


@triton.jit
def _scores(left, right, scaling, SOFTCAP: tl.constexpr):
    """Scores (left, right) between two tiles of vectors, in float32."""
    # "ieee" keeps float32 operands from being rounded to tf32; it changes nothing for narrower ones.
    scores = tl.dot(left, tl.trans(right), input_precision="ieee") * scaling
    if SOFTCAP > 0:
        scores = SOFTCAP * (2 * tl.sigmoid(2 * scores / SOFTCAP) - 1)
    return scores


@triton.jit(do_not_specialize=["heads", "group", "length", "rows"])
def row_sums(
    query,
    key,
    position,
    first,
    log_sum_exp,
    look_back,
    query_b,
    query_h,
    query_n,
    query_d,
    key_b,
    key_h,
    key_n,
    key_d,
    scaling,
    heads,
    group,
    length,
    rows,
    LOOK_BACK: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Each row's `log_sum_exp`, and its `look_back` (B, H, R), sum_s A[t,s] (t - s); 0 for a row left out."""
    tiles = tl.cdiv(rows, BLOCK_ROWS)
    which = (tl.program_id(0) // tiles).to(tl.int64)
    batch = which // heads
    head = which % heads
    # Tiles of late rows have most keys to read: they go first, so that short ones fill the gaps at the end.
    row = (tiles - 1 - tl.program_id(0) % tiles) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = row < rows
    t = tl.load(position + batch * rows + row, mask=inside, other=-1)
    lowest = tl.load(first + batch * rows + row, mask=inside, other=length)
    queries = _vectors(query + batch * query_b + head * query_h, t, length, query_n, query_d, WIDTH, BLOCK_D, UPCAST)
    keys_of_head = key + batch * key_b + head // group * key_h
    offset = tl.arange(0, BLOCK_KEYS)
    # Finite, for a tile of which a row sees nothing: -inf minus -inf is no number.
    largest = tl.full([BLOCK_ROWS], -1.0e30, tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    distance = tl.zeros([BLOCK_ROWS], tl.float32)
    for start in range(tl.min(lowest, 0) // BLOCK_KEYS * BLOCK_KEYS, tl.max(t, 0) + 1, BLOCK_KEYS):
        s = start + offset
        keys = _vectors(keys_of_head, s, length, key_n, key_d, WIDTH, BLOCK_D, UPCAST)
        seen = (s[None, :] >= lowest[:, None]) & (s[None, :] <= t[:, None])
        scores = tl.where(seen, _scores(queries, keys, scaling, SOFTCAP), float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, 1))
        rescaling = tl.exp(largest - larger)
        shares = tl.exp(scores - larger[:, None])
        mass = tl.sum(shares, 1)
        if LOOK_BACK:
            # t - s = (t - start) - (s - start): centred on the tile, so that float32 keeps long distances exact.
            within = tl.sum(shares * offset.to(tl.float32)[None, :], 1)
            distance = distance * rescaling + mass * (t - start).to(tl.float32) - within
        total = total * rescaling + mass
        largest = larger
    kept = t >= 0
    total = tl.where(kept, total, 1.0)
    tl.store(log_sum_exp + which * rows + row, tl.where(kept, largest + tl.log(total), 0.0), mask=inside)
    if LOOK_BACK:
        tl.store(look_back + which * rows + row, tl.where(kept, distance / total, 0.0), mask=inside)


@triton.jit(do_not_specialize=["heads", "group", "length", "rows", "window"])
def near_sums(
    query,
    key,
    position,
    first,
    log_sum_exp,
    sums,
    query_b,
    query_h,
    query_n,
    query_d,
    key_b,
    key_h,
    key_n,
    key_d,
    scaling,
    heads,
    group,
    length,
    rows,
    window,
    SOFTCAP: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """`sums` (B, H, R) of A[t,s] (window - (t - s)) over keys nearer than `window`; the rows are the last R tokens."""
    tiles = tl.cdiv(rows, BLOCK_ROWS)
    which = (tl.program_id(0) // tiles).to(tl.int64)
    batch = which // heads
    head = which % heads
    start_row = tl.program_id(0) % tiles * BLOCK_ROWS
    row = start_row + tl.arange(0, BLOCK_ROWS)
    inside = row < rows
    t = tl.load(position + batch * rows + row, mask=inside, other=-1)
    lowest = tl.load(first + batch * rows + row, mask=inside, other=length)
    normalizer = tl.load(log_sum_exp + which * rows + row, mask=inside, other=0.0)
    queries = _vectors(query + batch * query_b + head * query_h, t, length, query_n, query_d, WIDTH, BLOCK_D, UPCAST)
    keys_of_head = key + batch * key_b + head // group * key_h
    result = tl.zeros([BLOCK_ROWS], tl.float32)
    nearest = tl.maximum(tl.min(lowest, 0), length - rows + start_row - window + 1)
    for start in range(nearest, tl.max(t, 0) + 1, BLOCK_KEYS):
        s = start + tl.arange(0, BLOCK_KEYS)
        keys = _vectors(keys_of_head, s, length, key_n, key_d, WIDTH, BLOCK_D, UPCAST)
        behind = t[:, None] - s[None, :]
        counts = (s[None, :] >= lowest[:, None]) & (behind >= 0) & (behind < window)
        shares = tl.exp(_scores(queries, keys, scaling, SOFTCAP) - normalizer[:, None])
        result += tl.sum(tl.where(counts, shares * (window - behind).to(tl.float32), 0.0), 1)
    tl.store(sums + which * rows + row, result, mask=inside)


@triton.jit(do_not_specialize=["heads", "group", "length", "rows", "columns", "low", "high"])
def column_sums(
    query,
    key,
    position,
    first,
    log_sum_exp,
    sums,
    query_b,
    query_h,
    query_n,
    query_d,
    key_b,
    key_h,
    key_n,
    key_d,
    scaling,
    heads,
    group,
    length,
    rows,
    columns,
    low,
    high,
    BANDED: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """`sums` (B, H, columns) over rows t of A[t,s] with low <= t - s <= high; the keys are the last `columns` tokens.

    BANDED: the rows are those same tokens, so that the band bounds which of them are read.
    """
    tiles = tl.cdiv(columns, BLOCK_KEYS)
    which = (tl.program_id(0) // tiles).to(tl.int64)
    batch = which // heads
    head = which % heads
    start_column = tl.program_id(0) % tiles * BLOCK_KEYS
    column = start_column + tl.arange(0, BLOCK_KEYS)
    s = length - columns + column
    keys_of_head = key + batch * key_b + head // group * key_h
    keys = _vectors(keys_of_head, s, length, key_n, key_d, WIDTH, BLOCK_D, UPCAST)
    queries_of_head = query + batch * query_b + head * query_h
    start = 0
    stop = rows
    if BANDED:
        start = tl.maximum(start_column + low, 0)
        stop = tl.minimum(rows, start_column + BLOCK_KEYS + high)
    result = tl.zeros([BLOCK_KEYS], tl.float32)
    for start_row in range(start, stop, BLOCK_ROWS):
        row = start_row + tl.arange(0, BLOCK_ROWS)
        inside = row < rows
        t = tl.load(position + batch * rows + row, mask=inside, other=-1)
        lowest = tl.load(first + batch * rows + row, mask=inside, other=length)
        normalizer = tl.load(log_sum_exp + which * rows + row, mask=inside, other=0.0)
        queries = _vectors(queries_of_head, t, length, query_n, query_d, WIDTH, BLOCK_D, UPCAST)
        behind = t[None, :] - s[:, None]
        counts = (s[:, None] >= lowest[None, :]) & (behind >= 0) & (behind >= low) & (behind <= high)
        # Keys by rows, not rows by keys: each key's sum then stays within a warp.
        shares = tl.exp(_scores(keys, queries, scaling, SOFTCAP) - normalizer[None, :])
        result += tl.sum(tl.where(counts, shares, 0.0), 1)
    tl.store(sums + which * columns + column, result, mask=column < columns)
