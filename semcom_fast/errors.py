"""Exceptions a caller may want to catch."""


class BackendUnavailable(RuntimeError):
    """A backend was asked for that cannot run here; the message says what is missing and how to get it."""


class MissingExtra(ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


class SingularChannelError(ValueError):
    """Channels whose Gram matrix has no inverse; `count` of them, the first at `index` of the leading dimensions."""

    def __init__(self, message: str, count: int = 0, index: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.count, self.index = count, index


def require_extra(module: str, extra: str):
    """Import an optional module, or say which extra installs it."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as err:
        raise MissingExtra(
            f"{module!r} is needed here but not installed: pip install -c constraints.txt 'semcom-fast[{extra}]'"
        ) from err
