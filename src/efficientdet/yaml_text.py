"""YAML from outside: plain values alone, of a bounded length, without aliases and without a key that is there twice."""

from __future__ import annotations

from typing import Any

from efficientdet.errors import require
from efficientdet.text import printable

# Characters; a dataset with 20,000 class names has half as many.
LONGEST = 1_000_000


def parse_yaml(text: str) -> tuple[Any, Any]:
    """The values of a YAML document.

    Args:
        text: the document.

    Returns:
        Its values as plain Python types, and the node that they were made of, which knows its lines; None and None for
        an empty document.

    Raises:
        ValueError: it is not valid YAML, or more than is read here; says where and why.
        MissingExtraError: PyYAML is not installed.
    """
    if len(text) > LONGEST:
        raise ValueError(f"{len(text):,} characters; at most {LONGEST:,} are read")
    yaml = require("yaml", "train")

    class Loader(yaml.SafeLoader):  # type: ignore[misc, name-defined]
        """Refuses aliases, which can grow without end, and keys that are there twice."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                fault = "aliases (*name) are refused; write the value itself"
                raise yaml.composer.ComposerError(None, None, fault, self.peek_event().start_mark)
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                if key.value in seen:
                    fault = f"the key {printable(repr(key.value), 60)} is there twice; keep one"
                    raise yaml.constructor.ConstructorError(None, None, fault, key.start_mark)
                seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
            return super().construct_mapping(node, deep)

    loader = None
    try:
        loader = Loader(text)
        root = loader.get_single_node()
        return (None if root is None else loader.construct_document(root)), root
    # The constructors of YAML's own tags let through what Python's types say to odd values.
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(printable(" ".join(str(error).split()), 400)) from error
    finally:
        if loader is not None:
            loader.dispose()
