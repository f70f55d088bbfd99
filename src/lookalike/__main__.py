"""``python -m lookalike``, which torchrun needs."""

from lookalike.cli import main

if __name__ == "__main__":
    main()
