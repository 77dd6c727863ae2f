"""Packages that only some of the library needs, imported where it does."""

from __future__ import annotations

import importlib
from types import ModuleType


class MissingExtraError(ImportError):
    """A package that an extra brings along is not installed, or does not load."""


def need(module: str, extra: str, purpose: str) -> ModuleType:
    """The module, or an error that says what to install.

    Args:
        module: what to import. extra: ours, which brings it along.
        purpose: what it is wanted for, to begin the error's message with.

    Raises:
        MissingExtraError: it is not installed, or does not load.

    >>> need("json", "images", "reading JSON").dumps([1])
    '[1]'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{purpose} needs {error.name}: pip install 'stanley-fast[{extra}]'"
        ) from error
    except (ImportError, RuntimeError) as error:  # such as torchvision beside another torch
        reason = str(error).splitlines()[0]
        raise MissingExtraError(
            f"{purpose} needs {module}, which does not load: {reason}"
        ) from error
