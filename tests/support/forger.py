"""Forged checkpoints and snapshots: a good one with one thing wrong, and its checksums right, so that it goes deep.

``forge(content, rng)`` and ``forge_snapshot(state, rng)`` make one at random, ``special(content)`` those that chance
would not find; ``tried`` says whether one was loaded, and makes sure of what must hold either way.
"""

import copy
import json
import zlib
from collections.abc import Mapping

from libraries import snapshot


class Text(str):
    """JSON that `json` would not write, in the place of a value."""


JUNK = [
    None, True, False, 0, 1, -1, 2, 2**31, 2**63 - 1, 2**63, 10**18, 10**400, 0.0, 1.0, -0.5, 1.5, 1e308,
    float("nan"), float("inf"), -float("inf"), "", "x", "1", "params", "float32", "F64", "I8", "void", "complex256",
    "object", "O", "\ud800", "\x00", "x" * 1000, [], [None], [[]], [0], [1, 2], [-1], [2**40, 2**40], {}, {"x": 1},
    {"schedule": "Cosine"}, {"schedule": "Schedule", "fields": {}}, {"schedule": [], "fields": {}}, {"callable": "f"},
    {"schedule": "Cosine", "fields": None}, {"schedule": "Cosine", "fields": {"initial": "x", "decay_steps": []}},
    {"schedule": "WarmUp", "fields": {"schedule": 1, "steps": 2}}, {"schedule": "os.system", "fields": {"": ""}},
    {"schedule": "Cosine", "fields": {"self": 1}}, {"schedule": "Constant", "fields": {"value": 0.5}},
    {"schedule": "Piecewise", "fields": {"boundaries": [1], "values": [{}]}}, {"callable": None},
    {"callable": "f", "schedule": "g"}, Text("1" * 5000), Text("1e999"), Text("[" * 100_000 + "]" * 100_000),
    Text('{"schedule":"WarmUp","fields":{"steps":1,"schedule":' * 900 + "1" + "}}" * 900), Text('{"x": 1, "x": 2}'),
]  # fmt: skip


# --- a file's parts ---


