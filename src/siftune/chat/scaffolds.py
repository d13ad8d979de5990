"""Templates that only copy the texts of a conversation, proven from their syntax tree.

Such a template writes the same between the texts of all conversations with the same roles, so what
stands there has to be rendered only once. Whatever is not known to be harmless is no proof.
"""

import re

from jinja2 import nodes

_MARK = re.compile("\0([0-9]+)\0")
# What a message of a role and a text can be asked for without its text being looked at.
_OTHER_KEYS = ("role", "tool_calls")
_HARMLESS = (
    *(nodes.Template, nodes.TemplateData, nodes.If, nodes.Assign, nodes.Const, nodes.List),
    *(nodes.Tuple, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Test),
)
_COPYING = (nodes.Output, nodes.Add, nodes.Concat)


def mark(index: int) -> str:
    """What stands for the text of a message."""
    return f"\0{index}\0"


def split(rendered: str) -> tuple[list[str], list[int]]:
    """What stands between the marks, with room for the texts, and which text comes where."""
    parts = _MARK.split(rendered)
    return parts, [int(index) for index in parts[1::2]]


def only_copies_texts(tree: nodes.Template) -> bool:
    """Whether a template does nothing with the messages' texts but to write them.

    Of messages that have a role and a text, without tools. In particular, no condition depends on
    a text, and a text goes into no variable, function or filter.
    """
    texts = [str(one.value) for one in tree.find_all(nodes.Const)]
    texts += [one.data for one in tree.find_all(nodes.TemplateData)]
    return _Proof().holds(tree) and not any("\0" in text for text in texts)


class _Proof:
    """A walk in the order of the template; names that may hold messages are kept for good."""

    def __init__(self) -> None:
        self._lists = {"messages"}
        self._messages: set[str] = set()

    def holds(self, node: nodes.Node, *, is_written: bool = False) -> bool:
        """Whether no text is looked at below `node`, whose own value is only written, or not."""
        if isinstance(node, nodes.Name):
            return node.name not in {"loop", "self", *self._lists, *self._messages}
        if isinstance(node, nodes.Getattr | nodes.Getitem):
            return self._part(node, is_written)
        if isinstance(node, nodes.For):
            return self._loop(node)
        if isinstance(node, nodes.Assign) and self._is_list(node.node):
            return self._named(node.target, self._lists)
        if isinstance(node, nodes.CondExpr):
            written = [one for one in (node.expr1, node.expr2) if one is not None]
            return self.holds(node.test) and self._all(written, is_written)
        if isinstance(node, nodes.Call):
            name = node.node.name if isinstance(node.node, nodes.Name) else ""
            plain = not (node.kwargs or node.dyn_args or node.dyn_kwargs)
            return name == "raise_exception" and plain and self._all(node.args)
        if isinstance(node, _COPYING):
            outer = is_written or isinstance(node, nodes.Output)
            return self._all(list(node.iter_child_nodes()), outer)
        return isinstance(node, _HARMLESS) and self._all(list(node.iter_child_nodes()))

    def _all(self, found: list[nodes.Node] | list[nodes.Expr], is_written: bool = False) -> bool:
        return all(self.holds(node, is_written=is_written) for node in found)

    def _part(self, node: nodes.Getattr | nodes.Getitem, is_written: bool) -> bool:
        key = _key(node)
        if self._is_message(node.node):
            return key in _OTHER_KEYS or (key == "content" and is_written)
        if isinstance(node.node, nodes.Name) and node.node.name == "loop":
            return key in ("first", "last", "index", "index0", "length")
        return False

    def _loop(self, node: nodes.For) -> bool:
        if node.recursive or node.test is not None or not self._is_list(node.iter):
            return False
        return self._named(node.target, self._messages) and self._all([*node.body, *node.else_])

    def _named(self, target: nodes.Node, names: set[str]) -> bool:
        if isinstance(target, nodes.Name):
            names.add(target.name)
        return isinstance(target, nodes.Name)

    def _is_list(self, node: nodes.Node) -> bool:
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            bounds = (node.arg.start, node.arg.stop, node.arg.step)
            is_fixed = all(one is None or isinstance(one, nodes.Const) for one in bounds)
            return is_fixed and self._is_list(node.node)
        return isinstance(node, nodes.Name) and node.name in self._lists

    def _is_message(self, node: nodes.Node) -> bool:
        if isinstance(node, nodes.Getitem):
            return isinstance(_key(node), int) and self._is_list(node.node)
        return isinstance(node, nodes.Name) and node.name in self._messages


def _key(node: nodes.Getattr | nodes.Getitem) -> object:
    if isinstance(node, nodes.Getattr):
        return node.attr
    return node.arg.value if isinstance(node.arg, nodes.Const) else None
