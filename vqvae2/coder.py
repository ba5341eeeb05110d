"""The range coder, of the package constriction, which only compression needs."""

from typing import Any

from vqvae2.errors import UserError

__all__ = ["law", "range_coder"]


def range_coder() -> Any:
    """Return constriction's module with ``RangeEncoder`` and ``RangeDecoder``.

    Raises:
        UserError: constriction is not installed.
    """
    return _constriction().stream.queue


def law(name: str, *arguments: Any, **settings: Any) -> Any:
    """Build a distribution of constriction by its name; its parameters are given with what is coded."""
    return getattr(_constriction().stream.model, name)(*arguments, **settings)


def _constriction() -> Any:
    try:
        import constriction
    except ImportError:
        raise UserError("compression needs the package constriction", how="Run pip install constriction") from None
    return constriction
