"""What documentation, comments and docstrings refer to exists: links, anchors, files, modules, names, sections."""

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("pipeline", "stages", "sinks", "vadpipe", "bench", "tools", "examples", "tests")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
CODE = sorted(
    path
    for package in PACKAGES
    for path in (ROOT / package).rglob("*")
    if path.suffix in (".py", ".c", ".h", ".pyi")
)
FILES = {str(path.relative_to(ROOT)) for path in [*CODE, *PAGES, *ROOT.glob("docs/*")]}
FILES |= {
    f"vadpipe/{name}" for name in FILES if name.startswith("examples/")
}  # where an installation has them

LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"(?<![\w/.<{*-])((?:[\w-]+/)*[\w-]+\.(?:py|md|pyi))\b(?!\()")
NAME = re.compile(r"(?<![\w./-])((?:pipeline|stages|sinks|vadpipe)(?:\.\w+)+)(?![\w/-])")
SECTION = re.compile(r"([\w-]+\.md)`?\)?,? (?:section|under|chapter) [\"']?([\w ]+?)[\"'.,;:)]")

# Files of the user's and other programs' that pages and tests speak of.
FOREIGN = {
    "CONFIG.py",
    "config.py",
    "nightly.py",
    "many.py",
    "local.py",
    "embed.py",
    "web.py",
    "setup.py",
    "jobs.py",
}
# Dotted names that are no modules: entry points, files of state, names of logs.
NOT_NAMES = re.compile(r"vadpipe\.(commands|git|log|restoring|service|timer|toml|json)\b|\.(md|py|pyi)$")


def prose(path):
    """The text of a page, or the comments and strings of a program."""
    text = path.read_text()
    if path.suffix not in (".py", ".pyi"):
        return text
    # An f-string holds code, not references.
    return "\n".join(
        token.string
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
        or (token.type == tokenize.STRING and "f" not in token.string.partition('"')[0].lower())
    )


def heading_anchors(page):
    """The anchors that the headings of a page get, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def resolves(name):
    """Whether a dotted name is a module, or is defined or imported in one; nothing is imported to find out."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:length])
        sources = [place.with_suffix(".py"), place / "__init__.py", place / "__init__.pyi"]
        if texts := [source.read_text() for source in sources if source.is_file()]:
            return all(
                any(
                    re.search(
                        rf"^\s*(?:class |def |async def |from .* import .*)?{part}\b", text, re.MULTILINE
                    )
                    for text in texts
                )
                for part in parts[length:]
            )
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page):
    broken = []
    for found in LINK.finditer(FENCE.sub("", page.read_text())):
        target, _, anchor = (found[1] or found[2]).partition("#")
        if re.match(r"\w+:", target):
            continue
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and anchor not in heading_anchors(path)):
            broken.append(found[0])
    assert not broken, "\n".join(broken)


def test_every_file_that_is_named_exists():
    missing = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in [*PAGES, *CODE]
        if "tests" not in path.parts
        for name in FILE.findall(prose(path))
        if name not in FOREIGN and not any(known == name or known.endswith(f"/{name}") for known in FILES)
    ]
    assert not missing, "\n".join(missing)


def test_every_module_and_name_that_is_named_exists():
    missing = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in [*PAGES, *CODE]
        if "tests" not in path.parts
        for name in sorted(set(NAME.findall(prose(path))))
        if not NOT_NAMES.search(name) and not resolves(name)
    ]
    assert not missing, "\n".join(missing)


def test_every_section_that_is_named_exists():
    missing = []
    for path in [*PAGES, *CODE]:
        for page, section in SECTION.findall(" ".join(prose(path).split())):
            target = ROOT / page if (ROOT / page).exists() else ROOT / "docs" / page
            titles = {title.lower() for title in re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)}
            if section.lower() not in titles:
                missing.append(f"{path.relative_to(ROOT)}: {page}, section {section}")
    assert not missing, "\n".join(missing)
