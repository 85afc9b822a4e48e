"""What every error for users is like."""

from collections.abc import Callable
from typing import Any

import pytest

from lit_compress.errors import UserError


def error_of(call: Callable[..., Any], *arguments: Any, **named: Any) -> str:
    """The message of the :class:`UserError` that a call raises, which is one line."""
    with pytest.raises(UserError) as caught:
        call(*arguments, **named)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message
