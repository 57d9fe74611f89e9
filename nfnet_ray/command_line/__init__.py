"""What every command line of the project shares: arguments, exit codes, Ctrl-C, progress, the terminal."""
