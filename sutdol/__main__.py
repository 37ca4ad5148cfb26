"""`python -m sutdol` is `sutdol`."""

from sutdol.cli import main

if __name__ == "__main__":
    main()
