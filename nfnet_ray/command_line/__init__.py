"""What every command line of the project shares: parsing in one line, exit codes, Ctrl-C, the terminal."""
