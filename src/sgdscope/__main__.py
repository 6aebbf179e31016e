"""``python -m sgdscope``: the command line, where its script is not on the path."""

from sgdscope.cli import main

if __name__ == "__main__":
    main()
