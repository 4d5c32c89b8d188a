"""The one exception that a user of the kit is meant to read."""

from difflib import get_close_matches


class KitError(Exception):
    """A mistake of the user's or of the set-up, told in one line that says what to do next.

    The command line prints it without a traceback and exits with 2.
    """


def unknown(kind: str, name: str, known) -> KitError:
    """Error for a name that does not exist, with the nearest one that does."""
    known = sorted(str(k) for k in known)
    near = get_close_matches(name, known, n=1, cutoff=0.5) if len(name) > 2 else []  # '13' is not meant to be '11'
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return KitError(f"unknown {kind} {name!r}; {hint}")


def one_line(error: object) -> str:
    """An error's words without line breaks: what libraries say may be long."""
    return " ".join(str(error).split())
