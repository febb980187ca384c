"""How Sphinx builds the documentation: ``make docs``."""

from importlib.metadata import version as version_of

import django
from django.conf import settings

# For autodoc, which imports the package.
settings.configure(INSTALLED_APPS=["gsession_django"])
django.setup()

project = "gsession-django"
copyright = "gsession-django contributors"
version = release = version_of("gsession-django")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinxcontrib.svgbob"]

# The pages link to each other's headings, as on a repository's host.
myst_heading_anchors = 3

autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88
# Types in signatures that lead nowhere: those of other projects, as the build asks no network, and private ones.
nitpick_ignore_regex = [
    ("py:.*", r"(collections|contextlib|datetime|django)\..*"),
    ("py:class", r"gsession_django\.(decorators\._View|core\.options\.AtLeast)|least=\d+"),
]

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = f"gsession-django {release}"
html_copy_source = False
