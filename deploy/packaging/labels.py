"""Names of classes, as a file of lines can hold them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from dprp_tf.files.shown import shown

__all__ = ["check_labels", "check_text", "label_lines"]


def check_labels(labels: Iterable[str] | None) -> tuple[str, ...] | None:
    """Refuse labels that a file with a line for each would not give back.

    Args:
        labels: Names of the classes in the order of the scores; None for none.

    Returns:
        The labels.

    Raises:
        ValueError: If there are none, one is no text, empty or of several lines, or two are alike.

    Example:

    >>> check_labels(["cat", "dog"])
    ('cat', 'dog')
    >>> check_labels(["cat", "cat"])
    Traceback (most recent call last):
      ...
    ValueError: `labels` must be all different. Received: 'cat' 2 times. Give each class a name \
of its own.
    """
    if labels is None:
        return None
    if isinstance(labels, (str, bytes)):
        raise ValueError(
            f"`labels` must be a list of names, one for each class. Received: {labels!r:.80}. "
            "Give a list, even of one."
        )
    names = tuple(labels)
    if not names:
        raise ValueError("`labels` must name at least one class. Received: none. Leave it out.")
    for place, label in enumerate(names):
        if not isinstance(label, str) or not label.strip():
            raise ValueError(
                f"`labels` must hold a text for each class. Received: {label!r} for class {place}. "
                "Give it a name."
            )
        # Readers differ in what ends a line: nothing that does for any of them may stand in one.
        if len(label.splitlines()) != 1 or label.splitlines()[0] != label or "\0" in label:
            raise ValueError(
                "`labels` must be of one line each. Received: "
                f"'{shown(label)}' for class {place}. Name it without line ends."
            )
        check_text("labels", label)
    most, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise ValueError(
            f"`labels` must be all different. Received: '{shown(most)}' {times} times. Give each "
            "class a name of its own."
        )
    return names


def check_text(name: str, text: str) -> str:
    """Refuse text that UTF-8 can't hold, such as a file name of other bytes.

    Args:
        name: What a user calls the argument.
        text: The text.

    Returns:
        The text.

    Raises:
        ValueError: If it is no text, or holds half of a character.

    Example:

    >>> check_text("name", "digits")
    'digits'
    """
    try:
        if isinstance(text, str) and text.encode("utf-8") is not None:
            return text
    except UnicodeEncodeError as error:
        raise ValueError(
            f"`{name}` must be text that UTF-8 can hold. Received: '{shown(text)}'. Write it anew."
        ) from error
    raise ValueError(f"`{name}` must be text. Received: {name}={text!r:.80}")


def label_lines(labels: Iterable[str]) -> str:
    r"""Return the text of a file of labels, a line for each.

    Args:
        labels: What `check_labels` returned.

    Returns:
        The text.

    Example:

    >>> label_lines(["cat", "dog"])
    'cat\ndog\n'
    """
    return "".join(f"{label}\n" for label in labels)
