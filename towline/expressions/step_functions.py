"""Step functions: expressions of one column of numbers whose value changes at a few numbers only."""

from towline.expressions.syntax import Call, Literal, Name, Node

_COMPARISONS = frozenset({"=", "<>", "<", "<=", ">", ">=", "between", "in", "is null", "bucket"})


def find_steps(node: Node) -> frozenset[float] | None:
    """The numbers at which the value of an expression may change; None if it may change at others too.

    Strictly between two neighbouring numbers the value is constant. Null is a separate case.

    Args:
        node: reads one column, of numbers.

    Example:
        >>> from towline.expressions.syntax import parse
        >>> sorted(find_steps(parse("case when a < 2 then 'low' when a between 5 and 7 then 'mid' end")))
        [2.0, 5.0, 7.0]
        >>> find_steps(parse("a + 1 < 2")) is None
        True
    """
    if isinstance(node, Literal):
        return frozenset()
    if isinstance(node, Name):
        return None
    if node.function in _COMPARISONS and all(isinstance(part, Name | Literal) for part in node.arguments):
        return _numbers(node.arguments)
    if node.function == "switch" and isinstance(node.arguments[0], Name):
        keys, rest = node.arguments[1:-1:2], (*node.arguments[2:-1:2], node.arguments[-1])
        tests = [Call("=", (node.arguments[0], key), node.at) for key in keys]
        return _union([*tests, *rest])
    return _union(node.arguments)


def _union(nodes: "tuple[Node, ...] | list[Node]") -> frozenset[float] | None:
    steps: frozenset[float] = frozenset()
    for node in nodes:
        added = find_steps(node)
        if added is None:
            return None
        steps |= added
    return steps


def _numbers(nodes: tuple[Node, ...]) -> frozenset[float]:
    return frozenset(part.value for part in nodes if isinstance(part, Literal) and isinstance(part.value, float))
