"""`python -m mercer.app` is the command `mercer`."""

from mercer.app.start import main

if __name__ == "__main__":
    main()
