"""A Sphinx extension that fails the build when a public name has no docstring.

Public is what a module of the package lists in its ``__all__``. A constant is documented by the string under
it, or by the ``#:`` comment before it, as autodoc reads them.
"""

import importlib
import inspect
import pkgutil
from types import ModuleType

from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging

PACKAGE = "vqvae2"
logger = logging.getLogger(__name__)


def modules(package: str) -> list[ModuleType]:
    """Import a package and all that is in it, without running its ``__main__``."""
    root = importlib.import_module(package)
    names = [info.name for info in pkgutil.walk_packages(root.__path__, prefix=f"{package}.")]
    return [root, *(importlib.import_module(name) for name in names)]


def has_docstring(module: ModuleType, name: str) -> bool:
    """Whether a public name is documented by words of its own."""
    value = getattr(module, name)
    if inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value):
        text = value.__doc__ or ""
        # dataclasses write their signature where no docstring is given.
        return bool(text.strip()) and not text.startswith(f"{name}(")
    # A constant that is imported to be offered again is documented where it is made.
    owners = [module, *(m for m in modules(PACKAGE) if getattr(m, name, None) is value)]
    return any(("", name) in ModuleAnalyzer.for_module(m.__name__).find_attr_docs() for m in owners)


def check(app: Sphinx) -> None:
    """Name every public name without a docstring, and let the build fail for it, with ``-W`` or without."""
    for module in modules(PACKAGE):
        for name in getattr(module, "__all__", ()):
            if not hasattr(module, name):
                problem = "is in __all__ but not in the module"
            elif not name.startswith("__") and not has_docstring(module, name):
                problem = "is public and has no docstring"
            else:
                continue
            logger.error("%s.%s %s", module.__name__, name, problem)
            app.statuscode = 1


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the check to the start of the build."""
    app.connect("builder-inited", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
