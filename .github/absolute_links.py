"""absolute_links.py FILE REPOSITORY REF: makes relative links of a Markdown file lead into a repository."""

import re
import sys
from pathlib import Path

LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?!\w+:|#|/)(?P<path>[^)\s]+)\)")


def absolute_links(text: str, repository: str, ref: str) -> str:
    """The text with pictures as raw files and other links as pages of the repository."""

    def absolute(match: re.Match[str]) -> str:
        kind = "raw" if match["picture"] else "blob"
        return f"{match['picture']}[{match['text']}]({repository}/{kind}/{ref}/{match['path']})"

    return LINK.sub(absolute, text)


if __name__ == "__main__":
    file, repository, ref = sys.argv[1:]
    Path(file).write_text(absolute_links(Path(file).read_text(encoding="utf-8"), repository, ref), encoding="utf-8")
