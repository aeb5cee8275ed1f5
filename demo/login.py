"""Who may open the page: a file of user:password lines."""

from pathlib import Path


def logins(path: str) -> list[tuple[str, str]]:
    """The users of a file with their passwords; blank lines and those that begin with # are passed over.

    Raises ValueError, which names the line and never quotes it, for a file that cannot be used.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ValueError(f"the file {path} cannot be read ({why}): give a text file of user:password lines") from None
    users = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        user, _, password = line.partition(":")
        if not user.strip() or not password.strip():
            raise ValueError(f"line {number} of {path} is not user:password: write one user a line, a colon between")
        if user.strip() in users:
            raise ValueError(f"line {number} of {path} names a user a second time: keep one line for each")
        users[user.strip()] = password.strip()
    if not users:
        raise ValueError(f"the file {path} names no user: write one user:password a line")
    return list(users.items())
