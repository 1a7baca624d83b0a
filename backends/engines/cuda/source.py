"""CUDA C for a traced program, and for what else runs on the device beside it.

Every operation is written as a function of the prelude: on the device an intrinsic that rounds correctly and that
no compiler may contract, whatever its flags. The rest is C++ that a host compiler takes too, so that the tests run
these very kernels on the CPU.

A block of threads takes one chunk of one tensor at a time. Each thread moves `PACK` neighbouring elements, with
16-byte accesses for the arrays that are aligned and element by element for those that are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache

from ...rounding import rendered
from .. import norms
from ..locate import ITEMSIZES
from ..program import INFIX, KEPT, LOGIC, Code, Program, TraceError
from .plan import BLOCK, CHUNK, WORDS
from .prelude import COMMON, DEVICE

__all__ = ["MOST_NUMBERS", "code_of", "fill_source", "finite_source", "square_source", "update_source"]


def indent(lines: Sequence[str], depth: int) -> str:
    return "\n".join("  " * depth + line for line in lines)


#: Each operation of a traced program, in the prelude's functions.
OPERATIONS = {
    **INFIX,
    "add": "add({0}, {1})",
    "sub": "sub({0}, {1})",
    "mul": "mul({0}, {1})",
    "div": "div({0}, {1})",
    "sqrt": "root({0})",
    "exp": "exponential({0})",
    "log": "logarithm({0})",
    "abs": "magnitude({0})",
    # NaN in either argument comes through, as the array API says.
    "min": "({0} < {1} || {0} != {0}) ? {0} : {1}",
    "max": "({0} > {1} || {0} != {0}) ? {0} : {1}",
    "sign": "{0} > 0 ? (real)1 : {0} < 0 ? (real)-1 : {0} == 0 ? (real)0 : {0}",
    "where": "{0} ? {1} : {2}",
    "and": "{0} && {1}",
    "or": "{0} || {1}",
    "not": "!{0}",
}
#: The C type of each dtype. The half types are handled as bits.
C_TYPES = {"float16": "float16", "bfloat16": "bfloat16", "float32": "float", "float64": "double"}
#: The steps of `rounding.STEPS`.
HASHING = {"add": "h += keys.v[{0}];", "xor": "h ^= keys.v[{0}];", "shift": "h ^= h >> {0};", "mul": "h *= {0}u;"}
#: The hash of stochastic rounding (`rounding`), and where an element stands: its run, and the keys of its place.
ROUNDING = f"""\
struct Keys {{ u32 v[2]; }};
DEVICE u32 hashed(u32 h, Keys keys) {{
{indent(rendered(HASHING), 1)}
  return h;
}}
DEVICE Keys absorbed(Keys keys, u32 word) {{
  const u32 first = hashed(word, keys);
  return {{{{first, hashed(~word, {{{{keys.v[1], first}}}})}}}};
}}
struct Place {{
  const i64* run;
  u64 high;
  Keys tensor, pairs[PAIRS];
}};
// The low half of an element's index; the keys become those of its high half.
DEVICE u32 find(Place& place, i64 element) {{
  while (place.run[0] <= element) place.run += 2;
  const u64 index = (u64)(element + place.run[1]);
  if (index >> 32 != place.high) {{
    place.high = index >> 32;
    const Keys keys = absorbed(place.tensor, (u32)place.high);
    #pragma unroll
    for (int k = 0; k < PAIRS; ++k) place.pairs[k] = absorbed(keys, k);
  }}
  return (u32)index;
}}
DEVICE Place place_of(int tensor, i64 start, const i64* tensors, const i64* runs, u64 step) {{
  i64 run = tensors[2 * tensor + 1], last = tensors[2 * tensor + 3] - 1;
  while (run < last) {{
    const i64 middle = (run + last) / 2;
    if (runs[2 * middle] <= start) run = middle + 1;
    else last = middle;
  }}
  const Keys keys = {{{{(u32)step, (u32)(step >> 32)}}}};
  return {{runs + 2 * run, ~0ull, absorbed(keys, (u32)tensors[2 * tensor])}};
}}
// To one of the two neighbours: the carry out of the lower half, with a random one added.
DEVICE void narrow(bfloat16& a, float v, u32 random) {{
  const u32 u = bits_of(v);
  a.bits = v == v ? (u16)((u + random) >> 16) : (u16)((u >> 16) | 0x40u);
}}"""
#: Numbers of a program: which of them live on the device is told by the bits of one word.
MOST_NUMBERS = 64

#: The walk over a plan's chunks, common to the kernels; `rows` holds the tensors' sizes and first chunks.
WALK = """\
  for (i64 chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    const int tensor = owners[chunk];
    const i64 g_at = addresses[tensor + tensors];
    if (g_at == 0) continue;
    const i64 start = (chunk - rows[tensor + tensors]) * CHUNK;
    const i64 rest = rows[tensor] - start;
    const int n = rest < CHUNK ? (int)rest : CHUNK;"""
WALK_PARAMETERS = "const int* owners, const i64* rows, const i64* addresses, i64 chunks, i64 tensors"
NUMBER_PARAMETERS = "BY_VALUE Numbers numbers, const double* live, u64 mask"


def code_of(program: Program) -> Code:
    """The program's straight-line code; a `TraceError` if it has more than `MOST_NUMBERS` numbers."""
    code = program.code
    if len(code.scalars) > MOST_NUMBERS:
        raise TraceError(
            f"rule {program.name!r}: it has {len(code.scalars)} different numbers, expected at most {MOST_NUMBERS}"
        )
    return code


def pack_of(dtypes: Sequence[str]) -> int:
    """Elements that a thread moves at once: 16 bytes of the narrowest array."""
    return 16 // min(ITEMSIZES[dtype] for dtype in dtypes)


def opening(dtypes: Sequence[str], numbers: int) -> list[str]:
    """The lines before the kernels."""
    real = "double" if "float64" in dtypes else "float"
    constants = {"BLOCK": BLOCK, "CHUNK": CHUNK, "PACK": pack_of(dtypes), "NUMBERS": max(numbers, 1)}
    lines = [f"#define {name} {value}" for name, value in constants.items()]
    return [*lines, "#ifndef HOST", DEVICE.strip(), "#endif", f"typedef {real} real;", COMMON.strip()]


def numbered(code: Code) -> list[str]:
    """Declare the program's numbers, each rounded once to the computing dtype."""
    return [f"const real s{k} = (real)number(numbers, live, mask, {k});" for k in range(len(code.scalars))]


def declared(lines: Sequence[str], code: Code) -> list[str]:
    """Give each line of a rendered program its type."""
    truths = {node.name for node in code.nodes if node.op in LOGIC}
    return [f"const {'bool' if line.partition(' ')[0] in truths else 'real'} {line};" for line in lines]


@lru_cache(KEPT)
def update_source(program: Program, dtypes: tuple[str, ...]) -> str:
    """Source of the kernel ``update`` for arrays of these real dtypes, those of x, g and the state.

    A tensor whose gradient has the address 0 is skipped. `scales` holds one number a tensor. A program that rounds
    stochastically takes, last, `rounding.tables` and the step's keys.
    """
    code = code_of(program)
    arrays = [(name, C_TYPES[dtype]) for name, dtype in zip(code.inputs, dtypes, strict=True)]
    written = [(name, c_type) for name, c_type in arrays if name != "g"]
    scalars = [f"s{k}" for k in range(len(code.scalars))]
    signature = [f"{'const ' if a == 'g' else ''}{t}& {a}_" for a, t in arrays]
    signature += [f"real {s}" for s in (*code.per_tensor, *scalars)]
    signature += ["Place& place, i64 at"] * bool(program.stochastic)
    element = [f"const real {a} = widen({a}_);" for a, _ in arrays]
    element += declared(code.render(OPERATIONS), code)
    slots = program.stochastic or (None,) * len(written)
    pairs = {slot // 2 for slot in slots if slot is not None}
    element += ["const u32 low = find(place, at);"] * bool(pairs)
    element += [f"const u32 h{p} = hashed(low, place.pairs[{p}]);" for p in sorted(pairs)]
    halves = ["" if s is None else f", h{s // 2} >> 16" if s % 2 else f", h{s // 2} & 0xffffu" for s in slots]
    element += [f"narrow({a}_, {t}{half});" for (a, _), t, half in zip(written, code.outputs, halves, strict=True)]
    located = [f"const i64 {a}_at = addresses[tensor + {j} * tensors];" for j, (a, _) in enumerate(arrays) if a != "g"]
    located += ["const real norm_scale = (real)scales[tensor];"] * bool(code.per_tensor)
    at = {a: f"{a}_at + (start + k) * (i64)sizeof({t})" for a, t in arrays}
    located += ["Place place = place_of(tensor, start, tensors_at, runs, keys);"] * bool(pairs)
    extra = "".join(f", {number}" for number in (*code.per_tensor, *scalars)) + ", place, start + k" * bool(pairs)
    stores = [f"store({at[a]}, {a});" for a, _ in written]
    packs = [f"Pack<{t}> {a};" for a, t in arrays] + [f"load({a}, {at[a]});" for a, _ in arrays]
    packs += ["#pragma unroll", "for (int j = 0; j < PACK; ++j)"]
    packs += [f"  element({', '.join(f'{a}.v[j]' for a, _ in arrays)}{extra}{' + j' * bool(pairs)});", *stores]
    single = [f"{t} {a}; load({a}, {at[a]});" for a, t in arrays]
    single += [f"element({', '.join(a for a, _ in arrays)}{extra});", *stores]
    parameters = f"{WALK_PARAMETERS}, const double* scales, {NUMBER_PARAMETERS}"
    parameters += ", const i64* tensors_at, const i64* runs, u64 keys" * bool(pairs)
    return "\n".join(
        [
            *opening(dtypes, len(scalars)),
            *([f"#define PAIRS {max(pairs) + 1}", ROUNDING] if pairs else []),
            f"DEVICE void element({', '.join(signature)}) {{",
            indent(element, 1),
            "}",
            f"KERNEL(update)({parameters}) {{",
            indent(numbered(code), 1),
            WALK,
            indent(located, 2),
            "    for (int k = (int)threadIdx.x * PACK; k < n; k += BLOCK * PACK) {",
            "      if (k + PACK <= n) {",
            indent(packs, 4),
            "        continue;",
            "      }",
            "      for (; k < n; ++k) {",
            indent(single, 4),
            "      }",
            "    }",
            "  }",
            "}",
        ]
    )


@lru_cache(KEPT)
def square_source(program: Program, dtype: str) -> str:
    """Source of the kernel ``squares``: see `norms.square_sums`.

    Adds to one row of `out` a tensor, as integers, so that the order does not matter. The gradient is scaled and
    clipped by value on the way.
    """
    code = code_of(program)
    element = ["const real g = widen(g_);", *declared(code.render(OPERATIONS, only=(code.measured,)), code)]
    element += [f"return magnitude((double){code.measured});"]
    scalars = [f"s{k}" for k in range(len(code.scalars))]
    c_type, extra = C_TYPES[dtype], "".join(f", {s}" for s in scalars)
    computing = "float64" if dtype == "float64" else "float32"
    start, digits = norms.DIGITS[computing]
    constants = f"""\
#define DIGITS {digits}
#define COLUMNS {norms.columns(computing)}
#define EACH (CHUNK / BLOCK)
DEVICE double power(int exponent) {{ return double_of((i64)(exponent + 1023) << 52); }}
DEVICE double measured({c_type} g_{"".join(f", real {s}" for s in scalars)}) {{
{indent(element, 1)}
}}
// Adds count * 2**exponent to the digits of a row; what is below the lowest is zeros.
DEVICE void put(i64* row, i64 count, int exponent) {{
  const int above = exponent - ({start}), k = above > 0 ? above / {norms.STEP} : 0;
  const i64 digit = {1 << norms.STEP}LL, low_bits = digit - 1;
  if (above < 0) count >>= above < -63 ? 63 : -above;
  const int shift = above > 0 ? above % {norms.STEP} : 0;
  const i64 low = (count & low_bits) << shift, high = (low >> {norms.STEP}) + ((count >> {norms.STEP}) << shift);
  add_atomic(&row[k], low & low_bits);
  add_atomic(&row[k + 1], high & low_bits);
  add_atomic(&row[k + 2], high >> {norms.STEP});
}}"""
    body = f"""\
    double v[EACH];
    #pragma unroll
    for (int m = 0; m < EACH / PACK; ++m) {{
      const int k = (m * BLOCK + (int)threadIdx.x) * PACK;
      const i64 at = g_at + (start + k) * (i64)sizeof({c_type});
      if (k + PACK <= n) {{
        Pack<{c_type}> g;
        load(g, at);
        #pragma unroll
        for (int j = 0; j < PACK; ++j) v[m * PACK + j] = measured(g.v[j]{extra});
      }} else {{
        #pragma unroll
        for (int j = 0; j < PACK; ++j) {{
          v[m * PACK + j] = 0;
          if (k + j < n) {{
            {c_type} g;
            load(g, at + j * (i64)sizeof({c_type}));
            v[m * PACK + j] = measured(g{extra});
          }}
        }}
      }}
    }}
    for (int k = threadIdx.x; k < COLUMNS; k += BLOCK) row[k] = 0;
    sync_block();
    #pragma unroll
    for (int j = 0; j < EACH; ++j) {{
      if (!(sub(v[j], v[j]) == 0)) {{
        add_atomic(&row[v[j] != v[j] ? DIGITS + 1 : DIGITS], 1);
        v[j] = 0;
      }}
    }}
    for (;;) {{
      // The largest elements, scaled so that their squares are neither huge nor subnormal; then those below them. All
      // lanes of a warp do the same.
      i64 largest = 0;
      #pragma unroll
      for (int j = 0; j < EACH; ++j) largest = bits_of(v[j]) > largest ? bits_of(v[j]) : largest;
      for (int mask = 16; mask; mask >>= 1) {{
        const i64 other = of_other_lane(largest, mask);
        largest = other > largest ? other : largest;
      }}
      if (largest == 0) break;
      const int exponent = (int)(largest >> 52 ? largest >> 52 : 1) - 1023;
      const double half = power(-exponent / 2), rest = power(-exponent - -exponent / 2);
      double s[EACH];
      #pragma unroll
      for (int j = 0; j < EACH; ++j) {{
        const double scaled = mul(mul(v[j], half), rest);
        const bool now = scaled >= {2.0**-400!r};
        s[j] = now ? mul(scaled, scaled) : 0;
        v[j] = now ? 0 : v[j];
      }}
      bool left = true;
      for (int unit_at = 2 - {norms.BITS}; left; unit_at -= {norms.BITS}) {{
        const double unit = power(unit_at), anchor = mul({1.5 * 2.0**52!r}, unit);
        const i64 base = bits_of(anchor);
        i64 total = 0;
        left = false;
        #pragma unroll
        for (int j = 0; j < EACH; ++j) {{
          // Within the anchor's binade, the bits of a sum count its units. They are rounded down: nothing is negative.
          const double sum = add(s[j], anchor);
          const double whole = sub(sum, anchor);
          const bool above = whole > s[j];
          total += bits_of(sum) - base - above;
          s[j] = sub(s[j], above ? sub(whole, unit) : whole);
          left = left || s[j] != 0;
        }}
        left = any_of_warp(left);
        for (int mask = 16; mask; mask >>= 1) total += of_other_lane(total, mask);
        if (threadIdx.x % 32 == 0 && total != 0) put(row, total, unit_at + 2 * exponent);
      }}
    }}
    sync_block();
    for (int k = threadIdx.x; k < COLUMNS; k += BLOCK)
      if (row[k] != 0) add_atomic(out + (i64)tensor * COLUMNS + k, row[k]);
    sync_block();
  }}
}}"""
    head = f"KERNEL(squares)({WALK_PARAMETERS}, i64* out, {NUMBER_PARAMETERS}) {{"
    before = [*opening((dtype,), len(code.scalars)), constants, head, "  SHARED i64 row[COLUMNS];"]
    return "\n".join([*before, indent(numbered(code), 1), WALK, body])


@cache
def finite_source(dtype: str) -> str:
    """Source of the kernel ``nonfinite``: sets ``bad[i]`` where the gradient of tensor i is not finite."""
    c_type = C_TYPES[dtype]
    body = f"""\
    bool odd = false;
    for (int k = (int)threadIdx.x * PACK; k < n; k += BLOCK * PACK) {{
      const i64 at = g_at + (start + k) * (i64)sizeof({c_type});
      if (k + PACK <= n) {{
        Pack<{c_type}> g;
        load(g, at);
        #pragma unroll
        for (int j = 0; j < PACK; ++j) odd = odd || sub(widen(g.v[j]), widen(g.v[j])) != 0;
      }} else {{
        for (int j = 0; k + j < n; ++j) {{
          {c_type} g;
          load(g, at + j * (i64)sizeof({c_type}));
          odd = odd || sub(widen(g), widen(g)) != 0;
        }}
      }}
    }}
    if (odd) bad[tensor] = 1;
  }}
}}"""
    head = f"KERNEL(nonfinite)({WALK_PARAMETERS}, i64* bad) {{"
    return "\n".join([*opening((dtype,), 0), head, WALK, body])


@cache
def fill_source() -> str:
    """Source of the kernel ``fill``: writes words, which travel as its arguments, to a table on the device."""
    kernel = f"""\
struct Words {{ i64 v[{WORDS}]; }};
KERNEL(fill)(i64* out, int n, BY_VALUE Words words) {{
  for (int k = threadIdx.x; k < n; k += BLOCK) out[k] = words.v[k];
}}"""
    return "\n".join([*opening(("float64",), 0), kernel])
