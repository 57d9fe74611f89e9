"""Where studies lie, and the files of an exported one."""
