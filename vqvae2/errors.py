"""The one-line error for a mistake that the user can mend."""


class UserError(Exception):
    """A mistake of the user's, told in one line: what is wrong, where, and how to mend it.

    Args:
        what: what is wrong, with the value received.
        where: the path, flag or name that it concerns.
        how: the way out.

    The command lines print ``error: WHAT: WHERE. HOW`` on stderr and exit with 2, without a traceback.
    """

    def __init__(self, what: str, where: object = "", how: str = "") -> None:
        text = what if where == "" else f"{what}: {where}"
        text = text.rstrip(".") + "." + (f" {how.rstrip('.')}." if how else "")
        super().__init__(" ".join(text.split()))
