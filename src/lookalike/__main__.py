"""``python -m lookalike``, which torchrun needs."""

from lookalike.cli.main import main

if __name__ == "__main__":
    main()
