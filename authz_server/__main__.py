"""`python -m authz_server`."""

from authz_server.cli.main import main

if __name__ == "__main__":
    main()
