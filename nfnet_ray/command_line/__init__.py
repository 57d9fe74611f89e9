"""The parts that all command lines of the project share: arguments, exit codes, Ctrl-C, progress, the terminal."""