def take_apart(content):
    """The header without the metadata, the metadata, and the bytes of the arrays."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    text = header.pop("__metadata__")["multiopt"].partition(" ")[2]
    return header, json.loads(text), content[8 + length :]


def put_together(header, metadata, data, entry=None):
    """The inverse, with right checksums; `entry` stands for the metadata in the header."""
    text = dumps(metadata)
    checksum = f"{zlib.crc32(text.encode(errors='surrogatepass')):08x}"
    entry = {"multiopt": f"{checksum} {text}"} if entry is None else entry
    return framed(dumps({"__metadata__": entry, **header} if isinstance(header, dict) else header).encode(), data)


def framed(header, data, length=None):
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def dumps(value):
    """JSON with `Text` as it is, and names that are no text left for `json` to write."""
    texts = []

    def marked(node):
        if isinstance(node, Text):
            texts.append(node)
            return f"<<{len(texts) - 1}>>"
        if isinstance(node, dict):
            return {name: marked(inner) for name, inner in node.items()}
        return [marked(inner) for inner in node] if isinstance(node, (list, tuple)) else node

    written = json.dumps(marked(value))
    for i, text in enumerate(texts):
        written = written.replace(f'"<<{i}>>"', text)
    return written


# --- one thing wrong ---


def paths(tree, path=()):
    """The way to every node."""
    yield path
    if isinstance(tree, Mapping) or type(tree) is list:
        for key, inner in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from paths(inner, (*path, key))


def changed(tree, rng, junk):
    """A copy of a tree with one node replaced, removed, doubled, renamed or exchanged; and in words, what was done."""
    tree = [copy.copy(tree) if not isinstance(tree, dict) else _copied(tree)]
    found = [(0, *path) for path in paths(tree[0])]
    path = rng.choice(found)
    holder, key = _at(tree, path[:-1]), path[-1]
    how = rng.choice(["replace", "replace", "replace", "remove", "double", "rename", "exchange", "add"])
    if how == "remove" and len(path) > 1:
        del holder[key]
    elif how == "double" and isinstance(holder, list) and len(path) > 1:
        holder.insert(key, holder[key])
    elif how == "rename" and isinstance(holder, dict):
        holder[rng.choice(["", "x", f"{key} ", "__metadata__", "params/x"])] = holder.pop(key)
    elif how == "exchange" and len(path) > 1:
        other = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        holder[key], holder[other] = holder[other], holder[key]
    elif how == "add" and isinstance(holder[key], dict):
        holder[key][rng.choice(["x", "arrays", "params/x"])] = rng.choice(junk)
    elif how == "add" and isinstance(holder[key], list):
        holder[key].append(rng.choice(junk))
    else:
        how, holder[key] = "replace", rng.choice(junk)
    return tree[0], f"{how} {path[1:]}" + (f" by a {type(holder[key]).__name__}" if how == "replace" else "")


def _copied(tree):
    """A copy of dicts and lists; arrays are the same."""
    if isinstance(tree, dict):
        return {key: _copied(value) for key, value in tree.items()}
    return [_copied(value) for value in tree] if type(tree) is list else tree


def _at(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def forge(content, rng):
    """A file made of a good one, and in words, what is wrong with it."""
    header, metadata, data = take_apart(content)
    kind = rng.choice(["metadata", "metadata", "metadata", "header", "header", "entry", "both", "bytes"])
    if kind == "metadata":
        metadata, how = changed(metadata, rng, JUNK)
        return f"metadata: {how}", put_together(header, metadata, data)
    if kind == "header":
        header, how = changed(header, rng, JUNK)
        return f"header: {how}", put_together(header, metadata, data)
    if kind == "entry":
        entry = rng.choice([*JUNK, {"multiopt": rng.choice(JUNK)}, {"format": "pt"}])
        return "metadata's place", put_together(header, metadata, data, entry if entry is not None else Text("null"))
    if kind == "both":
        key, other = (rng.choice(list(header)) for _ in range(2))
        metadata["arrays"][key], metadata["arrays"][other] = metadata["arrays"][other], metadata["arrays"][key]
        header[key], header[other] = header[other], header[key]
        return f"exchange {key} and {other}", put_together(header, metadata, data)
    length = int.from_bytes(content[:8], "little")
    number = rng.choice([0, 1, 7, length - 1, length + 1, len(content), 10**8, 10**8 + 1, 2**63, 2**64 - 1])
    cut = rng.randrange(len(content))
    return rng.choice(
        [
            (f"length {number}", framed(content[8:], b"", number)),
            (f"cut at {cut}", content[:cut]),
            ("more at the end", content + bytes(rng.randrange(1, 9))),
            ("more between", content[: 8 + length] + bytes(8) + content[8 + length :]),
            ("UTF-16", framed(content[8 : 8 + length].decode().encode("utf-16"), data)),
            ("no UTF-8", framed(content[8 : 8 + length].replace(b"steps", b"st\xffps"), data)),
            ("a mark of byte order", framed(b"\xef\xbb\xbf" + content[8 : 8 + length], data)),
        ]
    )


def forge_snapshot(state, rng):
    """A snapshot made of a good one, and in words, what is wrong with it; its arrays are the same."""
    junk = [value for value in JUNK if not isinstance(value, Text)]
    junk += [10**5000, (), b"x", object(), {1: 2}, {None: None}, int, lambda step: 0.5, _nested(5000), {"x"}, 1j]
    return changed(state, rng, junk)[::-1]


def _nested(depth):
    tree = []
    for _ in range(depth):
        tree = [tree]
    return tree


def special(content):
    """Forged files that chance would not find, by what is wrong with them."""
    header, metadata, data = take_apart(content)
    text = content.decode("latin-1")
    key = next(key for key, entry in header.items() if len(set(data[slice(*entry["data_offsets"])])) > 3)
    begin, end = header[key]["data_offsets"]

    def described(entry=None, kept=None, **about):
        entries = {**header, key: {**header[key], **(entry or {})}}
        arrays = {**metadata["arrays"], key: kept or metadata["arrays"][key]}
        return put_together(entries, {**metadata, "arrays": arrays, **about}, data)

    dtype, shape, checksum = metadata["arrays"][key]
    twice = text.replace(f'"{key}"', f'"{key}":1,"{key}"', 1)[8:].encode("latin-1")
    return {
        "a name given twice": framed(twice[: len(twice) - len(data)], data),
        "deep": framed(b"[" * 10**6, data),
        "huge in the header": described(entry={"shape": [2**62, 2**62]}),
        "huge": described(entry={"shape": [2**50]}, kept=[dtype, [2**50], checksum]),
        "huge and empty": described(entry={"shape": [2**62, 0]}, kept=[dtype, [2**62, 0], checksum]),
        "negative": described(entry={"shape": [-2, -3]}, kept=[dtype, [-2, -3], checksum]),
        "backwards": described(entry={"data_offsets": [end, begin]}),
        "before the file": described(entry={"data_offsets": [begin - 10**6, end - 10**6]}),
        "behind it": described(entry={"data_offsets": [begin + 10**18, end + 10**18]}),
        "a fraction": described(entry={"data_offsets": [begin + 0.5, end + 0.5]}),
        "True": described(entry={"data_offsets": [True, end]}),
        "another array's": described(entry={"data_offsets": [begin + 4, end + 4]}),
        "an odd dtype": described(kept=["object", shape, checksum]),
        "a checksum that is a text": described(kept=[dtype, shape, str(checksum)]),
        "a huge count": described(steps=10**400),
        "a count of many digits": described(steps=Text("1" * 5000)),
        "1.0 for 1": described(format=1.0),
        "True for 1": described(format=True),
        "flags of another size": described(accumulated=[[True]]),
        "many arrays": put_together({**header, **{str(i): {} for i in range(10**5)}}, metadata, data),
    }


# --- what must hold ---


def tried(make, path):
    """Whether an optimizer, which `make` makes, loads a file: if not, the error is the documented one, and nothing has
    changed; if so, what it has got can be saved and loaded again.
    """
    opt = make()
    before = snapshot(opt)
    try:
        opt.load(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: "), error  # noqa: PT017
        assert snapshot(opt) == before, error  # noqa: PT017
        return False
    opt.save(path)
    again = make()
    again.load(path)
    assert snapshot(again) == snapshot(opt)
    return True


def tried_snapshot(make, state):
    """The same for `load_state_dict`."""
    opt = make()
    before = snapshot(opt)
    try:
        opt.load_state_dict(state)
    except ValueError as error:
        assert str(error).startswith("state: "), error  # noqa: PT017
        assert snapshot(opt) == before, error  # noqa: PT017
        return False
    again = make()
    again.load_state_dict(opt.state_dict())
    assert snapshot(again)[1:] == snapshot(opt)[1:]
    return True
