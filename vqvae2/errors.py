"""The one-line error for a mistake that the user can correct."""


class UserError(Exception):
    """A user's mistake, reported in one line: what is wrong, where, and how to correct it.

    Args:
        what: what is wrong, with the value received.
        where: the path, flag or name that it concerns.
        how: the way out.

    The command lines print ``error: WHAT: WHERE. HOW`` on stderr and exit with 2, without a traceback.
    """

    def __init__(self, what: str, where: object = "", how: str = "") -> None:
        text = what if where == "" else f"{what}: {where}"
        text = text.rstrip(".") + "." + (f" {how.rstrip('.')}" + "." * (not how.endswith("?")) if how else "")
        super().__init__(" ".join(text.split()))
