"""Links between the files of the repository lead somewhere, to the heading that they name."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = (".", "docs", "conformance", "benchmarks", "upstream", "diffusers_oneflow/demo/model", "examples")
PAGES = [page for folder in FOLDERS for page in sorted((ROOT / folder).glob("*.md"))]


def prose(text: str) -> str:
    """A page without its code."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE))


def anchors(text: str) -> set[str]:
    """What links to headings of a page say, as GitHub and MkDocs make it."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken(page: Path) -> list[str]:
    """The links of a page to files or headings that do not exist; those to other machines are not followed."""
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert broken(page) == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_pages_of_the_site_link_to_each_other_only(page):
    """The site has no other files."""
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text())) if not re.match(r"[a-z]+:", link)]
    assert [link for link in links if link.startswith(("../", "/"))] == []


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "there.md").write_text("# A heading, with `code`\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](there.md) [b](there.md#a-heading-with-code) [c](https://x.y) `[d](no.md)`\n\n[e](gone.md)\n[f](there.md#gone)\n"
    )
    assert broken(page) == ["gone.md", "there.md#gone"]


def test_every_page_is_in_the_menu():
    """`mkdocs build --strict` would say so too, but not in a second."""
    menu = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f": {page.name}\n" in menu, page.name


def test_regions_that_the_site_takes_from_elsewhere_are_marked():
    for page in (ROOT / "docs").glob("*.md"):
        for name, region in re.findall(r'^--8<-- "([^":]+):([\w-]+)"$', page.read_text(), flags=re.MULTILINE):
            source = (ROOT / name).read_text()
            assert source.count(f"[start:{region}]") == source.count(f"[end:{region}]") == 1, f"{page.name}: {name}:{region}"
