"""`python -m mla_compiler.bench`, `make bench`, `flashmla bench`: kernels and models, checked, timed, shown against their bars.

Exit status 1 if a bar is missed, 2 if what is asked cannot be done.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..errors import FlashMLAError
from .arguments import add_arguments


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    from .run import run

    try:
        return run(parse(arguments))
    except FlashMLAError as error:
        print(f"flashmla bench: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
