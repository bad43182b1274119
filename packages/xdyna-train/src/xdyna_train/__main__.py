"""`python -m xdyna_train`, as torchrun starts it, is the command `xdyna-train`."""

from xdyna_train.cli import main

if __name__ == "__main__":
    main()
