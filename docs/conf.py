"""The site that `make site` builds: the pages, code and figures of this repository, and the API of dwa_core.

The source folder is the repository, so a link from one file to another leads to the same place as on a code host.
"""

import re
import shutil

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.parsers import Parser

from dwa_paper.report import page

project = html_title = "DWA companion"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb", ".py": "code"}
include_patterns = ["*.md", "docs/*.md", "docs/*.ipynb", "results/*/*.md"]
include_patterns += ["*.py", "dwa_*/**.py", "benchmarks/*.py", "tests/*.py", "tests/core/*.py", "tests/tools/*.py"]
exclude_patterns = [".*", "_site", "artifacts", "exports"]
highlight_language = "text"
default_role = "code"  # of `names` in docstrings
myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 4
nb_execution_mode = "off"
nb_merge_streams = True
add_module_names = False
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_inherit_docstrings = False
napoleon_use_ivar = True
html_theme = "furo"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_math_renderer = "mathml"


class CodeParser(Parser):
    """Shows a file of code as a page, where `#L47` leads to line 47."""

    supported = ("code",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        env = document.settings.env
        name = f"{env.docname}.py"
        code = nodes.literal_block(inputstring, inputstring, language="python", linenos=True)
        code["highlight_args"] = {"lineanchors": "L"}
        document += nodes.section("", nodes.title(name, name), code, ids=["code"])
        lines = range(1, len(inputstring.splitlines()) + 1)
        slugs = {f"L{line}": (line, f"L-{line}", name) for line in lines}
        env.metadata[env.docname] |= {"orphan": "", "nosearch": "", "myst_slugs": slugs}


def complete_page(app, name: str, content: list[str]) -> None:
    """Adds the table of contents to the front page, and each profile's products to the page of tables and figures."""
    content[0] = content[0].replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
    if name == root_doc:
        content[0] += (app.confdir / "contents.txt").read_text()
    if name == "docs/tables-and-figures":
        for profile in sorted({path.parent.name for path in app.srcdir.glob("results/*/*.md")} - {"bench"}):
            content[0] += f"\n## Profile `{profile}`\n"
            for figure in page.figures(profile).values():
                picture = f"![{figure.title}](../figures/{profile}/{figure.path.name})"
                content[0] += f"\n### {figure.title}\n\n{picture}\n\n{figure.text}\n"
            content[0] += f"\n### Tables of `{profile}`\n\n```{{toctree}}\n:glob:\n\n../results/{profile}/*\n```\n"


def name_fields(app, what: str, name: str, obj, options, lines: list[str]) -> None:
    """Gives the fields that a class's docstring describes the heading that napoleon looks for."""
    first = next((n for n, line in enumerate(lines) if what == "class" and re.match(r"\w+: ", line)), len(lines))
    lines[first:] = ["Attributes:", *(f"    {line}" for line in lines[first:])] if first < len(lines) else []


def draw_formula(translator, node: nodes.Element) -> None:
    """Writes a formula as MathML, which browsers draw without a script."""
    block = isinstance(node, nodes.math_block)
    formula = tex2mathml(node.astext(), as_block=block)
    translator.body.append(f'<div class="formula">{formula}</div>' if block else formula)
    raise nodes.SkipNode


def copy_front_page(app, error: Exception | None) -> None:
    if error is None:
        shutil.copy(app.outdir / "README.html", app.outdir / "index.html")


def setup(app) -> None:
    app.add_source_parser(CodeParser)
    app.add_html_math_renderer("mathml", (draw_formula, None), (draw_formula, None))
    app.connect("source-read", complete_page)
    app.connect("autodoc-process-docstring", name_fields, priority=400)  # before napoleon
    app.connect("build-finished", copy_front_page)
