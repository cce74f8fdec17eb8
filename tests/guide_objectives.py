"""The objectives that stand in docs/adding_an_objective.md, as the files that a person makes of them."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "adding_an_objective.md"


def guide_files() -> dict[str, str]:
    """The Python blocks of the page, each by the first file that the paragraph before it names."""
    before, *blocks = re.split(r"^```python\n", PAGE.read_text(encoding="utf-8"), flags=re.M)
    found = {}
    for block in blocks:
        code, _, following = block.partition("```\n")
        found[re.findall(r"`(\w+\.py)`", before.strip().rpartition("\n\n")[2])[0]] = code
        before = following
    return found


def guide_modules() -> dict[str, str]:
    """Those that are no tests, by their modules' names."""
    return {name[:-3]: code for name, code in guide_files().items() if not name.startswith("test_")}
