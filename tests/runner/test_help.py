"""--help: every flag says what it means."""

import warnings

import pytest
import tyro
from helpers import ALGORITHMS, load

from common.runner.cli import Run


def meanings(kind):
    """Return the help text of each flag of a dataclass, without its default."""
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        parser = tyro.extras.get_parser(kind)
    return {x.option_strings[0]: x.help.partition("(default:")[0] for x in parser._actions}


@pytest.mark.parametrize("name", [None, *ALGORITHMS])
def test_no_flag_lacks_its_meaning(name):
    """A comment is lost where the formatter breaks its line."""
    texts = meanings(load(name).Config if name else Run)
    assert len(texts) > 3 and not [flag for flag, text in texts.items() if not text.strip()]
