"""Structures of parameters: one array, a flat list, tuple or dict, or nested containers (with optree)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["Structure", "flatten_groups", "is_group"]

#: How Python's own repr of an object ends, which says no more than where it lies in this process.
_ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+>")


def _is_container(value: Any) -> bool:
    return isinstance(value, (list, tuple, dict))


class Structure:
    """The structure of a container of arrays, taken from one example.

    Parameters
    ----------
    tree : object
        An array, a list, tuple or dict of arrays, an iterator of arrays, or containers nested in any way.
    what : str
        Its name in messages.

    Attributes
    ----------
    leaves : list
        The arrays of the example, in order.
    names : list of str
        A name for each, such as ``params['encoder'][0]``.

    Raises
    ------
    ImportError
        If containers are nested and optree is not installed.
    ValueError
        If two arrays have the same name.
    """

    def __init__(self, tree: Any, what: str = "params") -> None:
        if isinstance(tree, Iterator):
            tree = list(tree)
        self.what = what
        self.kind: Any = type(tree) if _is_container(tree) else None
        self.spec: Any = None
        if not _is_container(tree):
            self.leaves, self.names = [tree], [what]
        elif any(map(_is_container, _values(tree))) or type(tree) not in (list, tuple, dict):
            optree = _optree()
            self.leaves, self.spec = optree.tree_flatten(tree, none_is_leaf=True)
            self.names = _names(what, self.spec)
        else:
            self.leaves = list(_values(tree))
            self.keys = list(tree) if self.kind is dict else list(range(len(tree)))
            self.names = [f"{what}[{key!r}]" for key in self.keys]
        if len(set(self.names)) < len(self.names):
            self._refuse_twins()

    def _paths(self) -> list[tuple[Any, ...]]:
        """The keys that lead to each leaf."""
        if self.kind is None:
            return [()]
        return [(key,) for key in self.keys] if self.spec is None else self.spec.paths()

    def _refuse_twins(self) -> None:
        """Say which two keys have one name: checkpoints would hold the state of only one of them."""
        seen: dict[str, Any] = {}
        for name, path in zip(self.names, self._paths(), strict=True):
            if name in seen:
                one, two = (
                    " / ".join(f"{key!r} ({type(key).__module__}.{type(key).__qualname__})" for key in keys)
                    for keys in (seen[name], path)
                )
                raise ValueError(
                    f"{self.what}: expected keys that their repr tells apart, as names and checkpoints do; "
                    f"both {one} and {two} are called {name}"
                )
            seen[name] = path

    def check_lasting(self) -> None:
        """Raise ValueError if a name is another one in another process."""
        for name, path in zip(self.names, self._paths(), strict=True):
            if any(not isinstance(key, str) and _ADDRESS.search(repr(key)) for key in path):
                raise ValueError(
                    f"{name}: expected keys with the same repr in every process, by which a file is loaded, "
                    "got one that holds an address"
                )

    def flatten(self, tree: Any, what: str) -> list[Any]:
        """The leaves of another tree of this structure, None among them.

        Raises
        ------
        ValueError
            If the structure differs; the message says where.
        """
        if self.kind is None:
            if _is_container(tree):
                raise ValueError(f"{what}: expected one array, as params is, got a {type(tree).__name__}")
            return [tree]
        if isinstance(tree, Iterator):
            tree = list(tree)
        if self.spec is not None:
            return self._flatten_nested(tree, what)
        kinds: Any = dict if self.kind is dict else (list, tuple)
        if not isinstance(tree, kinds):
            expected = "a dict" if self.kind is dict else "a list or tuple"
            got = "None" if tree is None else f"a {type(tree).__name__}"
            raise ValueError(f"{what}: expected {expected}, as {self.what} is, got {got}")
        if self.kind is dict:
            if tree.keys() != set(self.keys):
                missing = [key for key in self.keys if key not in tree]
                unknown = [key for key in tree if key not in self.keys]
                raise ValueError(f"{what}: expected the keys of {self.what}; missing {missing}, unexpected {unknown}")
            return [tree[key] for key in self.keys]
        if len(tree) != len(self.keys):
            raise ValueError(f"{what}: expected {len(self.keys)} entries, one for each of {self.what}, got {len(tree)}")
        return tree if type(tree) is list else list(tree)

    def _flatten_nested(self, tree: Any, what: str) -> list[Any]:
        leaves, spec = _optree().tree_flatten(tree, none_is_leaf=True)
        if spec != self.spec:
            names = {what + name.removeprefix(self.what) for name in self.names}
            got = set(_names(what, spec))
            missing, unknown = sorted(names - got), sorted(got - names)
            raise ValueError(
                f"{what}: expected the structure of {self.what}; missing {missing[:5]}, unexpected {unknown[:5]}"
                if missing or unknown
                else f"{what}: expected the structure {self.spec}, got {spec}"
            )
        return leaves

    def unflatten(self, leaves: Sequence[Any]) -> Any:
        """Put leaves back into the structure."""
        if self.kind is None:
            return leaves[0]
        if self.spec is not None:
            return _optree().tree_unflatten(self.spec, leaves)
        return dict(zip(self.keys, leaves, strict=True)) if self.kind is dict else self.kind(leaves)


def is_group(value: Any) -> bool:
    """Whether this is a group of parameters with options: ``{"params": ..., **options}``."""
    return isinstance(value, Mapping) and "params" in value


def flatten_groups(structures: Sequence[Structure], tree: Any, what: str) -> list[list[Any]]:
    """The leaves of a list of trees of these structures; see `Structure.flatten`."""
    if not isinstance(tree, (list, tuple)) or len(tree) != len(structures):
        got = f"{len(tree)} entries" if isinstance(tree, (list, tuple)) else f"a {type(tree).__name__}"
        raise ValueError(f"{what}: expected a list with one entry for each of {len(structures)} groups, got {got}")
    pairs = enumerate(zip(structures, tree, strict=True))
    return [structure.flatten(entry, f"{what}[{i}]") for i, (structure, entry) in pairs]


def _values(tree: Any) -> Any:
    return tree.values() if isinstance(tree, dict) else tree


def _names(what: str, spec: Any) -> list[str]:
    return [what + "".join(f"[{key!r}]" for key in path) for path in spec.paths()]


def _optree() -> Any:
    try:
        import optree
    except ImportError:
        raise ImportError('nested params need optree: pip install "multiopt[tree]"') from None
    return optree
